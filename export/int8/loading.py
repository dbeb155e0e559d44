"""Read ONNX files as the int8 targets of a CPU run them. No torch here."""

from __future__ import annotations

from pathlib import Path

from export.files import utf8_path

NOT_QUANTISED = "no layer of it is quantised: it computes in fp32"


def content_for(precision: str, path: Path) -> tuple[str | bytes, list[str]]:
    """Return what a CPU runtime is given of an ONNX file, its path or its content, and what a reader of its times should know.

    Raises:
        InvalidInput, CorruptFile: as `int8_content`, where the precision is int8.
    """
    return int8_content(path) if precision == "int8" else (utf8_path(path), [])


def int8_content(path: Path) -> tuple[bytes, list[str]]:
    """Return an ONNX file as CPU runtimes compute it in int8, and what a reader of its times should know.

    Raises:
        InvalidInput: no such file, or one beyond 2 GiB.
        CorruptFile: not a whole ONNX file.
    """
    from export.int8.quantise import is_quantised
    from export.int8.uint8_form import uint8_form
    from export.onnx.foreign import load_model

    model = load_model(path)
    return uint8_form(model).SerializeToString(), [] if is_quantised(model) else [NOT_QUANTISED]


def other_precision(metadata: dict[str, str], precision: str) -> list[str]:
    """Say of an int8 file of ours that it runs on a target of another precision, which leaves it as it stands."""
    if metadata.get("precision") != "int8" or precision == "int8":
        return []
    return ["it is quantised to int8; the targets for such files are onnxruntime-cpu:int8 and openvino-cpu:int8"]
