"""Photographs and label files as cameras and annotators write them: read as they are meant, or refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.bundle.imaging import decode
from export.errors import InvalidInput
from hyctas.commands.sample_images import load_images
from hyctas.data import open_source, verify
from hyctas.data.images import read_image, read_label

ORIENTATION = 0x112


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A plain folder of one sample per split: images of 20x30, the left half of class 0."""
    (tmp_path / "classes.txt").write_text("left\nright\n")
    for split in ("train", "val"):
        for folder in ("images", "labels"):
            (tmp_path / folder / split).mkdir(parents=True)
        Image.fromarray(halves()).save(tmp_path / "images" / split / "a.png")
        Image.fromarray(halves()[..., 0] // 255).save(tmp_path / "labels" / split / "a.png")
    return tmp_path


def halves() -> np.ndarray:
    """Black at the left, white at the right."""
    return np.repeat(np.where(np.arange(30) < 15, 0, 255).astype(np.uint8)[None, :, None], 20, axis=0).repeat(3, axis=2)


def oriented(pixels: np.ndarray, orientation: int, path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(pixels).save(path, exif=exif, quality=95)


def test_a_pair_stays_a_pair_when_the_camera_lay_upside_down(root: Path) -> None:
    (root / "images/train/a.png").unlink()
    oriented(halves()[::-1, ::-1], 3, root / "images/train/a.jpg")
    source = open_source(str(root))
    image, label = source.load("train", source.samples("train")[0])
    assert (image[..., 0] > 128).astype(int).tolist() == label.tolist()


def test_a_label_of_the_pixels_as_stored_is_explained(root: Path) -> None:
    (root / "images/train/a.png").unlink()
    oriented(halves(), 6, root / "images/train/a.jpg")
    with pytest.raises(InvalidInput, match=r"is 20x30 .* a\.jpg is 30x20; .*EXIF orientation asks: turn the label too"):
        verify(open_source(str(root)))


@pytest.mark.parametrize("suffix", [".tif", ".tiff", ".bmp", ".webp", ".JPG", ".jpeg"])
def test_formats_of_images(root: Path, suffix: str) -> None:
    (root / "images/train/a.png").unlink()
    Image.fromarray(halves()).save(root / f"images/train/a{suffix}")
    assert verify(open_source(str(root))).sizes == {(20, 30): 2}


@pytest.mark.parametrize("suffix", [".gif", ".heic", ".dng"])
def test_a_format_that_is_not_read_is_named(root: Path, suffix: str) -> None:
    (root / "images/train/a.png").rename(root / f"images/train/a{suffix}")
    with pytest.raises(InvalidInput, match=rf"label without an image; .*\.webp \(a\{suffix} does not serve: convert it\)"):
        verify(open_source(str(root)))


@pytest.mark.parametrize("kind", ["JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_a_label_that_is_no_png_is_refused_whatever_its_name(root: Path, kind: str) -> None:
    Image.fromarray(halves()[..., 0] // 255).save(root / "labels/train/a.png", kind)
    with pytest.raises(InvalidInput, match=rf"a\.png: is a {kind} file whatever its name says; labels are read from PNG"):
        verify(open_source(str(root)))


def test_a_label_in_another_format_is_named(root: Path) -> None:
    (root / "labels/train/a.png").rename(root / "labels/train/a.tif")
    with pytest.raises(InvalidInput, match=r"a\.tif does not serve: labels are read from PNG only"):
        verify(open_source(str(root)))


def test_16_bits_are_scaled(root: Path) -> None:
    Image.fromarray(halves()[..., 0].astype(np.uint16) * 257).save(root / "images/train/a.png")
    assert (read_image(root / "images/train/a.png") == halves()).all()


def test_too_many_pixels_are_not_called_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's limit, set low: an image of 200 megapixels would take seconds."""
    Image.fromarray(halves()).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    for read in (read_image, read_label):
        with pytest.raises(InvalidInput, match=r"a\.png: is larger than the \d+ megapixels that are opened; scale it down"):
            read(tmp_path / "a.png")


def test_hyctas_bench_takes_upright_pixels_of_every_format(root: Path) -> None:
    images = root / "images/train"
    oriented(halves()[::-1, ::-1], 3, images / "b.jpg")
    Image.fromarray(halves()).save(images / "c.tif")
    (images / "._b.jpg").write_bytes(b"what macOS leaves behind")
    (images / ".hidden.png").write_bytes(b"")
    found = [np.asarray(decode(data)) for data in load_images(str(images))]
    assert len(found) == 3
    for pixels in found:
        assert ((pixels > 128) == (halves() > 128)).mean() > 0.99
    assert all(data.startswith(b"\xff\xd8") for data in load_images(str(images)))
    assert (images / "b.jpg").read_bytes() in load_images(str(images))
