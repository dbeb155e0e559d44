"""Read ONNX files that anybody wrote: whole, with weights that are kept in other files, or refused with what is wrong.

What reads a user's ONNX file begins here, so that a damaged one is the same error everywhere, before a runtime is asked.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx
from onnx import TensorProto

from export.errors import CorruptFile, InvalidInput

MAX_BYTES = 2**31 - 1
"""What a protobuf message, hence an ONNX file without external data, can hold."""
_PACKED = ("INT4", "UINT4", "FLOAT4E2M1", "INT2", "UINT2")
"""Types of which several elements share a byte."""


def load_graph(path: Path) -> onnx.ModelProto:
    """Read an ONNX file; weights that it keeps in other files stay there, but must be there.

    Raises:
        InvalidInput: no such file.
        CorruptFile: not a whole ONNX file, one without a graph, or one whose weights in other files cannot be read.
    """
    if not path.is_file():
        raise InvalidInput(f"no such file: {path}")
    try:
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except Exception as error:  # protobuf's DecodeError derives from Exception alone
        if isinstance(error, OSError):
            raise
        raise CorruptFile(path, f"is not a whole ONNX file ({type(error).__name__})") from None
    if not model.graph.node:
        raise CorruptFile(path, "holds no ONNX graph")
    for info in (*model.graph.input, *model.graph.output):
        words = [info.name, *(dim.dim_param for dim in info.type.tensor_type.shape.dim)]
        if not all(isinstance(word, str) for word in words):  # protobuf gives bytes for what is not UTF-8
            raise CorruptFile(path, f"is damaged: a name of an input, an output or a dimension is no text ({words})")
    for tensor in external_tensors(model):
        _place(tensor, path)
    return model


def load_model(path: Path) -> onnx.ModelProto:
    """Read an ONNX file with all its weights.

    Raises:
        InvalidInput: no such file, or weights beyond the 2 GiB of a single file.
        CorruptFile: as `load_graph`.
    """
    return with_weights(load_graph(path), path)


def with_weights(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """Put the weights that a model keeps in other files into it, in place; raises as `load_model`."""
    outside = list(external_tensors(model))
    places = [_place(tensor, path) for tensor in outside]
    total = path.stat().st_size + sum(length for _, _, length in places)
    if total > MAX_BYTES:
        raise InvalidInput(f"{path}: with the weights in its other files it takes {total / 2**30:.2f} GiB, and here it has to be "
                           "one file, below 2 GiB")  # fmt: skip
    for tensor, (file, offset, length) in zip(outside, places, strict=True):
        with open(file, "rb") as handle:
            handle.seek(offset)
            tensor.raw_data = handle.read(length)
        tensor.data_location = TensorProto.DEFAULT
        del tensor.external_data[:]
    return model


def whole_bytes(path: Path) -> bytes:
    """Return an ONNX file's content with all its weights inside; raises as `load_model`."""
    model = load_graph(path)
    return with_weights(model, path).SerializeToString() if external_files(model) else path.read_bytes()


def external_tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Yield the tensors that are kept in other files."""
    return (tensor for tensor in _tensors(model) if tensor.data_location == TensorProto.EXTERNAL)


def external_files(model: onnx.ModelProto) -> list[str]:
    """Name the files that hold weights of a model, relative to its folder, each once."""
    return sorted({str(_facts(tensor).get("location", "")) for tensor in external_tensors(model)})


def walk(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield every node, those of sub-graphs (If, Loop) included."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from walk(inner)


def graph_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Return what a caller must feed: old files list their weights among the inputs."""
    weights = {tensor.name for tensor in model.graph.initializer}
    weights |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    return [info for info in model.graph.input if info.name not in weights]


def metadata_of(model: onnx.ModelProto) -> dict[str, str]:
    """Return a model's metadata; what is not UTF-8 text is left out."""
    return {item.key: item.value for item in model.metadata_props if isinstance(item.key, str) and isinstance(item.value, str)}


def _tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    graphs = [model.graph]
    nodes = [*walk(model.graph), *(node for function in model.functions for node in function.node)]
    for node in nodes:
        for attribute in node.attribute:
            graphs += [graph for graph in (attribute.g, *attribute.graphs) if graph.initializer or graph.sparse_initializer]
            yield from (attribute.t, *attribute.tensors)
            sparse = (attribute.sparse_tensor, *attribute.sparse_tensors)
            yield from (part for tensor in sparse for part in (tensor.values, tensor.indices))
    for graph in graphs:
        yield from graph.initializer
        yield from (part for tensor in graph.sparse_initializer for part in (tensor.values, tensor.indices))


def _facts(tensor: TensorProto) -> dict[str, str]:
    return {str(entry.key): entry.value for entry in tensor.external_data}


def _place(tensor: TensorProto, path: Path) -> tuple[Path, int, int]:
    """Return file, offset and length in bytes of a tensor that a model keeps in another file.

    Raises:
        CorruptFile: no file is named, it is not in the model's folder, it is missing or too short, or the numbers are wrong.
    """
    facts, what = _facts(tensor), f"the weight {tensor.name!r}"
    file = _inside(facts.get("location", ""), what, path)
    if not file.is_file():
        raise CorruptFile(file, f"is missing; {path.name} keeps {what} in it. Copy it there, beside {path.name}")
    needed = _size_bytes(tensor)
    try:
        offset = int(facts.get("offset", 0))
        length = int(facts.get("length", needed if needed is not None else file.stat().st_size - offset))
    except ValueError:
        found = {name: facts[name] for name in ("offset", "length") if name in facts}
        raise CorruptFile(path, f"says where {what} is in {file.name} with something else than numbers: {found}") from None
    if offset < 0 or length < 0 or (needed is not None and length != needed):
        takes = "" if needed is None else f"; its shape {tuple(tensor.dims)} takes {needed}"
        raise CorruptFile(path, f"says that {what} is {length} bytes of {file.name} from byte {offset} on{takes}")
    if offset + length > file.stat().st_size:
        raise CorruptFile(file, f"is truncated: {path.name} keeps {what} in its bytes {offset} to {offset + length}, "
                                f"and it has {file.stat().st_size}. Copy it again")  # fmt: skip
    return file, offset, length


def _inside(location: object, what: str, path: Path) -> Path:
    """Return the file that a model names; only those in its own folder are read, whoever sent it."""
    if not isinstance(location, str) or not location or "\0" in location:
        raise CorruptFile(path, f"keeps {what} in another file, and does not name it in a readable way: {location!r}")
    parts = PurePosixPath(location).parts + PureWindowsPath(location).parts
    leaves = PurePosixPath(location).is_absolute() or PureWindowsPath(location).anchor or ".." in parts
    file = path.parent / location
    homes = (path.parent.resolve(), path.resolve().parent)  # a download's cache links the model and its weights alike
    try:
        found = file.resolve()
    except (RuntimeError, OSError):  # Python 3.11 and 3.12 call links in a circle a RuntimeError
        raise CorruptFile(path, f"keeps {what} in {location!r}, where symbolic links stand in a circle") from None
    if leaves or not any(found.is_relative_to(home) for home in homes):
        raise CorruptFile(path, f"keeps {what} outside of its own folder, in {location!r}; only files beside it are read. "
                                "If it is yours, move that file there and save the model again")  # fmt: skip
    return file


def _size_bytes(tensor: TensorProto) -> int | None:
    """Return what a tensor takes; None for types that share bytes."""
    name = TensorProto.DataType.Name(tensor.data_type) if tensor.data_type in TensorProto.DataType.values() else ""
    if name in ("", "UNDEFINED", "STRING", *_PACKED):
        return None
    itemsize: int = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return math.prod(tensor.dims) * itemsize


def shape_of(info: onnx.ValueInfoProto) -> Sequence[int | None] | None:
    """Return the shape of an input; None for a dimension that is dynamic, None alone where there is no shape."""
    kind = info.type.tensor_type
    if info.type.WhichOneof("value") != "tensor_type" or not kind.HasField("shape"):
        return None
    return [dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None for dim in kind.shape.dim]
