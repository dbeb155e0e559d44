"""Hold the ONNX opset of every precision, and turn folded fp32 models into half-precision ones.

Half precision comes from converting the fp32 graph, not from `module.half()`: weights are rounded once, after batch norms were
folded in, and the operators of `KEEP_FP32` keep computing in fp32 between casts. The converter is ONNX Runtime's own
(`onnxruntime.transformers.float16`, inside every onnxruntime package). It knows fp16 only: bf16 models are refused, not guessed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import onnx

from export.errors import InvalidInput, Unavailable

OPSETS = {"fp32": 18, "fp16": 18, "int8": 18, "fp16+int8": 19, "fp8": 19, "bf16": 22}
"""The operator set of a model in each precision; `int8` computes in fp32 outside its quantised parts."""
KEEP_FP32 = ("Softmax", "ReduceMean", "ReduceSum", "ReduceMax", "GlobalAveragePool")
"""Sums over thousands of pixels or keys: fp16 holds 11 bits and ends at 65504, so they would saturate or lose digits."""
ERROR_BOUND = 0.01
"""What fp16 may change an output by, as a share of its largest magnitude; tests hold it on ONNX Runtime's CPU."""


def opset(precision: str) -> int:
    """Return the ONNX operator set of a precision.

    Raises:
        InvalidInput: an unknown precision.
    """
    if precision not in OPSETS:
        raise InvalidInput(f"unknown precision {precision!r}; known: {', '.join(OPSETS)}")
    return OPSETS[precision]


def converted(
    model: onnx.ModelProto, precision: str, *, keep_io: bool, keep: Sequence[str] = KEEP_FP32, keep_nodes: Sequence[str] = ()
) -> onnx.ModelProto:
    """Return an fp32 model in another precision; the argument stays as it is.

    Args:
        model: folded, fp32, with static shapes.
        precision: `fp32` (returned unchanged) or `fp16`.
        keep_io: keep fp32 inputs and outputs, with casts inside: whole networks. Else they become half: parts of networks.
        keep: operator types that stay in fp32.
        keep_nodes: names of nodes that stay in fp32.

    Raises:
        Unavailable: no converter is installed, or none exists for this precision.
        InvalidInput: an unknown precision, or a model that the converter refuses.
    """
    opset(precision)
    if precision == "fp32":
        return model
    if precision != "fp16":
        raise Unavailable(
            f"converting ONNX models to {precision}", f"ONNX Runtime's converter writes fp16 only, not {precision}",
            "take fp16 or fp32 instead",
        )  # fmt: skip
    convert, sort, blocked = _converter()
    try:
        half = convert(model, keep_io_types=keep_io, op_block_list=[*blocked, *keep], node_block_list=list(keep_nodes))
        sort(half.graph)  # it appends its casts at the end, which the ONNX checker refuses
        onnx.checker.check_model(half, full_check=True)
    except (ValueError, AssertionError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise InvalidInput(f"the model cannot be converted to {precision}: {error}") from error
    return half


@functools.cache
def _converter() -> tuple[Callable[..., onnx.ModelProto], Callable[[onnx.GraphProto], None], list[str]]:
    try:
        from onnxruntime.transformers import float16, onnx_model
    except ImportError as error:
        raise Unavailable(
            "converting ONNX models to fp16", f"the converter inside onnxruntime cannot be imported ({error})",
            "pip install 'onnxruntime>=1.22'",
        ) from None  # fmt: skip
    return float16.convert_float_to_float16, onnx_model.OnnxModel.graph_topological_sort, list(float16.DEFAULT_OP_BLOCK_LIST)
