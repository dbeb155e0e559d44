"""Run the TorchDynamo ONNX exporter quietly, and check and clean what it makes."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from unittest.mock import patch

import onnx
import torch
from torch import nn
from torch.onnx._internal.exporter._registration import ONNXRegistry

from export.errors import InvalidInput
from export.onnx.foreign import walk
from export.onnx.functions import OnnxFunction
from export.onnx.graph_split import clean
from export.onnx.opset import STANDARD
from export.onnx.pads import merge_pads

MAX_BYTES = 2**31 - 1
"""What a protobuf message, hence an ONNX file without external data, can hold."""
_EXPORTER_LOG = "torch.onnx._internal.exporter._registration"
_registries: dict[int, ONNXRegistry] = {}


def trace(module: nn.Module, inputs: tuple[torch.Tensor, ...], names: list[str], results: list[str], opset: int) -> onnx.ModelProto:
    """Export a module in eval mode with static shapes; its training flags are restored.

    Raises:
        InvalidInput: more than 2 GiB of weights, or the exporter refuses (with its reason).
    """
    tensors = [*module.parameters(), *module.buffers()]
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if size > MAX_BYTES - 2**20:
        raise InvalidInput(f"the weights take {size / 2**30:.2f} GiB; one ONNX file holds less than 2 GiB")
    with evaluating(module), _quiet_exporter(), _kept_registry():
        try:
            program = torch.onnx.export(
                module, inputs, dynamo=True, opset_version=opset, input_names=names, output_names=results, verbose=False
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise InvalidInput(f"cannot be exported to ONNX: {_reason(error)}") from error
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    clean(model)
    merge_pads(model)
    return model


def _reason(error: BaseException) -> str:
    cause = error.__cause__ or error
    lines = [line for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[0] if lines else 'no text'}"


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Put modules into eval mode and give every part its training flag back afterwards."""
    flags = [(part, part.training) for module in modules for part in module.modules()]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for part, flag in flags:
            part.training = flag


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence what torch 2.9-2.13 says on every export and no caller can act on; all else still shows."""
    logger = logging.getLogger(_EXPORTER_LOG)
    level = logger.level
    logger.setLevel(logging.ERROR)  # "torchvision is not installed. Skipping torchvision::nms"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def _kept_registry() -> Iterator[None]:
    """Build the exporter's registry of operators once per opset: 0.4 s of a core, which torch takes at every export.

    That is most of the time that exporting a single operator takes. Only translations of a caller's own would change a registry,
    and `trace` gives none.
    """
    build = ONNXRegistry.from_torchlib

    def kept(opset_version: int) -> ONNXRegistry:
        if opset_version not in _registries:
            _registries[opset_version] = build(opset_version)
        return _registries[opset_version]

    with patch.object(ONNXRegistry, "from_torchlib", staticmethod(kept)):
        yield


def folded(module: nn.Module) -> nn.Module:
    """Return the module's own BN-folded copy where it offers `folded()`, else the module itself."""
    fold = getattr(module, "folded", None)
    return fold() if callable(fold) else module


def on_cpu(module: nn.Module) -> nn.Module:
    """Return the module itself if it is on the CPU, else a copy there."""
    tensors = [*module.parameters(), *module.buffers()]
    return module if all(tensor.device.type == "cpu" for tensor in tensors) else copy.deepcopy(module).cpu()


def checked_bytes(model: onnx.ModelProto, name: str, functions: Sequence[OnnxFunction] = ()) -> bytes:
    """Serialise a model after checking it in full: standard domain and `functions` alone, no external data, below 2 GiB."""
    foreign = [node for node in walk(model.graph) if node.domain not in STANDARD]
    domains = {node.domain for node in foreign if not _owned(functions, node.domain, node.op_type)}
    others = [function for function in model.functions if not _owned(functions, function.domain, function.name)]
    if domains or others:
        found = sorted(domains) or [f"function {function.name}" for function in others]
        raise InvalidInput(f"the export of {name} is not standard ONNX: it uses {', '.join(found)}")
    assert not any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


def _owned(functions: Sequence[OnnxFunction], domain: str, op_type: str) -> bool:
    return any(function.owns(domain, op_type) for function in functions)
