"""Label files by numbers of 8 and 16 bits, by colours and by palettes: matched exactly, or refused with what was found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.errors import CorruptFile, InvalidInput
from hyctas.data import Labels, open_source, verify
from hyctas.data.coding import numbered

SIZE = (4, 6)
ROAD, CAR, SKY = (128, 64, 128), (0, 0, 142), (70, 130, 180)
CLASSES = "road #804080\ncar #00008e\nsky #4682b4\nignore=#000000\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A plain folder whose labels a test still writes."""
    for split in ("train", "val"):
        for folder in ("images", "labels"):
            (tmp_path / folder / split).mkdir(parents=True)
        Image.new("RGB", SIZE[::-1]).save(tmp_path / "images" / split / "a.png")
        write(tmp_path, [0, 1, 2], split=split)
    (tmp_path / "classes.txt").write_text(CLASSES)
    return tmp_path


def write(root: Path, values: list, kind: type = np.uint8, split: str = "train", name: str = "a") -> Path:
    """Write a label that holds these numbers or colours in turn."""
    pixels = np.array(values, kind)
    path = root / "labels" / split / f"{name}.png"
    Image.fromarray(np.resize(pixels, (*SIZE, *pixels.shape[1:]))).save(path)
    return path


def label(root: Path) -> list[int]:
    source = open_source(str(root))
    return source.load("train", source.samples("train")[0])[1].ravel()[:6].tolist()


def test_colours_are_matched_exactly(root: Path) -> None:
    write(root, [SKY, ROAD, (0, 0, 0), CAR])
    assert label(root) == [2, 0, 255, 1, 2, 0]
    path = write(root, [(*SKY, 255), (*ROAD, 255)])
    assert label(root)[:2] == [2, 0]
    write(root, [(*SKY, 255), (*ROAD, 100)])
    with pytest.raises(InvalidInput, match=rf"{path.name}: label has transparent pixels"):
        label(root)


def test_unknown_colours_are_named_and_counted(root: Path) -> None:
    write(root, [SKY, (71, 130, 180), (0, 0, 141), SKY, (71, 130, 180), SKY])
    words = r"holds 12 pixels of colours that are no class: #4782b4 \(8 pixels\), #00008d \(4 pixels\); allowed: #000000, #804080"
    with pytest.raises(InvalidInput, match=words):
        label(root)
    write(root, [(i, i, 3) for i in range(24)])
    with pytest.raises(InvalidInput, match=r"24 pixels.* and 19 more; .*smooth edges"):
        label(root)


def test_black_and_white_masks_are_colours_too(root: Path) -> None:
    (root / "classes.txt").write_text("bg #000000\nfg #ffffff\n")
    write(root, [(0, 0, 0), (255, 255, 255)])
    assert label(root)[:2] == [0, 1]


def test_colours_need_a_colour_of_every_class(root: Path) -> None:
    (root / "classes.txt").write_text("road #804080\ncar\n")
    write(root, [ROAD])
    with pytest.raises(InvalidInput, match="not every class has a colour that could be looked for: give every class"):
        label(root)
    write(root, [(1, 1, 1)])
    with pytest.raises(InvalidInput, match=r"getchannel\(0\) yields the label"):
        label(root)


def test_16_bits(root: Path) -> None:
    path = write(root, [0, 2, 255, 1], np.uint16)
    with Image.open(path) as picture:
        assert picture.mode == "I;16"
    assert label(root)[:4] == [0, 2, 255, 1]
    (root / "classes.txt").write_text("road\ncar\nsky\nignore=65535\n")
    write(root, [0, 2, 65535, 1], np.uint16)
    assert label(root)[:4] == [0, 2, 255, 1]
    write(root, [0, 256, 257], np.uint16)  # 8 bits of these would be 0 and 1
    with pytest.raises(InvalidInput, match=r"holds the values 256, 257, which are no class; allowed: 0\.\.2, 65535"):
        label(root)


def test_ignored_0_counts_classes_from_1(root: Path) -> None:
    (root / "classes.txt").write_text("road\ncar\nignore=0\nignore=200\n")
    write(root, [0, 1, 2, 200])
    assert label(root)[:4] == [255, 0, 1, 255]
    write(root, [3])
    with pytest.raises(InvalidInput, match=r"allowed: 0\.\.2, 200"):
        label(root)


def palette_label(root: Path, name: str, indices: list[int], palette: list[tuple[int, int, int]]) -> None:
    picture = Image.fromarray(np.resize(np.array(indices, np.uint8), SIZE))
    picture.putpalette([channel for colour in palette for channel in colour])
    picture.save(root / "labels" / "train" / f"{name}.png")
    Image.new("RGB", SIZE[::-1]).save(root / "images" / "train" / f"{name}.png")


def test_differing_palettes_are_refused_until_it_is_said_what_counts(root: Path) -> None:
    """A painting program gives each file a palette of its own, in the order in which colours occur."""
    palette_label(root, "a", [0, 1], [ROAD, CAR])
    palette_label(root, "b", [0, 1, 2], [ROAD, CAR, SKY])
    report = verify(open_source(str(root)))
    assert report.pixels["train"] == (20, 20, 8)
    palette_label(root, "c", [0, 1], [CAR, ROAD])
    with pytest.raises(InvalidInput, match=r"label c: gives the number 0 the colour #00008e, label a #804080: their palettes"):
        verify(open_source(str(root)))
    (root / "classes.txt").write_text(CLASSES + "palette=colours\n")
    assert verify(open_source(str(root))).pixels["train"] == (32, 32, 8)
    (root / "classes.txt").write_text("road #804080\ncar\npalette=colours\n")
    with pytest.raises(InvalidInput, match="palette=colours needs the colour of every class"):
        open_source(str(root))
    (root / "classes.txt").write_text(CLASSES + "palette=rainbow\n")
    with pytest.raises(CorruptFile, match="line 5: palette is 'rainbow'; allowed: indices, colours"):
        open_source(str(root))


def test_json_says_the_same(root: Path) -> None:
    (root / "classes.txt").unlink()
    (root / "classes.json").write_text(
        '{"classes": [{"name": "road", "colour": "#804080"}, {"name": "car", "colour": "#00008e"}], '
        '"ignore": [200, "#000000"], "palette": "colours"}'
    )
    write(root, [ROAD, CAR, (0, 0, 0)])
    assert label(root)[:3] == [0, 1, 255]
    write(root, [0, 1, 200])
    assert label(root)[:3] == [0, 1, 255]


def test_a_number_or_a_colour_means_one_thing() -> None:
    labels = Labels(("road", "car"), (ROAD, ROAD))
    with pytest.raises(InvalidInput, match="class 'road' and class 'car' have one colour in label files, #804080"):
        numbered(labels, colours=labels.colours)
    with pytest.raises(InvalidInput, match="ignored pixels and class 'car' have one number in label files, 1"):
        numbered(labels, ignored=(1,))


def test_held_says_what_files_hold(root: Path) -> None:
    write(root, [0, 255, 7])
    assert open_source(str(root)).held("train") == "0 (road), 7 (no class), 255 (ignored)"
    write(root, [SKY, (1, 2, 3)])
    assert open_source(str(root)).held("train") == "#010203 (no class), #4682b4 (sky)"
