"""The folder layouts of labelled images that are known: one table, read by `hyctas.data.folders`.

To add a layout, add a row, and a row of files to `tests/hyctas/data/test_data_layouts.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hyctas.data.class_tables import (
    ADE20K_NUMBERS,
    CAMVID_COLOURS,
    CAMVID_NUMBERS,
    CITYSCAPES_LABEL_IDS,
    CITYSCAPES_TRAIN_IDS,
    VOC_INDICES,
)
from hyctas.data.coding import Coding

Clip = Callable[[str, str], str]
"""Name the video sequence of a sample, from its key (path without suffix and ending) and its split."""


def _file_prefix(key: str, split: str) -> str:
    return key.rpartition("/")[2].partition("_")[0] if "_" in key else split


def _city(key: str, split: str) -> str:
    return key.rpartition("/")[0] or key.partition("_")[0]


def _folder_or_stem(key: str, split: str) -> str:
    return key.rpartition("/")[0] or key.rpartition("_")[0] or split


def _photograph(key: str, split: str) -> str:
    return key


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where a kind of data set keeps its files, and what its labels mean.

    A folder has the layout whose label files of `train` are where it says, with the ending that it says; the first such row
    counts. A class file in the folder replaces the row's coding.
    """

    kind: str
    """Its name in fingerprints of data sets."""
    title: str
    """Its name for people."""
    about: str
    """Where the files are and what they hold, in a line for people."""
    images: str
    """Folder of the images; `{split}` stands for the name of a split."""
    labels: str
    """Folder of the label files."""
    image_ending: str = ""
    """What the names of images end in, before the suffix."""
    label_ending: str = ""
    """The same of label files."""
    lists: str | None = None
    """File that names the images of a split, a line each; none: the folders say which split an image is of."""
    splits: Mapping[str, str] | None = None
    """What the folder calls each split; none: what we do, and whatever other folders there are."""
    marks: tuple[str, ...] = ()
    """Folders by which an incomplete data set is recognised, so that what it lacks can be named."""
    coding: Coding | None = None
    """What label files hold; none: a class file says so, and must be there."""
    clip: Clip = _folder_or_stem
    """What honest splits may not tear apart."""


LAYOUTS: tuple[Layout, ...] = (
    Layout(
        kind="cityscapes", title="Cityscapes", coding=CITYSCAPES_LABEL_IDS, clip=_city,
        about="leftImg8bit/{train,val}/CITY/*_leftImg8bit.png and gtFine/{train,val}/CITY/*_gtFine_labelIds.png",
        images="leftImg8bit/{split}", image_ending="_leftImg8bit",
        labels="gtFine/{split}", label_ending="_gtFine_labelIds", splits={"train": "train", "val": "val"},
        marks=("leftImg8bit", "gtFine"),
    ),
    Layout(
        kind="cityscapes-train-ids", title="Cityscapes, train ids", coding=CITYSCAPES_TRAIN_IDS, clip=_city,
        about="the same with *_gtFine_labelTrainIds.png: 0..18, 255 = ignored",
        images="leftImg8bit/{split}", image_ending="_leftImg8bit",
        labels="gtFine/{split}", label_ending="_gtFine_labelTrainIds", splits={"train": "train", "val": "val"},
    ),
    Layout(
        kind="bdd100k", title="BDD100K", coding=CITYSCAPES_TRAIN_IDS, clip=_photograph,
        about="images/10k/{train,val}/*.jpg and labels/sem_seg/masks/{train,val}/*.png: 0..18, 255 = ignored",
        images="images/10k/{split}", labels="labels/sem_seg/masks/{split}", marks=("images/10k", "labels/sem_seg"),
    ),
    Layout(
        kind="bdd100k-seg", title="BDD100K, seg", coding=CITYSCAPES_TRAIN_IDS, clip=_photograph,
        about="images/{train,val}/*.jpg and labels/{train,val}/*_train_id.png, the older edition (seg/)",
        images="images/{split}", labels="labels/{split}", label_ending="_train_id",
    ),
    Layout(
        kind="ade20k", title="ADE20K", coding=ADE20K_NUMBERS, clip=_photograph,
        about="images/{training,validation}/*.jpg and annotations/{training,validation}/*.png: 1..150, 0 = ignored",
        images="images/{split}", labels="annotations/{split}", splits={"train": "training", "val": "validation"},
        marks=("images/training", "annotations/training", "annotations/validation"),
    ),
    Layout(
        kind="voc", title="Pascal VOC", coding=VOC_INDICES, clip=_photograph,
        about="JPEGImages/, SegmentationClass/ and ImageSets/Segmentation/{train,val}.txt: palette PNGs, 255 = ignored",
        images="JPEGImages", labels="SegmentationClass", lists="ImageSets/Segmentation/{split}.txt",
        marks=("JPEGImages", "SegmentationClass"),
    ),
    Layout(
        kind="mmsegmentation", title="mmsegmentation",
        about="img_dir/{train,val}/ and ann_dir/{train,val}/ with files of equal names, and classes.txt",
        images="img_dir/{split}", labels="ann_dir/{split}", marks=("img_dir", "ann_dir"),
    ),
    Layout(
        kind="camvid-colours", title="CamVid, 32 colours", coding=CAMVID_COLOURS, clip=_file_prefix,
        about="train/ train_labels/ val/ val_labels/ with *_L.png of the original colours, joined to the usual 11 classes",
        images="{split}", labels="{split}_labels", label_ending="_L", marks=("train_labels", "val_labels"),
    ),
    Layout(
        kind="camvid-original", title="CamVid, 32 colours", coding=CAMVID_COLOURS, clip=_file_prefix,
        about="701_StillsRaw_full/ and LabeledApproved_full/*_L.png as first published, with train.txt and val.txt of names",
        images="701_StillsRaw_full", labels="LabeledApproved_full", label_ending="_L", lists="{split}.txt",
        marks=("701_StillsRaw_full", "LabeledApproved_full"),
    ),
    Layout(
        kind="camvid", title="CamVid", coding=CAMVID_NUMBERS, clip=_file_prefix,
        about="train/ trainannot/ val/ valannot/ (test/ testannot/): 0..10, 11 and 255 = ignored",
        images="{split}", labels="{split}annot", marks=("trainannot", "valannot"),
    ),
    Layout(
        kind="plain", title="plain",
        about="images/{train,val}/ and labels/{train,val}/ with files of equal names, and classes.txt (a class name per line, "
        "optionally its colour #rrggbb) or classes.json",
        images="images/{split}", labels="labels/{split}", marks=("images", "labels"),
    ),
)  # fmt: skip


def describe_layouts() -> str:
    """List the layouts for people."""
    return "\n".join(f"  {layout.title:<21} {layout.about}" for layout in LAYOUTS)
