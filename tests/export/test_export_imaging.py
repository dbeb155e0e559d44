"""Photographs as cameras write them are read upright and in their true range; run.py goes on after a bad file."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from export.bundle.imaging import decode, is_photograph
from export.errors import InvalidInput

ORIENTATION = 0x112


def gradient(height: int = 40, width: int = 60) -> np.ndarray:
    """Brighter to the right and redder to the bottom, so that every turn shows."""
    rows, columns = np.mgrid[:height, :width]
    return np.dstack([rows * 255 // height, columns * 255 // width, np.full((height, width), 40)]).astype(np.uint8)


def encoded(pixels: np.ndarray, kind: str, orientation: int | None = None) -> bytes:
    """Write what a camera writes: the sensor's rows, and a note how to turn them."""
    buffer, exif = io.BytesIO(), Image.Exif()
    if orientation is not None:
        exif[ORIENTATION] = orientation
    Image.fromarray(pixels).save(buffer, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    return buffer.getvalue()


def png_16_bits(pixels: np.ndarray) -> bytes:
    """Write a colour PNG of 16 bits per channel, which Pillow only reads."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", [None, *range(1, 9)])
def test_orientation_is_applied(kind: str, orientation: int | None) -> None:
    data = encoded(gradient(), kind, orientation)
    image = decode(data)
    assert image.size == ((40, 60) if orientation in (5, 6, 7, 8) else (60, 40))
    wanted = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert (np.asarray(image) == np.asarray(wanted)).all()
    if orientation == 3 and kind != "JPEG":
        assert (np.asarray(image) == gradient()[::-1, ::-1]).all()


def test_16_bits_keep_their_upper_byte() -> None:
    values = gradient().astype(np.uint16) * 256 + 77
    assert (np.asarray(decode(png_16_bits(values))) == gradient()).all()
    for kind in ("PNG", "TIFF"):
        assert (np.asarray(decode(encoded(values[..., 1], kind))) == gradient()[..., 1:2]).all()


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "WEBP", "PNG", "GIF"])
def test_other_formats(kind: str) -> None:
    assert decode(encoded(gradient(), kind)).size == (60, 40)


def test_what_has_no_known_range_is_refused() -> None:
    with pytest.raises(InvalidInput, match="mode F; wanted RGB or grey with 8 or 16 bits"):
        decode(encoded(np.zeros((4, 5), np.float32), "TIFF"))
    buffer = io.BytesIO()
    Image.new("CMYK", (5, 4)).save(buffer, "JPEG")
    with pytest.raises(InvalidInput, match="mode CMYK"):
        decode(buffer.getvalue())


def test_names_of_photographs() -> None:
    names = ("a.JPG", "b.tif", "c.webp", "._a.JPG", ".png", "d.txt", "e.gif")
    assert [name for name in names if is_photograph(Path(name))] == ["a.JPG", "b.tif", "c.webp"]


IDENTITY = """
import numpy as np, onnx
from onnx import helper, TensorProto as T
node = helper.make_node("Identity", ["image"], ["logits"])
value = lambda name: helper.make_tensor_value_info(name, T.FLOAT, [1, 3, 20, 30])
model = helper.make_model(helper.make_graph([node], "g", [value("image")], [value("logits")]),
                          opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
meta = {"size": "20x30", "output": "logits", "preprocessing": '{"mean": [0, 0, 0], "std": [1, 1, 1]}',
        "labels": '{"colours": [[255, 0, 0], [0, 255, 0], [0, 0, 255]]}'}
helper.set_model_props(model, meta)
onnx.save(model, "model.onnx")
"""
"""The brightest channel of a pixel is its class."""


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    subprocess.run([sys.executable, "-c", IDENTITY], check=True, cwd=folder)
    template = Path(__file__).parents[2] / "export/bundle/run.py.txt"
    (folder / "run.py").write_text(template.read_text())
    return folder


def run(bundle: Path, source: Path) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    out = bundle.parent / "out"
    command = [sys.executable, str(bundle / "run.py"), str(source), "--out", str(out)]
    env = {"PATH": os.environ["PATH"], "PYTHONWARNINGS": "error"}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    return done, sorted(path.name for path in out.iterdir())


def test_run_py_goes_on_after_a_bad_file(bundle: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    (images / "a.jpg").write_bytes(encoded(gradient(), "JPEG", 6))
    (images / "a.webp").write_bytes(encoded(gradient(), "WEBP"))
    (images / "b.jpg").write_bytes(encoded(gradient(), "JPEG")[:300])
    (images / "c.png").write_text("no image")
    (images / "d.tif").write_bytes(encoded(np.zeros((4, 5), np.float32), "TIFF"))
    (images / "e.png").write_bytes(encoded(gradient()[..., 1].astype(np.uint16) * 256, "PNG"))
    (images / "._e.png").write_bytes(b"what macOS leaves")
    done, written = run(bundle, images)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert written == ["a.overlay.png", "a.webp.overlay.png", "e.overlay.png"]
    assert "3 images of 20x30" in done.stdout and "3 of 6 files could not be read" in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert [name in line for name, line in zip(("b.jpg", "c.png", "d.tif"), errors, strict=True)] == [True] * 3
    with Image.open(tmp_path / "out" / "a.overlay.png") as upright, Image.open(tmp_path / "out" / "e.overlay.png") as grey:
        assert upright.size == (40, 60)
        drawn = np.asarray(grey)
    assert drawn[20, 5].tolist() == [138, 10, 10]  # dark at the left, not white: half of (21, 21, 21) and of class 0's red


def test_run_py_with_nothing_but_a_bad_file(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(b"")
    done, written = run(bundle, tmp_path / "x.jpg")
    assert done.returncode == 1 and written == [] and "1 of 1 files" in done.stderr and "Traceback" not in done.stderr
