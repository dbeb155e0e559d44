"""Give ONNX graphs the precision that TensorRT is to compute in, and refuse graphs whose types do not fit it.

A strongly typed network computes in the types of its graph. TensorRT 11 knows nothing else, so an fp32 graph builds an fp32 engine
whatever was asked for; `check_graph` is what stops that. The graph comes from:

| precision | graph                                                                                                  |
|-----------|--------------------------------------------------------------------------------------------------------|
| fp32      | as exported                                                                                            |
| fp16      | `export.onnx.precision.converted`: weights rounded once, sums over many pixels or keys in fp32              |
| bf16      | the same casts and the same kept operators, in bfloat16; weights rounded from fp32; operator set 22    |
| mixed     | fp16, and as many nodes in fp32 as parity needs (`export.trt.mixed` finds them)                        |
| int8, fp8 | yours: with QuantizeLinear and DequantizeLinear, symmetric                                             |

Inputs and outputs of whole networks stay fp32, with casts behind and before them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.errors import InvalidInput
from export.onnx.opset import standard_opset
from export.onnx.precision import KEEP_FP32, converted
from export.onnx.precision import opset as opset_of
from export.trt.options import PRECISIONS

HEAVY = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""The operators that decide a network's time, and whose types decide its precision."""
NAMES: dict[int, str] = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}
HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_QUANTISED = {"int8": (TensorProto.INT8, "int8"), "fp8": (TensorProto.FLOAT8E4M3FN, "float8e4m3fn")}
_QUANTISE = {
    "int8": "quantise it with NVIDIA ModelOpt (python -m modelopt.onnx.quantization --quantize_mode=int8), or with "
    "onnxruntime.quantization.quantize_static(quant_format=QuantFormat.QDQ, activation_type=QuantType.QInt8, "
    "weight_type=QuantType.QInt8, per_channel=True, extra_options={'ActivationSymmetric': True, 'QuantizeBias': False})",
    "fp8": "quantise it with NVIDIA ModelOpt (python -m modelopt.onnx.quantization --quantize_mode=fp8)",
}


def check_graph(model: onnx.ModelProto | bytes, precision: str) -> dict[str, int]:
    """Refuse a graph whose types do not fit a precision; return how many convolutions and products compute in which.

    Raises:
        InvalidInput: an unknown precision, not an ONNX graph, or its types do not fit: says which node, and what to do.
    """
    if precision not in PRECISIONS:
        raise InvalidInput(f"unknown precision {precision!r}; known: {', '.join(PRECISIONS)}")
    model = parsed(model) if isinstance(model, bytes) else model
    if any(tensor.data_location == TensorProto.EXTERNAL for tensor in model.graph.initializer):
        raise InvalidInput("the graph keeps weights in other files; write it as a single file, whose hash covers them")
    types = tensor_types(model)
    heavy = [(node.name or node.output[0], _computes_in(node, types)) for node in model.graph.node if _is_heavy(node)]
    kinds = [kind for _, kind in heavy]
    counts = Counter(NAMES.get(kind, "a type that cannot be told") for kind in kinds)
    if precision in _QUANTISED:
        _check_quantised(model, precision)
    elif precision == "fp32":
        odd = [name for name, kind in types.items() if kind in HALVES]
        if odd:
            _refuse(precision, f"holds tensors of half precision (first: {odd[0]!r})", "ask for fp16, bf16 or mixed")
    elif precision == "mixed":
        if TensorProto.FLOAT16 not in (kinds or types.values()):
            _refuse(precision, f"computes nothing in fp16 ({_told(counts)})", _convert(precision))
    else:
        wanted = TensorProto.FLOAT16 if precision == "fp16" else TensorProto.BFLOAT16
        wrong = [name for name, kind in heavy if kind != wanted]
        if wrong or wanted not in types.values():
            first = f" (first: {wrong[0]!r})" if wrong else ""
            found = f"has {len(wrong)} of {len(heavy)} convolutions and products in another type{first}: {_told(counts)}"
            _refuse(precision, found, f"{_convert(precision)}, or ask for mixed if some are meant to stay in fp32")
    return dict(counts)


def computed_products(data: bytes) -> bool:
    """Say whether a graph multiplies two matrices that are both computed, as attention does."""
    model = parsed(data)
    known = {tensor.name for tensor in model.graph.initializer}
    known |= {node.output[0] for node in model.graph.node if node.op_type == "Constant"}
    return any(node.op_type == "MatMul" and not known & set(node.input) for node in model.graph.node)


def fp16(model: onnx.ModelProto, *, keep_io: bool = True, keep_nodes: Sequence[str] = ()) -> onnx.ModelProto:
    """Return an fp32 graph in fp16, with the named nodes and sums over many values in fp32; errors are those of `converted`."""
    return _without_round_trips(converted(named(model), "fp16", keep_io=keep_io, keep_nodes=keep_nodes))


def bf16(model: onnx.ModelProto, *, keep_io: bool = True, keep: Sequence[str] = KEEP_FP32) -> onnx.ModelProto:
    """Return an fp32 graph in bf16, with sums over many values in fp32.

    The casts are those of the fp16 conversion; the types are exchanged afterwards, and weights are rounded from fp32, so nothing
    of fp16's range is left.

    Raises:
        InvalidInput: the graph cannot be converted, for instance to operator set 22, the first whose operators take bf16.
        Unavailable: the converter is not installed.
    """
    original = at_opset(named(model), opset_of("bf16"))
    half = _without_round_trips(converted(original, "fp16", keep_io=keep_io, keep=keep))
    exact = {tensor.name: tensor for tensor in original.graph.initializer}
    attributes = {(node.name, a.name): a.t for node in original.graph.node for a in node.attribute if a.HasField("t")}
    for tensor in half.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            tensor.CopyFrom(_bf16_tensor(exact[tensor.name]))
    for node in half.graph.node:
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype") and attribute.i == TensorProto.FLOAT16:
                attribute.i = TensorProto.BFLOAT16
            if attribute.HasField("t") and attribute.t.data_type == TensorProto.FLOAT16:
                attribute.t.CopyFrom(_bf16_tensor(attributes[node.name, attribute.name]))
    for info in (*half.graph.input, *half.graph.output, *half.graph.value_info):
        if info.type.tensor_type.elem_type == TensorProto.FLOAT16:
            info.type.tensor_type.elem_type = TensorProto.BFLOAT16
    try:
        onnx.checker.check_model(half, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise InvalidInput(f"the model cannot be converted to bf16: {error}") from error
    return half


def named(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy in which every node has a name of its own, as keep-lists and TensorRT's messages need them.

    `InvalidInput` where a node holds a graph (If, Loop, Scan), which no conversion here follows.
    """
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    taken = Counter(node.name for node in copy.graph.node)
    for index, node in enumerate(copy.graph.node):
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise InvalidInput(f"node {node.name!r} ({node.op_type}) holds a graph of its own; export without control flow")
        if not node.name or taken[node.name] > 1:
            node.name = f"{node.op_type}_{index}"
            while taken[node.name]:
                node.name += "_"
            taken[node.name] = 1
    return copy


def tensor_types(model: onnx.ModelProto) -> dict[str, int]:
    """Return the ONNX element type of every tensor whose type can be told; `InvalidInput` where types contradict each other."""
    try:
        graph = onnx.shape_inference.infer_shapes(model, check_type=True).graph
    except (onnx.shape_inference.InferenceError, ValueError) as error:
        raise InvalidInput(f"the graph's types contradict each other: {error}") from error
    infos: Iterable[onnx.ValueInfoProto] = (*graph.input, *graph.value_info, *graph.output)
    types = {info.name: info.type.tensor_type.elem_type for info in infos}
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}


def bf16_values(values: np.ndarray) -> np.ndarray:
    """Round float32 values to the nearest bfloat16, ties to even; return their upper 16 bits as uint16."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def from_bits(bits: np.ndarray) -> np.ndarray:
    """Return the numbers in float32 that bits of bfloat16 stand for."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _bf16_tensor(tensor: onnx.TensorProto) -> onnx.TensorProto:
    values = bf16_values(numpy_helper.to_array(tensor))
    return TensorProto(name=tensor.name, data_type=TensorProto.BFLOAT16, dims=tensor.dims, raw_data=values.astype("<u2").tobytes())


def at_opset(model: onnx.ModelProto, wanted: int) -> onnx.ModelProto:
    """Return a graph in an operator set, or in its own where that is newer; nodes of other domains stay as they are.

    `InvalidInput` where it cannot be taken there, or has local functions.
    """
    found = standard_opset(model)
    if found >= wanted:
        return model
    if model.functions:  # onnx's converter leaves them out of its result without a word
        raise InvalidInput(f"local functions cannot go from operator set {found} to {wanted}: export with that, or inline them")
    try:
        result = onnx.version_converter.convert_version(model, wanted)
    except Exception as error:  # the converter is C++ and raises RuntimeError, TypeError and its own
        raise InvalidInput(f"the graph cannot be taken from operator set {found} to {wanted} ({error}); export it so") from error
    result.ir_version = max(result.ir_version, 10)  # what operator set 22 came with
    del result.metadata_props[:]
    result.metadata_props.extend(model.metadata_props)
    return result


def _without_round_trips(model: onnx.ModelProto) -> onnx.ModelProto:
    """Let nodes that stay in fp32 read each other directly: the converter rounds what they pass on to half and back."""
    made = {node.output[0]: node for node in model.graph.node if node.op_type == "Cast"}
    types = tensor_types(model)
    outputs = {info.name for info in model.graph.output}
    instead: dict[str, str] = {}
    for node in made.values():
        half = made.get(node.input[0])
        kinds = [types.get(name) for name in (node.output[0], node.input[0], half.input[0] if half is not None else "")]
        if half is None or kinds[1] not in HALVES or kinds[0] != TensorProto.FLOAT or kinds[2] != TensorProto.FLOAT:
            continue
        if node.output[0] in outputs:  # its name must stay
            node.CopyFrom(helper.make_node("Identity", [half.input[0]], [node.output[0]], name=node.name))
        else:
            instead[node.output[0]] = half.input[0]
    for node in model.graph.node:
        node.input[:] = [instead.get(name, name) for name in node.input]
    for node in reversed(list(model.graph.node)):  # casts that nothing reads any more
        if node.op_type == "Cast" and not outputs & {*node.output}:
            if not any(node.output[0] in other.input for other in model.graph.node):
                model.graph.node.remove(node)
    return model


def parsed(data: bytes) -> onnx.ModelProto:
    try:
        model = onnx.ModelProto.FromString(data)
    except Exception as error:  # protobuf's DecodeError derives from Exception alone, and its home differs by release
        if type(error).__name__ != "DecodeError":
            raise
        raise InvalidInput("these bytes are no ONNX graph, or a truncated one") from None
    if not model.graph.node:
        raise InvalidInput("the ONNX graph has no nodes")
    return model


def _is_heavy(node: onnx.NodeProto) -> bool:
    """Functions and plugins (other domains) count with their first input's type: what stands in them follows it."""
    return node.op_type in HEAVY if node.domain in ("", "ai.onnx") else True


def _computes_in(node: onnx.NodeProto, types: Mapping[str, int]) -> int:
    known = (types[name] for name in node.input if types.get(name) in NAMES)
    return next(known, TensorProto.UNDEFINED)


def _check_quantised(model: onnx.ModelProto, precision: str) -> None:
    wanted, name = _QUANTISED[precision]
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    constants = [node for node in model.graph.node if node.op_type == "Constant"]
    stored |= {node.output[0]: attribute.t for node in constants for attribute in node.attribute if attribute.name == "value"}
    quantise = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    restored = {node.output[0] for node in quantise if node.op_type == "DequantizeLinear"}
    heavy = [node for node in model.graph.node if _is_heavy(node)]
    if (heavy or not quantise) and not any(set(node.input[:2]) <= restored for node in heavy):
        none = "has no QuantizeLinear and DequantizeLinear nodes"
        found = "has no convolution or product with both inputs quantised" if quantise else none
        _refuse(precision, found, _QUANTISE[precision])
    for node in quantise:
        where = repr(node.name or node.output[0])
        zero = stored.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        if zero is not None and zero.data_type != wanted:
            _refuse(precision, f"quantises {where} to another type than {name}", _QUANTISE[precision])
        if zero is not None and precision == "int8" and np.any(numpy_helper.to_array(zero)):
            _refuse(precision, f"has a zero point other than 0 in {where}", _QUANTISE[precision])
        if zero is None and node.op_type == "QuantizeLinear" and not any(a.name == "output_dtype" for a in node.attribute):
            _refuse(precision, f"quantises {where} to uint8, which TensorRT does not take", _QUANTISE[precision])


def _told(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} in {name}" for name, count in sorted(counts.items())) or "it has no convolutions or products"


def _convert(precision: str) -> str:
    return f"convert it: export.trt.prepare.prepared(model, {precision!r})"


def _refuse(precision: str, found: str, advice: str) -> None:
    raise InvalidInput(
        f"asked for {precision}, but the graph {found}. TensorRT takes types from the graph, and would build another engine than "
        f"asked for. To go on: {advice}"
    )
