"""Every row of the table of layouts is tried on files made as that data set distributes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.errors import CorruptFile, InvalidInput
from hyctas.commands.datasets import open_dataset
from hyctas.data import CAMVID, CITYSCAPES, honest_split, open_source, verify
from hyctas.data.class_tables import ADE20K, CAMVID_32, VOC
from hyctas.data.folders import FileSource
from hyctas.data.layouts import LAYOUTS
from hyctas.data.sample import Sample

SIZE = (6, 8)


def photograph(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SIZE[::-1], (90, 80, 70)).save(path)


def numbers(path: Path, *values: int, palette: list[int] | None = None) -> None:
    """Write a label that holds these numbers in turn."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.resize(np.array(values, np.uint8), SIZE))
    if palette is not None:
        picture.putpalette(palette)
    picture.save(path)


def colours(path: Path, *values: tuple[int, int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.resize(np.array(values, np.uint8), (*SIZE, 3))).save(path)


def cityscapes(root: Path, ending: str, values: tuple[int, ...], suffix: str = ".png") -> None:
    for split, city in (("train", "ulm"), ("train", "bonn"), ("train", "jena"), ("val", "lindau")):
        for frame in ("000001_000019", "000002_000019"):
            photograph(root / f"leftImg8bit/{split}/{city}/{city}_{frame}_leftImg8bit{suffix}")
            numbers(root / f"gtFine/{split}/{city}/{city}_{frame}_gtFine_{ending}.png", *values)
            colours(root / f"gtFine/{split}/{city}/{city}_{frame}_gtFine_color.png", (128, 64, 128))


def bdd100k(root: Path) -> None:
    for split in ("train", "val"):
        for name in ("0000f77c-6257be58", "0a0b16e4-93f8c456", "7d97c4d7-e6a5d2b6"):
            photograph(root / f"images/10k/{split}/{name}.jpg")
            numbers(root / f"labels/sem_seg/masks/{split}/{name}.png", 0, 18, 255)
            colours(root / f"labels/sem_seg/colormaps/{split}/{name}.png", (128, 64, 128))


def bdd100k_seg(root: Path) -> None:
    for split in ("train", "val"):
        for name in ("0000f77c-6257be58", "0a0b16e4-93f8c456", "7d97c4d7-e6a5d2b6"):
            photograph(root / f"images/{split}/{name}.jpg")
            numbers(root / f"labels/{split}/{name}_train_id.png", 0, 18, 255)


def ade20k(root: Path) -> None:
    for split, short in (("training", "train"), ("validation", "val")):
        for number in range(1, 4):
            photograph(root / f"images/{split}/ADE_{short}_{number:08d}.jpg")
            numbers(root / f"annotations/{split}/ADE_{short}_{number:08d}.png", 0, 1, 150)
    (root / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tName\n1\t0.1576\t11664\t1172\twall\n")


def voc(root: Path) -> None:
    palette = [channel for colour in VOC.colours for channel in colour] + [0] * 3 * 234 + [224, 224, 192]
    names = ["2007_000032", "2007_000039", "2008_000042", "2009_000001"]
    for name in (*names, "2011_003276"):
        photograph(root / f"JPEGImages/{name}.jpg")
        if name in names:  # most photographs have no mask
            numbers(root / f"SegmentationClass/{name}.png", 0, 20, 255, palette=palette)
    lists = {"train": names[:3], "val": names[3:], "trainval": names}
    for split, members in lists.items():
        path = root / f"ImageSets/Segmentation/{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(members) + "\n")


def mmsegmentation(root: Path) -> None:
    for split in ("train", "val"):
        for name in ("ride_1", "walk_1", "tour_1"):
            photograph(root / f"img_dir/{split}/{name}.jpg")
            numbers(root / f"ann_dir/{split}/{name}.png", 1, 2, 0)
    (root / "classes.txt").write_text("road\ncar\nignore=0\n")


def camvid_names() -> list[tuple[str, str]]:
    return [("train", "0001TP_006690"), ("train", "0006R0_f00930"), ("train", "Seq05VD_f00000"), ("val", "0016E5_07959")]


def camvid_colours(root: Path) -> None:
    for split, name in camvid_names():
        photograph(root / split / f"{name}.png")
        colours(root / f"{split}_labels/{name}_L.png", *(colour for colour, _ in CAMVID_32.values()))
    (root / "class_dict.csv").write_text("name,r,g,b\nAnimal,64,128,64\n")


def camvid_original(root: Path) -> None:
    for split, name in camvid_names():
        photograph(root / f"701_StillsRaw_full/{name}.png")
        colours(root / f"LabeledApproved_full/{name}_L.png", *(colour for colour, _ in CAMVID_32.values()))
        with (root / f"{split}.txt").open("a") as file:
            file.write(f"{name}.png\n")


def camvid(root: Path) -> None:
    for split, name in camvid_names():
        photograph(root / split / f"{name}.png")
        numbers(root / f"{split}annot/{name}.png", 0, 10, 11)


def plain(root: Path) -> None:
    for split in ("train", "val"):
        for name in ("ride/1", "tour/1", "walk_1"):
            photograph(root / f"images/{split}/{name}.tif")
            numbers(root / f"labels/{split}/{name}.png", 0, 1, 255)
    (root / "classes.txt").write_text("road\ncar\n")


MADE: dict[str, tuple[Callable[[Path], None], tuple[str, ...], set[int]]] = {
    "cityscapes": (lambda root: cityscapes(root, "labelIds", (7, 33, 0, 255), ".jpg"), CITYSCAPES.names, {0, 18, 255}),
    "cityscapes-train-ids": (lambda root: cityscapes(root, "labelTrainIds", (0, 18, 255)), CITYSCAPES.names, {0, 18, 255}),
    "bdd100k": (bdd100k, CITYSCAPES.names, {0, 18, 255}),
    "bdd100k-seg": (bdd100k_seg, CITYSCAPES.names, {0, 18, 255}),
    "ade20k": (ade20k, ADE20K.names, {0, 149, 255}),
    "voc": (voc, VOC.names, {0, 20, 255}),
    "mmsegmentation": (mmsegmentation, ("road", "car"), {0, 1, 255}),
    "camvid-colours": (camvid_colours, CAMVID.names, {*range(11), 255}),
    "camvid-original": (camvid_original, CAMVID.names, {*range(11), 255}),
    "camvid": (camvid, CAMVID.names, {0, 10, 255}),
    "plain": (plain, ("road", "car"), {0, 1, 255}),
}
"""Of each kind: how its files are made, its classes, and the train ids that are in each of these files."""


def test_no_row_is_left_out() -> None:
    assert list(MADE) == [layout.kind for layout in LAYOUTS]


@pytest.mark.parametrize("kind", MADE)
def test_each_layout(kind: str, tmp_path: Path) -> None:
    make, names, held = MADE[kind]
    make(tmp_path)
    source = open_source(str(tmp_path))
    assert isinstance(source, FileSource)
    layout = next(layout for layout in LAYOUTS if layout.kind == kind)
    assert (source.kind, source.labels.names, source.layout) == (kind, names, f"{layout.title} layout")
    report = verify(source, ("train", "val"))
    assert report.sizes == {SIZE: sum(report.samples.values())} and min(report.samples.values()) >= 1
    for split in ("train", "val"):
        for sample in source.samples(split):
            assert set(np.unique(source.load(split, sample)[1]).tolist()) == held
    assert honest_split(source.samples("train"), gap=0).choosing


def test_data_says_which_layout_was_recognised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    camvid_colours(tmp_path)
    open_dataset(str(tmp_path))
    assert f"data: {tmp_path.name} (CamVid, 32 colours layout): 2 images to train on" in capsys.readouterr().out


def test_train_ids_are_taken_only_where_there_are_no_label_ids(tmp_path: Path) -> None:
    cityscapes(tmp_path, "labelTrainIds", (0, 255))
    cityscapes(tmp_path, "labelIds", (7, 0))
    assert open_source(str(tmp_path)).layout == "Cityscapes layout"


def test_a_class_file_replaces_the_classes_of_a_layout(tmp_path: Path) -> None:
    camvid_colours(tmp_path)
    lines = [f"{name} #{bytes(colour).hex()}" for name, (colour, _) in CAMVID_32.items() if name != "Void"]
    (tmp_path / "classes.txt").write_text("\n".join([*lines, "ignore=#000000", "palette=colours"]))
    source = open_source(str(tmp_path))
    assert source.labels.num_classes == 31 and source.layout == "CamVid, 32 colours layout, its own classes"
    assert verify(source).absent("train") == ()


def test_lists_name_what_is_not_there(tmp_path: Path) -> None:
    voc(tmp_path)
    path = tmp_path / "ImageSets/Segmentation/train.txt"
    path.write_text(path.read_text() + "2011_003276\n\n2020_000000\n")
    with pytest.raises(InvalidInput, match=r"2011_003276\.jpg: image without a label; expected 2011_003276\.png below"):
        verify(open_source(str(tmp_path)))
    source = open_source(str(tmp_path))
    with pytest.raises(InvalidInput, match=r"JPEGImages/2020_000000: is named, but there is no such image"):
        source.load("train", Sample("2020_000000", "2020_000000", 0))
    path.write_text("2007_000032\n2007_000032\n")
    with pytest.raises(InvalidInput, match=r"train\.txt: names 2007_000032 more than once"):
        open_source(str(tmp_path))
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CorruptFile, match="UTF-8"):
        open_source(str(tmp_path))
    path.unlink()
    with pytest.raises(InvalidInput, match=r"Pascal VOC layout but lacks ImageSets/Segmentation/train\.txt"):
        open_source(str(tmp_path))


def test_many_photographs_are_split_at_once() -> None:
    samples = [Sample(f"p{i:05d}", f"p{i:05d}", 0) for i in range(20_000)]
    split = honest_split(samples)
    assert len(split.choosing) == 5_000 and split.method == "clips" and not split.dropped
