"""Read files of tensors as other projects save them (torch.save, safetensors), without executing anything from them."""

from __future__ import annotations

import hashlib
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from export.errors import CorruptFile, Give, InvalidInput

WRAPPERS = ("state_dict", "model")
"""Names under which training scripts save a state dict beside other things."""
WITHOUT = Give("init", "none", "start without trained weights")
ELSE = ("give another file", WITHOUT)
PARALLEL = "module."
"""What parallel training puts before every name."""
REFUSED = ("Unsupported global", "Unsupported class", "TorchScript")
"""In torch's errors for a file that is whole but holds more than tensors."""


def read_state(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a `.safetensors` file or of a file of torch.save (`.pth`, `.pt`), by name.

    Raises:
        InvalidInput: no such file, or not a state dict.
        CorruptFile: the file is damaged.
    """
    if not path.is_file():
        raise InvalidInput(f"there is no file {path}", *ELSE)
    value = _safetensors(path) if path.suffix == ".safetensors" else _torch(path)
    for name in WRAPPERS:
        if isinstance(value, dict) and isinstance(value.get(name), dict):
            value = value[name]
    if not isinstance(value, dict) or not value or not all(isinstance(name, str) for name in value):
        how = "save it with torch.save(model.state_dict(), FILE)"
        raise InvalidInput(f"{path} holds no state dict (names and tensors); {how}", *ELSE)
    return {name.removeprefix(PARALLEL): tensor for name, tensor in value.items()}


def tensors_sha256(state: Mapping[str, Tensor]) -> str:
    """Return the sha256 of tensors that came in no file of ours: names, types, shapes and bytes, sorted by name."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def summary(error: Exception) -> str:
    """Return what of an error fits into a sentence of ours: its type and its first sentence."""
    text = (str(error).splitlines() or [""])[0].partition(". ")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _safetensors(path: Path) -> Any:
    try:
        return safetensors.torch.load_file(path, device="cpu")
    except safetensors.SafetensorError as error:
        raise CorruptFile(path, f"is not a readable safetensors file ({summary(error)})", None, *ELSE) from None


def _torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about files that are refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, LookupError, TypeError, AttributeError, pickle.UnpicklingError) as error:
        if any(words in str(error) for words in REFUSED):
            raise InvalidInput(
                f"{path} holds more than tensors, and nothing in it is executed; "
                f"save the tensors alone with torch.save(model.state_dict(), FILE)",
                *ELSE,
            ) from None
        raise CorruptFile(path, f"is not a readable file of torch.save ({summary(error)})", None, *ELSE) from None
