"""Deserialise an engine and describe its inputs and outputs in numpy's terms."""

from __future__ import annotations

import importlib
from typing import Any

from export.errors import InvalidInput
from export.runtime import TensorSpec
from export.trt.log import MESSAGES, TensorRTFailed, checked, logger_of

_DTYPES = {
    "FLOAT": "float32", "HALF": "float16", "INT8": "int8", "INT32": "int32", "INT64": "int64", "BOOL": "bool", "UINT8": "uint8",
}  # fmt: skip
"""TensorRT's own map (`nptype`) raises for types that numpy lacks."""
_EXTENDED = {"BF16": ("bfloat16", "uint16"), "FP8": ("float8_e4m3fn", "uint8")}
"""Types that numpy has through ml_dtypes only; without it their bits are seen as the second."""
_NO_CUDA = "CUDA initialization failure"
"""Said when CUDA does not start; some versions call it a warning."""
_FOREIGN = "An engine runs on the GPU and the TensorRT that it was built with; build it here from its ONNX file."


def deserialised(trt: Any, plan: bytes) -> tuple[Any, Any]:
    """Return TensorRT's runtime and the engine, which needs the runtime for as long as it lives.

    Raises:
        TensorRTFailed: the runtime has complaints, or refuses the plan.
    """
    runtime: Any = checked("creating TensorRT's runtime", lambda: trt.Runtime(logger_of(trt)))
    said = MESSAGES.take()
    if any(line.startswith(("error:", "internal error:")) or _NO_CUDA in line for line in said):
        # it returns an object even then, whose first use may end the process
        raise TensorRTFailed("creating TensorRT's runtime", said)
    return runtime, checked("loading the engine", lambda: runtime.deserialize_cuda_engine(plan), _FOREIGN)


def tensor_names(trt: Any, engine: Any) -> tuple[list[str], list[str]]:
    """Return the names of an engine's inputs and outputs, in its own order."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    modes = {name: engine.get_tensor_mode(name) for name in names}
    inputs = [name for name in names if modes[name] == trt.TensorIOMode.INPUT]
    return inputs, [name for name in names if name not in inputs]


def tuned_shapes(engine: Any, inputs: list[str], notes: list[str]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each dynamic input (of an engine that is not ours) that the engine was tuned for, with a note."""
    chosen = {}
    for name in inputs:
        if -1 in tuple(engine.get_tensor_shape(name)):
            least, best, most = (tuple(shape) for shape in engine.get_tensor_profile_shape(name, 0))
            notes.append(f"input {name!r} is dynamic, {least} to {most}; it runs at {best}, which it was tuned for")
            chosen[name] = best
    return chosen


def tensor_spec(trt: Any, engine: Any, context: Any, name: str, notes: list[str]) -> TensorSpec:
    """Describe an input or output, whose shape the context knows once all inputs have one.

    Raises:
        InvalidInput: it is of a kind that a session does not run: a shape tensor, not linear, sized by the data, of 4 bits.
    """
    if engine.is_shape_inference_io(name):
        raise InvalidInput(f"{name!r} holds a shape, not data; a session runs engines without such inputs and outputs")
    form = engine.get_tensor_format(name)
    if form != trt.TensorFormat.LINEAR:
        raise InvalidInput(f"{name!r} has the format {form}; build the engine with linear inputs and outputs")
    shape = tuple(context.get_tensor_shape(name))
    if not all(extent > 0 for extent in shape):
        raise InvalidInput(f"{name!r} has the shape {shape}; a session allocates once, so no extent may depend on the data or be 0")
    return TensorSpec(name, shape, _dtype(engine, name, notes))


def _dtype(engine: Any, name: str, notes: list[str]) -> str:
    kind = str(engine.get_tensor_dtype(name)).rpartition(".")[2]
    if kind in _DTYPES:
        return _DTYPES[kind]
    if kind not in _EXTENDED:
        known = ", ".join([*_DTYPES, *_EXTENDED])
        raise InvalidInput(f"{name!r} is of type {kind}, which no array can hold; a session knows {known}")
    extended, plain = _EXTENDED[kind]
    try:
        importlib.import_module("ml_dtypes")  # teaches numpy the names
    except ImportError:
        notes.append(f"{name!r} is {kind}, seen as the bits of {plain} for want of ml_dtypes (pip install ml_dtypes)")
        return plain
    return extended
