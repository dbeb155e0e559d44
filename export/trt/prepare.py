"""Give whole ONNX graphs the precision that an engine computes in (see `export.trt.engine_precision`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from export.errors import InvalidInput
from export.onnx.precision import ERROR_BOUND
from export.trt.engine_precision import bf16, check_graph, fp16, parsed
from export.trt.mixed import keep_list


def prepared(
    model: onnx.ModelProto,
    precision: str,
    *,
    keep_io: bool = True,
    examples: Sequence[Mapping[str, np.ndarray]] = (),
    limit: float = ERROR_BOUND,
) -> onnx.ModelProto:
    """Return a graph in a precision; the argument stays as it is.

    Args:
        model: folded, fp32, static shapes (int8, fp8: quantised already).
        precision: one of `export.trt.options.PRECISIONS`.
        keep_io: keep fp32 inputs and outputs (whole networks); else they are of half precision too (parts of networks).
        examples: for `mixed`: inputs by name that parity is held on; at least one.
        limit: for `mixed`: how far an output may be off, as a share of its largest magnitude.

    Raises:
        InvalidInput: an unknown precision, a graph that cannot be converted, or one that does not fit the precision.
        CheckFailed: `mixed` cannot meet the limit.
        Unavailable: the converter, or for `mixed` ONNX Runtime, is not installed.
    """
    result = model
    if precision == "mixed":
        result = fp16(model, keep_io=keep_io, keep_nodes=keep_list(model, examples, keep_io=keep_io, limit=limit))
    elif precision in ("fp16", "bf16"):
        result = (fp16 if precision == "fp16" else bf16)(model, keep_io=keep_io)
    check_graph(result, precision)
    return result


def in_precision(data: bytes, precision: str, *, keep_io: bool = True, examples: Sequence[Mapping[str, np.ndarray]] = ()) -> bytes:
    """Return the ONNX graph of a file in a precision; one that is in half precision or quantised already stays as it is.

    Arguments and errors are those of `prepared`; besides `InvalidInput` where it is no ONNX graph.
    """
    if precision not in ("fp16", "bf16", "mixed"):
        return data
    try:
        model = parsed(data)
        check_graph(model, "fp32")
    except InvalidInput:  # in half precision already: the builder says whether it is the right one
        return data
    return prepared(model, precision, keep_io=keep_io, examples=examples).SerializeToString()
