"""Give foreign ONNX files the static shape that sessions need, or say what they take instead of one image."""

from __future__ import annotations

from pathlib import Path

import onnx

from export.errors import CorruptFile, InvalidInput
from export.files import write_bytes


def static_onnx(path: Path, size: tuple[int, int] | None, folder: Path) -> tuple[Path, list[str]]:
    """Return a file with a static (1, 3, H, W) float32 input: `path` itself, or a copy in `folder` where it is dynamic.

    Returns:
        The file, and notes on what was changed.

    Raises:
        InvalidInput: the model takes something else than one image, its size is dynamic and none was given, or a given size
            contradicts a static one.
        CorruptFile: not an ONNX file.
    """
    model = load_graph(path)
    info = _image_input(model, path)
    dims = info.type.tensor_type.shape.dim
    found = [dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None for dim in dims]
    if found[0] not in (None, 1) or found[1] not in (None, 3):
        raise InvalidInput(f"{path}: input {info.name!r} has shape {_shape(info)}; one image is (1, 3, H, W)")
    if size is None and (found[2] is None or found[3] is None):
        raise InvalidInput(f"{path}: input {info.name!r} has the dynamic shape {_shape(info)}; give a size, HEIGHTxWIDTH")
    height, width = size or (found[2], found[3])
    if (found[2] or height, found[3] or width) != (height, width):
        raise InvalidInput(f"{path} is made for {found[2]}x{found[3]}; asked for {height}x{width}")
    if None not in found:
        return path, []
    before = _shape(info)
    for dim, value in zip(dims, (1, 3, height, width), strict=True):
        dim.Clear()
        dim.dim_value = int(value or 0)
    for output in model.graph.output:  # stale symbols would contradict the new input
        output.type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]
    onnx.load_external_data_for_model(model, str(path.parent))
    fixed = folder / f"static-{path.name}"
    write_bytes(fixed, model.SerializeToString())
    return fixed, [f"its dynamic input shape {before} was fixed to (1, 3, {height}, {width})"]


def load_graph(path: Path) -> onnx.ModelProto:
    """Read an ONNX file without its external data.

    Raises:
        InvalidInput: no such file.
        CorruptFile: not a whole ONNX file, or one without a graph.
    """
    if not path.is_file():
        raise InvalidInput(f"no such file: {path}")
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's DecodeError derives from Exception alone
        if isinstance(error, OSError):
            raise
        raise CorruptFile(path, f"is not a whole ONNX file ({type(error).__name__})") from None
    if not model.graph.node:
        raise CorruptFile(path, "holds no ONNX graph")
    return model


def _image_input(model: onnx.ModelProto, path: Path) -> onnx.ValueInfoProto:
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [info for info in model.graph.input if info.name not in weights]
    shown = ", ".join(f"{info.name}: {_dtype(info)} {_shape(info)}" for info in inputs) or "none"
    good = len(inputs) == 1 and len(inputs[0].type.tensor_type.shape.dim) == 4 and _dtype(inputs[0]) == "float32"
    if not good:
        raise InvalidInput(f"{path}: a model to time takes one float32 image (1, 3, H, W); its inputs are {shown}")
    return inputs[0]


def _dtype(info: onnx.ValueInfoProto) -> str:
    kind = info.type.tensor_type.elem_type
    return str(onnx.helper.tensor_dtype_to_np_dtype(kind)) if kind else info.type.WhichOneof("value") or "untyped"


def _shape(info: onnx.ValueInfoProto) -> str:
    dims = info.type.tensor_type.shape.dim
    return "(" + ", ".join(str(dim.dim_value) if dim.HasField("dim_value") else dim.dim_param or "?" for dim in dims) + ")"
