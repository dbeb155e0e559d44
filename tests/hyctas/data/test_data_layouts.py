"""Each layout is recognised, mapped to train ids and clips; each fault of a file is named by `verify`."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from export.errors import CorruptFile, InvalidInput
from hyctas.data import CAMVID, CITYSCAPES, open_source, verify
from hyctas.data.images import read_label

SIZE = (6, 8)


def put(path: Path, values: np.ndarray | int, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.full(SIZE, values, np.uint8) if isinstance(values, int) else values
    Image.fromarray(array).save(path, **options)


def picture(shade: int = 90) -> np.ndarray:
    return np.full((*SIZE, 3), shade, np.uint8)


@pytest.fixture
def camvid(tmp_path: Path) -> Path:
    root = tmp_path / "cam"
    for split, stems in (("train", ("a_2", "a_10", "b_1")), ("val", ("c_1",))):
        for number, stem in enumerate(stems):
            put(root / split / f"{stem}.jpg", picture())
            put(root / f"{split}annot" / f"{stem}.png", number + 9)
    return root


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    root = tmp_path / "mine"
    for split in ("train", "val"):
        for key in ("ride/1", "ride/2", "walk_1", "solo"):
            put(root / "images" / split / f"{key}.png", picture())
            put(root / "labels" / split / f"{key}.png", 1)
    (root / "classes.txt").write_text("road #804080\n\n# a remark\nlow wall\nignore=9\n")
    return root


def test_camvid_is_mapped_and_ordered(camvid: Path) -> None:
    source = open_source(str(camvid))
    assert (source.splits, source.labels, source.name) == (("train", "val"), CAMVID, "cam")
    samples = source.samples("train")
    assert [(s.clip, s.index, s.name) for s in samples] == [("a", 0, "a_2"), ("a", 1, "a_10"), ("b", 0, "b_1")]
    image, label = source.load("train", samples[2])
    assert image.shape == (*SIZE, 3) and image.dtype == label.dtype == np.uint8
    assert (label == 255).all()
    report = verify(source)
    assert report.files == 8 and report.sizes == {SIZE: 4} and report.samples == {"train": 3, "val": 1}
    assert report.pixels["train"][9] == 48 and report.ignored == {"train": 48, "val": 0}
    assert report.absent("val") == (0, 1, 2, 3, 4, 5, 6, 7, 8, 10)
    json.dumps([report.to_json(), source.fingerprint()])


def test_camvid_test_split_is_optional(camvid: Path) -> None:
    put(camvid / "test" / "d_1.png", picture())
    put(camvid / "testannot" / "d_1.png", 0)
    assert open_source(str(camvid)).splits == ("train", "val", "test")


def test_cityscapes_ids_become_train_ids(tmp_path: Path) -> None:
    ids = np.array([[0, 7, 8, 33], [26, 34 - 5, 255, 11]], np.uint8)
    for split in ("train", "val"):
        stem = f"{split}/ulm/ulm_000001_000019"
        put(tmp_path / "leftImg8bit" / f"{stem}_leftImg8bit.png", np.zeros((2, 4, 3), np.uint8))
        put(tmp_path / "gtFine" / f"{stem}_gtFine_labelIds.png", ids)
        put(tmp_path / "gtFine" / f"{stem}_gtFine_color.png", np.zeros((2, 4, 3), np.uint8))
    source = open_source(str(tmp_path))
    (sample,) = source.samples("train")
    assert sample.clip == "ulm" and source.labels is CITYSCAPES
    label = source.load("train", sample)[1]
    assert label.tolist() == [[255, 0, 1, 18], [13, 255, 255, 2]]


def test_plain_reads_classes_and_clips(plain: Path) -> None:
    source = open_source(str(plain))
    assert source.labels.names == ("road", "low wall") and source.labels.colours[0] == (128, 64, 128)
    assert [(s.clip, s.index) for s in source.samples("val")] == [("ride", 0), ("ride", 1), ("val", 0), ("walk", 0)]
    put(plain / "labels/train/solo.png", 9)
    assert (source.load("train", next(s for s in source.samples("train") if s.name == "solo"))[1] == 255).all()


@pytest.mark.parametrize(
    "text",
    [
        '["road", "low wall"]',
        '{"classes": [{"name": "road", "colour": "#804080"}, "low wall"], "ignore": 9}',
        '{"names": ["road", "low wall"], "colours": [[1, 2, 3], [4, 5, 6]], "ignore": 9}',
    ],
)
def test_plain_reads_classes_json(plain: Path, text: str) -> None:
    (plain / "classes.txt").unlink()
    (plain / "classes.json").write_text(text)
    assert verify(open_source(str(plain))).pixels["train"] == (0, 4 * 48)


@pytest.mark.parametrize(
    ("name", "text", "error", "words"),
    [
        ("classes.txt", "", InvalidInput, "names no class"),
        ("classes.txt", "a\na\n", InvalidInput, "more than once: a"),
        ("classes.txt", "a #12345\n", CorruptFile, "line 1.*no colour"),
        ("classes.txt", "a\nignore=x\n", CorruptFile, "line 2.*whole number"),
        ("classes.txt", "a\nb\nignore=1\n", InvalidInput, "must lie above"),
        ("classes.json", "[", CorruptFile, "not valid JSON"),
        ("classes.json", "3", CorruptFile, "classes is 3; expected `array`"),
        ("classes.json", '[{"nom": "a"}]', CorruptFile, "unknown fields 'nom'"),
        ("classes.json", '{"classes": ["a"], "void": 3}', CorruptFile, "unknown fields 'void'"),
        ("classes.json", '{"classes": ["a"], "ignore": "x"}', CorruptFile, "'x' is no colour"),
    ],
)
def test_bad_class_lists(plain: Path, name: str, text: str, error: type[Exception], words: str) -> None:
    (plain / "classes.txt").unlink()
    (plain / name).write_text(text)
    with pytest.raises(error, match=words):
        open_source(str(plain))


def test_class_list_must_be_there_once(plain: Path) -> None:
    (plain / "classes.json").write_text('["a"]')
    with pytest.raises(InvalidInput, match="both"):
        open_source(str(plain))
    (plain / "classes.json").unlink()
    (plain / "classes.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CorruptFile, match="UTF-8"):
        open_source(str(plain))
    (plain / "classes.txt").unlink()
    with pytest.raises(InvalidInput, match=r"lacks classes\.txt"):
        open_source(str(plain))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-60])


def rgb_label(path: Path) -> None:
    put(path, np.dstack([np.full(SIZE, c, np.uint8) for c in (129, 64, 128)]))


FAULTS: list[tuple[str, Callable[[Path], object], str]] = [
    ("trainannot/a_10.png", Path.unlink, r"train/a_10\.jpg: image without a label"),
    ("train/a_10.jpg", Path.unlink, r"trainannot/a_10\.png: label without an image"),
    ("train/a_10.jpg", truncate, r"train/a_10\.jpg: cannot be read.*truncated"),
    ("train/a_10.jpg", lambda p: p.write_bytes(b""), r"train/a_10\.jpg: cannot be read"),
    ("trainannot/a_10.png", lambda p: p.write_text("hello"), r"a_10\.png: cannot be read"),
    ("trainannot/a_10.png", rgb_label, r"a_10\.png: holds 48 pixels of colours that are no class: #814080 \(48 pixels\)"),
    ("trainannot/a_10.png", lambda p: put(p, picture(3)), r"a_10\.png: holds 48 pixels of colours.*getchannel\(0\)"),
    ("trainannot/a_10.png", lambda p: put(p, np.zeros(SIZE, np.uint16) + 300), r"a_10\.png: holds the values 300"),
    ("trainannot/a_10.png", lambda p: put(p, np.zeros((5, 8), np.uint8)), r"is 5x8 .*a_10\.jpg is 6x8"),
    ("trainannot/a_10.png", lambda p: put(p, 77), r"a_10\.png: holds the values 77, .*allowed: 0\.\.11, 255"),
    ("train/a_10.png", lambda p: put(p, picture()), r"a_10\.jpg: another file has the same name \(a_10\.png\)"),
]


@pytest.mark.parametrize(("file", "damage", "words"), FAULTS)
def test_verify_names_the_faulty_file(camvid: Path, file: str, damage: Callable[[Path], object], words: str) -> None:
    damage(camvid / file)
    with pytest.raises(InvalidInput, match=words) as caught:
        verify(open_source(str(camvid)))
    assert "more of the" not in str(caught.value)


def test_verify_names_the_first_and_counts_the_others(camvid: Path) -> None:
    for name in ("trainannot/a_2.png", "trainannot/b_1.png", "valannot/c_1.png"):
        put(camvid / name, 77)
    with pytest.raises(InvalidInput, match=r"(?s)trainannot/a_2\.png.*\n2 more of the 4 samples") as caught:
        verify(open_source(str(camvid)))
    assert "b_1" not in str(caught.value)
    with pytest.raises(InvalidInput, match=r"c_1\.png"):
        verify(open_source(str(camvid)), splits=["val"])


def test_a_jpeg_label_is_explained(camvid: Path) -> None:
    (camvid / "trainannot/a_2.png").rename(camvid / "trainannot/a_2.jpg")
    with pytest.raises(InvalidInput, match=r"a_2\.jpg does not serve: JPEG alters"):
        verify(open_source(str(camvid)))


def test_verify_reports_progress_and_refuses_empty_splits(camvid: Path) -> None:
    calls: list[tuple[int, int]] = []
    verify(open_source(str(camvid)), progress=lambda done, total: calls.append((done, total)))
    assert calls == [(i, 4) for i in range(1, 5)]
    for folder in ("val", "valannot"):
        for path in (camvid / folder).iterdir():
            path.unlink()
    with pytest.raises(InvalidInput, match="split 'val' has no images"):
        verify(open_source(str(camvid)))
    with pytest.raises(InvalidInput, match="no split 'dev'; it has: train, val"):
        verify(open_source(str(camvid)), splits=["dev"])


def test_hidden_files_are_left_out_and_palettes_read(camvid: Path) -> None:
    (camvid / "train/._a_2.jpg").write_bytes(b"junk")
    (camvid / "train/Thumbs.db").write_bytes(b"junk")
    put(camvid / "train/.ipynb_checkpoints/a_2.jpg", picture())
    palette = Image.fromarray(np.full(SIZE, 4, np.uint8))
    palette.putpalette([i for i in range(256) for _ in range(3)])
    assert palette.mode == "P"
    palette.save(camvid / "trainannot/a_2.png")
    assert verify(open_source(str(camvid))).pixels["train"][4] == 48


def test_labels_of_few_bits_are_refused_not_stretched(tmp_path: Path) -> None:
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 2, 1, 4, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\x00\x12")) + chunk(b"IEND", b"")
    (tmp_path / "few.png").write_bytes(data)
    with pytest.raises(InvalidInput, match="4 bits per pixel"):
        read_label(tmp_path / "few.png")


def test_the_fingerprint_follows_the_files(camvid: Path) -> None:
    before = open_source(str(camvid)).fingerprint()
    assert before == open_source(str(camvid)).fingerprint()
    put(camvid / "trainannot/a_2.png", np.arange(48, dtype=np.uint8).reshape(SIZE) % 11)
    assert before != open_source(str(camvid)).fingerprint()


def test_a_folder_of_no_layout_is_described(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    with pytest.raises(InvalidInput, match=r"(?s)Cityscapes.*CamVid.*plain.*Found there: pictures/"):
        open_source(str(tmp_path))
    with pytest.raises(InvalidInput, match=r"(?s)does not exist.*Cityscapes.*CamVid.*plain"):
        open_source(str(tmp_path / "nowhere"))
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match="is a file"):
        open_source(str(tmp_path / "file"))
    with pytest.raises(InvalidInput, match="no data set"):
        open_source("")


@pytest.mark.parametrize(
    ("made", "missing"),
    [("trainannot", "train/, val/, valannot/"), ("images/train", "images/val/"), ("gtFine", "leftImg8bit/train/")],
)
def test_a_half_layout_says_what_it_lacks(tmp_path: Path, made: str, missing: str) -> None:
    (tmp_path / made).mkdir(parents=True)
    with pytest.raises(InvalidInput, match=f"lacks {missing}"):
        open_source(str(tmp_path))


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_never_raises_anything_else(tmp_path: Path, data: st.DataObject) -> None:
    suffix = data.draw(st.sampled_from(["png", "jpg"]))
    whole = tmp_path / f"whole.{suffix}"
    put(whole, np.arange(48, dtype=np.uint8).reshape(SIZE))
    content = bytearray(whole.read_bytes())
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    broken = tmp_path / f"broken.{suffix}"
    broken.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        assert read_label(broken).values.dtype in (np.uint8, np.uint16)
    except InvalidInput as error:
        assert str(broken) in str(error)
