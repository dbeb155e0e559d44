"""Find which nodes of a network must stay in fp32 for its fp16 engine to be right, without a GPU.

How fp16 goes wrong is computed on ONNX Runtime's CPU, on a graph that computes in fp32 and rounds every tensor to fp16 where the
fp16 graph stores one (`emulated`): sums in fp32, results in fp16, overflow to infinity, as tensor cores do it. ONNX Runtime's own
fp16 on a CPU would not show it: it computes in fp32 and leaves roundings out. What TensorRT fuses is rounded less often.

The list grows from the nodes most at fault: those whose output is further off than what they read. Keeping one in fp32 moves the
fault to whatever stores its result next, so faults are measured anew after every few nodes; then the list is shortened from its end
by bisection. Equal inputs give an equal list.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, inliner, numpy_helper

from export.errors import CheckFailed, InvalidInput, Unavailable
from export.onnx.precision import ERROR_BOUND
from export.trt.engine_precision import HALVES, fp16, from_bits, named, tensor_types

Feeds = Mapping[str, np.ndarray]
OutputError = Callable[[onnx.ModelProto], float]
"""Maps a half-precision graph to the error of its outputs; infinity where they are not finite."""
_CHUNK_BYTES = 256 << 20
"""What the intermediate tensors of one run may take, about."""
_UNKNOWN_BYTES = 32 << 20
"""What a tensor whose shape cannot be told is taken for."""


def keep_list(model: onnx.ModelProto, examples: Sequence[Feeds], *, keep_io: bool = True, limit: float = ERROR_BOUND) -> list[str]:
    """Return a short list of nodes that, kept in fp32, hold the error of an fp16 graph within a limit; the worst come first.

    Args:
        model: folded, fp32, static shapes. A node of a local function is kept or not as a whole.
        examples: inputs by name; at least one. Faults are looked for in the first.
        keep_io: as `export.trt.prepare.prepared`.
        limit: largest error that is allowed, see `output_error`.

    Raises:
        InvalidInput: no examples.
        CheckFailed: no list meets the limit.
        Unavailable: ONNX Runtime is not installed.
    """
    if not examples:
        raise InvalidInput("mixed precision is decided by parity, which needs at least one example input")
    model = named(model)
    error_of = output_error(model, examples)
    kept: list[str] = []
    error = functools.cache(lambda count: error_of(fp16(model, keep_io=keep_io, keep_nodes=kept[:count])))
    passed = 0
    while not error(len(kept)) <= limit:
        passed = len(kept)
        half = fp16(model, keep_io=keep_io, keep_nodes=kept)
        found = faults(model, half, examples[0], set(kept))
        if not found:
            raise CheckFailed(
                f"fp16 is {_percent(error(0))} off, and {_percent(error(passed))} with the {passed} nodes at fault in fp32; "
                f"the limit is {_percent(limit)}. Take bf16 or fp32, or allow more"
            )
        kept += found[: max(1, passed)]
    fails, holds = passed, len(kept)
    while holds - fails > 1:  # the least count that holds, between one that fails (or is 0, and may hold) and one that holds
        middle = (fails + holds) // 2
        fails, holds = (fails, middle) if error(middle) <= limit else (middle, holds)
    return kept[:holds]


def output_error(model: onnx.ModelProto, examples: Sequence[Feeds]) -> OutputError:
    """Return what measures how wrong a half-precision graph is.

    That is the largest difference of an output from fp32's over all examples, as a share of its largest magnitude; of labels
    (integers), the largest share that differs.

    Raises:
        InvalidInput: the fp32 graph gives values that are not finite.
        Unavailable: ONNX Runtime is not installed.
    """
    names = [info.name for info in model.graph.output]
    wanted = [_run(model, feeds, names) for feeds in examples]
    if not all(np.isfinite(value).all() for want in wanted for value in want.values()):
        raise InvalidInput("the fp32 graph itself gives values that are not finite for an example")

    def error(half: onnx.ModelProto) -> float:
        rounding = emulated(half)
        worst = 0.0
        for feeds, want in zip(examples, wanted, strict=True):
            got = _run(rounding, feeds, names)
            worst = max(worst, *(_off(want[name], got[name]) for name in names))
        return worst

    return error


def emulated(half: onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph that computes in fp32 and rounds each tensor to the half type in which the given graph stores it.

    Inputs and outputs that were of half precision become fp32; local functions are rounded inside, too.
    """
    result = inliner.inline_local_functions(half) if half.functions else onnx.ModelProto.FromString(half.SerializeToString())
    types, graph = tensor_types(result), result.graph
    for tensor in graph.initializer:
        _widen(tensor)
    reads = {info.name: f"{info.name}__read" for info in graph.input if types[info.name] in HALVES}
    nodes = [cast for name, read in reads.items() for cast in _rounding(name, read, types[name])]
    for given in graph.node:
        node = onnx.NodeProto.FromString(given.SerializeToString())
        node.input[:] = [reads.get(name, name) for name in node.input]
        for attribute in node.attribute:
            _widen(attribute.t)
            if attribute.name == "to" and attribute.i in HALVES:
                attribute.i = TensorProto.FLOAT
        stored = [name for name in node.output if types.get(name) in HALVES]
        node.output[:] = [f"{name}__exact" if name in stored else name for name in node.output]
        nodes += [node, *(cast for name in stored for cast in _rounding(f"{name}__exact", name, types[name]))]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    for info in (*graph.input, *graph.output):
        if info.type.tensor_type.elem_type in HALVES:
            info.type.tensor_type.elem_type = TensorProto.FLOAT
    return result


def faults(model: onnx.ModelProto, half: onnx.ModelProto, feeds: Feeds, kept: set[str]) -> list[str]:
    """Return the nodes of a half-precision graph whose output is further off than their inputs, worst first.

    Nodes have the names of the fp32 graph's; those that are kept in fp32 already are left out. What a node in fp32 hands on is
    rounded for the node that reads it, which therefore bears that fault.
    """
    types, rounding, mine = tensor_types(half), emulated(half), {node.name: node for node in half.graph.node}
    floats = {name for name, kind in tensor_types(model).items() if kind == TensorProto.FLOAT}
    all_pairs = (pair for node in model.graph.node for pair in zip(node.output, mine[node.name].output, strict=True))
    pairs = [pair for pair in all_pairs if pair[0] in floats]
    graph, errors = onnx.shape_inference.infer_shapes(model).graph, dict[str, float]()
    infos = (*graph.value_info, *graph.output)
    sizes = {info.name: 8 * math.prod(max(d.dim_value, 1) for d in info.type.tensor_type.shape.dim) for info in infos}
    while pairs:  # a bounded amount of memory at a time
        held = itertools.accumulate(sizes.get(name, _UNKNOWN_BYTES) for name, _ in pairs)
        count = max(1, sum(size <= _CHUNK_BYTES for size in held))
        chunk, pairs = pairs[:count], pairs[count:]
        wants, gots = _run(model, feeds, [name for name, _ in chunk]), _run(rounding, feeds, [name for _, name in chunk])
        errors |= {name: _off(wants[name], gots[stored]) for name, stored in chunk}
    found = []
    for index, node in enumerate(model.graph.node):
        read, made = (max((errors.get(name, 0.0) for name in names), default=0.0) for names in (node.input, node.output))
        halved = any(types.get(name) in HALVES for name in mine[node.name].output)
        if halved and node.name not in kept and node.op_type not in ("Cast", "Constant") and not math.isinf(read) and made > read:
            found.append((read - made, index, node.name))
    return [name for _, _, name in sorted(found)]


def _rounding(source: str, target: str, kind: int) -> list[onnx.NodeProto]:
    half = f"{target}__half"
    down = helper.make_node("Cast", [source], [half], to=kind, name=f"{half}_cast")
    return [down, helper.make_node("Cast", [half], [target], to=TensorProto.FLOAT, name=f"{target}__wide_cast")]


def _widen(tensor: onnx.TensorProto) -> None:
    """Make a tensor of half precision fp32 with the same values, in place."""
    if tensor.data_type == TensorProto.BFLOAT16:
        values = from_bits(np.frombuffer(tensor.raw_data, "<u2"))
    elif tensor.data_type == TensorProto.FLOAT16:
        values = numpy_helper.to_array(tensor).astype(np.float32)
    else:
        return
    tensor.CopyFrom(TensorProto(name=tensor.name, data_type=TensorProto.FLOAT, dims=tensor.dims, raw_data=values.tobytes()))


def _run(model: onnx.ModelProto, feeds: Feeds, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Compute any tensors of an fp32 graph."""
    try:
        import onnxruntime
    except ImportError as error:
        reason = f"onnxruntime cannot be imported ({error})"
        raise Unavailable("deciding mixed precision", reason, "pip install onnxruntime") from None
    own = {info.name for info in model.graph.output}
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    copy.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names if name not in own)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip(names, session.run(list(names), dict(feeds)), strict=True))


def _off(want: np.ndarray, got: np.ndarray) -> float:
    """Return the largest difference as a share of the largest magnitude; infinity where a value is not finite.

    Integers are labels: for them it is the share of those that differ.
    """
    if np.issubdtype(want.dtype, np.integer):
        return float(np.mean(want != got))
    if not np.isfinite(got).all():
        return math.inf
    largest, difference = float(np.max(np.abs(want), initial=0.0)), float(np.max(np.abs(want - got), initial=0.0))
    if difference == 0.0:
        return 0.0
    return difference / largest if largest else math.inf


def _percent(share: float) -> str:
    return f"{share:.3%}" if math.isfinite(share) else "not finite"
