"""Give foreign ONNX files the static shapes that sessions need."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx

from export.errors import InvalidInput
from export.files import write_bytes
from export.onnx.foreign import external_files, graph_inputs, load_graph, shape_of, with_weights
from export.runtime import TensorSpec
from export.target import format_size
from export.tensor_layout import channels_axis, image_input

_BY_HAND = "python -m onnxruntime.tools.make_dynamic_shape_fixed --input_name {name} --input_shape {shape} MODEL.onnx FIXED.onnx"


def static_onnx(path: Path, size: tuple[int, int] | None, folder: Path) -> tuple[Path, list[str]]:
    """Return a file whose inputs are static: `path` itself, or a copy in `folder` where they are dynamic.

    Images become one image of three channels and of the size given, as far as the file leaves that open; the batch of other
    inputs becomes 1.

    Returns:
        The file, and notes on what was changed.

    Raises:
        InvalidInput: a size is needed and none was given, a given one contradicts a static one, or an input is dynamic in
            another way.
        CorruptFile: not a whole ONNX file.
    """
    model = load_graph(path)
    outside = external_files(model)
    notes = [f"{path.name} keeps weights in {', '.join(outside)}, which its sha256 does not cover"] if outside else []
    wanted = {info.name: _static_shape(info, size, path) for info in graph_inputs(model)}
    image = image_input([TensorSpec(name, shape) for name, shape in wanted.items()])
    if size is not None and image is not None and image.size != size:
        raise InvalidInput(f"{path} is made for {format_size(image.size)}; asked for {format_size(size)}")
    changed = [info for info in graph_inputs(model) if list(shape_of(info) or ()) != list(wanted[info.name])]
    if not changed:
        return path, notes
    with_weights(model, path)
    for info in changed:
        before = _shape(info)
        for dim, value in zip(info.type.tensor_type.shape.dim, wanted[info.name], strict=True):
            dim.Clear()
            dim.dim_value = value
        notes.append(f"its dynamic input shape {before} was fixed to {wanted[info.name]}")
    for output in model.graph.output:  # stale symbols would contradict the new inputs
        output.type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]
    fixed = folder / f"static-{path.name}"
    write_bytes(fixed, model.SerializeToString())
    return fixed, notes


def _static_shape(info: onnx.ValueInfoProto, size: tuple[int, int] | None, path: Path) -> tuple[int, ...]:
    """Return the static shape that an input is to have."""
    found = shape_of(info)
    if found is None:
        kind = info.type.WhichOneof("value") or "untyped"
        what = "without a shape" if kind == "tensor_type" else f"of the kind {kind.removesuffix('_type')}"
        raise InvalidInput(f"{path}: input {info.name!r} is {what}; only tensors of known rank can be made here")
    axis = channels_axis(found)
    if axis is None:
        shape = [found[0] or 1, *found[1:]] if found else []
        return _complete(info, shape, path)
    sides = (2, 3) if axis == 1 else (1, 2)
    if size is None and None in (found[sides[0]], found[sides[1]]):
        raise InvalidInput(f"{path}: input {info.name!r} has the dynamic shape {_shape(info)}; give a size, HEIGHTxWIDTH")
    filled = dict(zip(sides, size or (0, 0), strict=True)) | {0: 1, axis: 3}
    return tuple(extent or filled[at] for at, extent in enumerate(found))


def _complete(info: onnx.ValueInfoProto, shape: Sequence[int | None], path: Path) -> tuple[int, ...]:
    static = tuple(extent for extent in shape if extent is not None)
    if len(static) == len(shape):
        return static
    example = _BY_HAND.format(name=info.name, shape=",".join(str(extent or "N") for extent in shape))
    raise InvalidInput(f"{path}: input {info.name!r} has the dynamic shape {_shape(info)}; an image's size and a batch can be "
                       f"fixed here, other extents not. Fix them first: {example}")  # fmt: skip


def _shape(info: onnx.ValueInfoProto) -> str:
    dims = info.type.tensor_type.shape.dim
    return "(" + ", ".join(str(dim.dim_value) if dim.HasField("dim_value") else dim.dim_param or "?" for dim in dims) + ")"
