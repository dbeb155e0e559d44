"""Quantise fp32 ONNX graphs to int8 with ONNX Runtime's quantiser, in the one form that every runtime here takes.

Static and symmetric, weights per channel, biases in float, as TensorRT's parser wants it: no zero points, no int32 biases. Tensors
are quantised where a quantised operator reads them, never between a convolution and its activation, so that runtimes can fuse the
two. Ranges are the smallest and largest values of the calibration images.
"""

from __future__ import annotations

import functools
import itertools
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from export.errors import InvalidInput, Unavailable
from export.onnx.opset import STANDARD

LAYERS = ("Conv", "ConvTranspose", "Gemm")
"""What int8 is for: operators with weights."""
MOVING = ("Concat", "Resize", "Slice", "MaxPool", "AveragePool", "GlobalAveragePool")
"""Operators between layers that runtimes compute in int8 as well."""
ACTIVATIONS = ("Relu", "Clip")
PRECISION = "precision"
"""Key of the metadata that says `int8` of a file."""
OPERATORS = [*LAYERS, "Add", *MOVING]
_OPTIONS = {
    "ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False, "ForceQuantizeNoInputCheck": True,
    # whoever reads their outputs quantises them: an activation may follow
    "OpTypesToExcludeOutputQuantization": [*LAYERS, "Add"],
}  # fmt: skip

Feeds = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Calibrated:
    """An fp32 graph with the ranges of its tensors, from which int8 graphs are made."""

    model: onnx.ModelProto
    """Every node has a name of its own."""
    ranges: Any
    """As ONNX Runtime's calibrator gives them."""
    edges: frozenset[str] = frozenset()
    """Nodes that are quantised wherever they stand: the ends of a part of a network."""

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the nodes with weights that can be quantised."""
        weights = _weights(self.model.graph)
        return tuple(node.name for node in self.model.graph.node if _is_layer(node, weights))

    def quantised(self, keep: Iterable[str] = (), only: Iterable[str] = ()) -> onnx.ModelProto:
        """Return the graph in int8, but for the layers that are to be kept in float; or with some nodes alone in int8."""
        tools = _tools()
        quantiser = tools.QDQQuantizer(
            onnx.ModelProto.FromString(self.model.SerializeToString()), per_channel=True, reduce_range=False,
            weight_qType=tools.QuantType.QInt8, activation_qType=tools.QuantType.QInt8, tensors_range=self.ranges,
            nodes_to_quantize=[*only], nodes_to_exclude=[*keep, *_in_float(self.model, self.edges)], op_types_to_quantize=OPERATORS,
            extra_options=dict(_OPTIONS),
        )  # fmt: skip
        quantiser.quantize_model()
        quantiser.model.topological_sort()
        made: onnx.ModelProto = quantiser.model.model
        del made.metadata_props[:], made.graph.value_info[:]
        made.metadata_props.extend(self.model.metadata_props)
        _without_other_domains(made)
        onnx.checker.check_model(made, full_check=True)
        return made


def is_quantised(model: onnx.ModelProto) -> bool:
    """Say whether a graph computes in integers of 8 bits anywhere."""
    return any(node.op_type in ("DequantizeLinear", "DynamicQuantizeLinear") or node.op_type.startswith("QLinear")
               for node in model.graph.node)  # fmt: skip


def calibrated(model: onnx.ModelProto, feeds: Iterable[Feeds], edges: Iterable[str] = ()) -> Calibrated:
    """Find the range of every tensor that may be quantised.

    Args:
        model: fp32, static shapes, batch norms folded where they can be.
        feeds: inputs by name, one image at a time; at least one.
        edges: as `Calibrated` has them.

    Raises:
        InvalidInput: it is quantised already, has no layer that can be, or takes other inputs; no images.
        Unavailable: ONNX Runtime is not installed.
    """
    from export.trt.engine_precision import named

    if is_quantised(model):
        raise InvalidInput("the graph is quantised already; int8 is made from the fp32 one")
    copy, ends = named(model), frozenset(edges)
    weights = _weights(copy.graph)
    if not ends and not any(_is_layer(node, weights) for node in copy.graph.node):
        raise InvalidInput(f"the graph has nothing to quantise: no {', '.join(LAYERS)} with constant weights")
    images = iter(feeds)
    first = next(images, None)
    if first is None:
        raise InvalidInput("int8 needs images to calibrate with, and there are none")
    _check_inputs(copy, first)
    return Calibrated(copy, _ranges(copy, itertools.chain([first], images)), ends)


def quantised_at_random(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph calibrated with one random input: good for timing, useless for predicting."""
    from export.feeds import random_feeds
    from export.onnx.graph_split import spec_of

    feeds = random_feeds([spec_of(info) for info in model.graph.input])
    return calibrated(model, [feeds]).quantised()


def _check_inputs(model: onnx.ModelProto, feeds: Feeds) -> None:
    from export.feeds import check_feeds
    from export.onnx.graph_split import spec_of

    check_feeds([spec_of(info) for info in model.graph.input], feeds)


def _ranges(model: onnx.ModelProto, feeds: Iterator[Feeds]) -> Any:
    """Return the range of every tensor beside an operator that can be quantised."""
    tools = _tools()

    class Reader(tools.CalibrationDataReader):  # type: ignore[name-defined]
        """Gives the calibrator one image at a time."""

        def get_next(self) -> dict[str, np.ndarray] | None:
            found = next(feeds, None)
            return None if found is None else dict(found)

    with tempfile.TemporaryDirectory(prefix="hyctas-int8-") as temporary:
        source, augmented = Path(temporary) / "fp32.onnx", Path(temporary) / "augmented.onnx"
        onnx.save(model, source)
        calibrator = tools.create_calibrator(source, OPERATORS, augmented_model_path=str(augmented))
        calibrator.collect_data(Reader())
        return calibrator.compute_data()


def _in_float(model: onnx.ModelProto, edges: frozenset[str]) -> list[str]:
    """Name the nodes that are never quantised: what moves data that no layer made, and what comes behind the last layer.

    Attention reshapes, slices and joins its own products, which stay in float; logits are resized and compared in float.
    """
    graph = model.graph
    made = {name: node for node in graph.node for name in node.output}
    inputs, constants, weights = {info.name for info in graph.input}, _constants(model), _weights(graph)
    image_like = (*LAYERS, *ACTIVATIONS, "Add", *MOVING)

    def of_layers(node: onnx.NodeProto) -> bool:
        sources = [name for name in node.input[: None if node.op_type == "Concat" else 1] if name]
        return all(name in inputs or (name in made and made[name].op_type in image_like) for name in sources)

    ahead = _feeding_layers(graph, weights, edges)
    moving = [node for node in graph.node if node.op_type in MOVING and not (of_layers(node) and node.name in ahead)]
    adding = [n for n in graph.node if n.op_type == "Add" and (n.name not in ahead or constants & {*n.input})]
    layers = [node for node in graph.node if node.op_type in LAYERS and not _is_layer(node, weights)]
    return [node.name for node in (*moving, *adding, *layers) if node.name not in edges]


def _feeding_layers(graph: onnx.GraphProto, weights: set[str], edges: frozenset[str]) -> set[str]:
    """Name the nodes whose result reaches a layer, or an edge."""
    needed, found = set[str](), set[str]()
    for node in reversed(graph.node):  # sorted, as ONNX wants graphs
        if needed & {*node.output}:
            found.add(node.name)
        if needed & {*node.output} or node.name in edges or _is_layer(node, weights):
            needed |= {*node.input}
    return found


def _is_layer(node: onnx.NodeProto, weights: set[str]) -> bool:
    return node.op_type in LAYERS and node.domain in STANDARD and node.input[1] in weights


def _weights(graph: onnx.GraphProto) -> set[str]:
    """Name the constants in float, of which layers have theirs."""
    return {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}


def _constants(model: onnx.ModelProto) -> set[str]:
    made = {node.output[0] for node in model.graph.node if node.op_type == "Constant"}
    return made | {tensor.name for tensor in model.graph.initializer}


def _without_other_domains(model: onnx.ModelProto) -> None:
    """Leave out operator sets that no node uses, which the quantiser declares."""
    used = {node.domain for node in model.graph.node}
    kept = [opset for opset in model.opset_import if opset.domain in STANDARD or opset.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(opset.domain, opset.version) for opset in kept)


@functools.cache
def _tools() -> Any:
    try:
        from onnxruntime import quantization
    except ImportError as error:
        raise Unavailable("making int8 models", f"onnxruntime's quantiser cannot be imported ({error})",
                          "pip install 'onnxruntime>=1.22'") from None  # fmt: skip
    return quantization
