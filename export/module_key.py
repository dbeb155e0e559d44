"""Name a module by everything that decides what its export contains, so that exported files can be reused."""

from __future__ import annotations

import functools
import hashlib
import sys
import uuid
from pathlib import Path
from typing import Any

import torch
from torch import nn


def module_key(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> str:
    """Return 24 hex digits over the module's classes, their package's source, attributes, weights and input shapes.

    An attribute whose text differs in every process (no `__repr__`, a long array) costs reuse, not correctness.
    """
    digest = hashlib.sha256(torch.__version__.encode())
    for name, part in module.named_modules():
        kind = type(part)
        own = {key: value for key, value in vars(part).items() if key not in _BOOKKEEPING}
        digest.update(f"{name}|{kind.__module__}.{kind.__qualname__}|{_source_hash(kind.__module__)}|{_text(own)}\n".encode())
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        digest.update(f"{name}|{tuple(tensor.shape)}|{tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    for tensor in inputs:
        digest.update(f"input|{tuple(tensor.shape)}|{tensor.dtype}\n".encode())
    return digest.hexdigest()[:24]


_BOOKKEEPING = frozenset(vars(nn.Module())) - {"training"}


def _text(value: dict[str, Any]) -> str:
    text = repr(sorted((key, repr(item)) for key, item in value.items()))
    # arrays abbreviate themselves with "...": two different ones could look alike
    return f"{text} {uuid.uuid4()}" if "..." in text else text


@functools.cache
def _source_hash(module_name: str) -> str:
    """Hash all Python files of the top-level package that a class comes from (torch goes by its version)."""
    top = module_name.partition(".")[0]
    module = sys.modules.get(top) or sys.modules.get(module_name)
    if top == "torch" or module is None:
        return top
    folders = [Path(folder) for folder in getattr(module, "__path__", ())]
    files = [file for folder in folders for file in folder.rglob("*.py")]
    if not files and getattr(module, "__file__", None):
        files = [Path(str(module.__file__))]
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.read_bytes())
    return digest.hexdigest()
