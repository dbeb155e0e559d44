import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.errors import InvalidInput
from hyctas.data import Frames, Scenes, honest_split, open_source, verify
from hyctas.data.painting import STREET


def test_the_specification_is_read_and_printed() -> None:
    assert open_source("scenes") == Scenes()
    source = open_source("scenes:seed=1,train=9,val=5,size=48x64")
    assert source == Scenes(1, 9, 5, (48, 64)) == open_source(source.name)
    json.dumps(source.fingerprint())


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("scenes:frames=3", "'frames=3' is not understood; allowed: seed=N"),
        ("scenes:seed", "not understood"),
        ("scenes:seed=x", "whole number"),
        ("scenes:train=-1", "whole number"),
        ("scenes:seed=1,seed=2", "given twice"),
        ("scenes:size=48", "HEIGHTxWIDTH"),
        ("scenes:size=8x64", "size is"),
    ],
)
def test_bad_specifications(spec: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        open_source(spec)


def test_frames_are_functions_of_seed_split_and_number() -> None:
    source = Scenes(size=(48, 64))
    first, second = source.samples("train")[3:5]
    image, label = source.load("train", first)
    again = Scenes(size=(48, 64)).load("train", first)
    assert np.array_equal(image, again[0]) and np.array_equal(label, again[1])
    for other in (
        source.load("train", second),
        source.load("val", source.samples("val")[3]),
        Scenes(1, size=(48, 64)).load("train", first),
    ):
        assert not np.array_equal(label, other[1])


def test_frames_of_a_clip_resemble_each_other_more_than_other_clips() -> None:
    source = Scenes(train=24, size=(48, 64))
    labels = [source.load("train", s)[1] for s in source.samples("train")]
    within = np.mean([(labels[i] == labels[i + 1]).mean() for i in range(0, 24, 4)])
    across = np.mean([(labels[i] == labels[i + 4]).mean() for i in range(0, 20, 4)])
    assert within > across + 0.1


def test_samples_are_clips_and_split_by_them() -> None:
    source = Scenes(train=42)
    assert Counter(Counter(s.clip for s in source.samples("train")).values()) == {4: 10, 2: 1}
    assert not {s.clip for s in source.samples("train")} & {s.clip for s in source.samples("val")}
    assert honest_split(source.samples("train")).method == "clips"
    with pytest.raises(InvalidInput, match="no split 'test'"):
        source.samples("test")
    with pytest.raises(InvalidInput, match="has no clip"):
        source.load("val", source.samples("train")[0])


def test_every_class_occurs_and_the_street_is_the_right_way_up() -> None:
    source = Scenes(train=80, val=4, size=(96, 128))
    samples = source.samples("train")[::4]
    frames = Frames(source, "train", samples)
    counts = frames.class_counts()
    assert counts.min() > 20 and counts.argmax() in (STREET.names.index("building"), STREET.names.index("road"))
    stacked = np.stack([label for _, label in frames])
    sky, road = (stacked == 0).mean(axis=(0, 2)), (stacked == 2).mean(axis=(0, 2))
    assert sky[:20].mean() > 0.15 and sky[70:].max() == 0
    assert road[70:].mean() > 0.4 and road[:20].max() == 0


def test_colour_alone_does_not_tell_the_classes_apart() -> None:
    # Guess each pixel's class from its colour (16 levels per channel), learnt from other streets.
    source = Scenes(train=320, size=(48, 64))
    frames = Frames(source, "train", source.samples("train")[::4])
    table = np.zeros((4096, 256), np.int64)
    right: Counter[str] = Counter()
    for i, (image, label) in enumerate(frames):
        code = ((image // 16).astype(int) @ (256, 16, 1)).ravel()
        if i < 60:
            np.add.at(table, (code, label.ravel()), 1)
        else:
            right["hits"] += int((table[code].argmax(1) == label.ravel()).sum())
            right["all"] += label.size
    assert right["hits"] / right["all"] < 0.7


@settings(deadline=None, max_examples=12)
@given(st.integers(16, 90), st.integers(16, 90), st.integers(0, 2**32))
def test_any_size_works(height: int, width: int, seed: int) -> None:
    source = Scenes(seed, 1, 1, (height, width))
    assert verify(source).sizes == {(height, width): 2}
