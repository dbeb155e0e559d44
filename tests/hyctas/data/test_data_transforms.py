import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from export.bundle.imaging import Preprocessing
from export.errors import InvalidInput
from hyctas.data import PREPROCESSING, Augment, Frames, Scenes, augment, normalise, to_batch
from hyctas.data.transforms import _adjust, draw_view

LITE = Preprocessing(mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
"""What EfficientNet-Lite was trained with."""


def blocks(height: int, width: int, side: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """An image whose red channel is 20 times its label, in large squares."""
    rows, columns = np.arange(height)[:, None] // side, np.arange(width)[None] // side
    label = ((rows * 5 + columns * 3) % 12).astype(np.uint8)
    return np.repeat(label[..., None] * 20, 3, axis=2), label


@settings(deadline=None)
@given(
    st.tuples(st.integers(1, 70), st.integers(1, 70)),
    st.tuples(st.integers(1, 70), st.integers(1, 70)),
    st.floats(0.2, 3),
    st.integers(0, 99),
)
def test_shapes_and_ranges(size: tuple[int, int], crop: tuple[int, int], scale: float, seed: int) -> None:
    image, label = blocks(*size)
    config = Augment(crop=crop, scale_min=scale, scale_max=scale * 1.5)
    out, seen = augment(image, label, config, np.random.default_rng(seed), PREPROCESSING)
    assert out.shape == (*crop, 3) and out.dtype == np.float32 and 0 <= out.min() and out.max() <= 1
    assert seen.shape == crop and seen.dtype == np.uint8 and set(np.unique(seen)) <= {*range(12), 255}
    assert out.flags.c_contiguous and seen.flags.c_contiguous


@settings(deadline=None, max_examples=40)
@given(st.floats(0.4, 2.5), st.integers(0, 999), st.booleans())
def test_image_and_label_share_one_geometry(scale: float, seed: int, flip: bool) -> None:
    image, label = blocks(96, 128)
    config = Augment(crop=(64, 80), scale_min=scale, scale_max=scale, flip=flip, brightness=0, offset=0)
    out, seen = augment(image, label, config, np.random.default_rng(seed), LITE)
    kept = seen != 255
    agree = np.abs(out[..., 0] * 255 / 20 - seen) < 0.05
    # Only pixels that straddle an edge between squares may differ: about one on each side of a square of 16 * scale.
    assert agree[kept].mean() > (0.45 if scale < 1 else 0.75)
    inner = np.zeros_like(kept)
    same = np.stack([np.roll(seen, (dy, dx), (0, 1)) == seen for dy in (-3, 0, 3) for dx in (-3, 0, 3)]).all(0)
    inner[3:-3, 3:-3] = same[3:-3, 3:-3]
    assert agree[inner & kept].all()
    assert np.allclose(normalise(out, LITE)[~kept], 0, atol=1e-6)


def test_full_frame_at_scale_one_is_the_frame() -> None:
    image, label = blocks(32, 48)
    config = Augment(crop=(32, 48), scale_min=1, scale_max=1, flip=False, brightness=0, offset=0)
    out, seen = augment(image, label, config, np.random.default_rng(0), PREPROCESSING)
    assert np.array_equal(seen, label) and np.allclose(out, image / 255, atol=1e-6)


def test_crops_show_all_parts_of_a_frame() -> None:
    rng, shown = np.random.default_rng(0), np.zeros((36, 48))
    for _ in range(2000):
        view = draw_view((360, 480), Augment(crop=(192, 256)), rng)
        (top, bottom), (left, right) = ((round(end / 10) for end in ends) for ends in (view.rows, view.columns))
        assert 0 <= top < bottom <= 36 and 0 <= left < right <= 48
        shown[top:bottom, left:right] += 1
    shown /= shown.mean()
    assert shown[[0, 0, -1, -1], [0, -1, 0, -1]].min() > 0.2 and shown.max() < 2


def test_same_generator_same_view() -> None:
    image, label = blocks(50, 60)
    one, two = (augment(image, label, Augment(crop=(24, 24)), np.random.default_rng(5), PREPROCESSING) for _ in range(2))
    assert np.array_equal(one[0], two[0]) and np.array_equal(one[1], two[1])


def test_colour_jitter_keeps_the_view() -> None:
    """The other draws are as without it; grey stays grey, and contrast leaves the mean where nothing is clipped."""
    rng = np.random.default_rng(0)
    image = rng.integers(100, 156, (50, 60, 3), np.uint8)
    label = rng.integers(0, 5, (50, 60), np.uint8)
    config = Augment(crop=(24, 24), brightness=0, offset=0)
    strong = replace(config, colour=0.5)
    (plain, seen), (out, same) = (augment(image, label, c, np.random.default_rng(3), PREPROCESSING) for c in (config, strong))
    assert np.array_equal(seen, same) and np.abs(out - plain).max() > 0.01 and out.dtype == np.float32
    luma = np.array((0.299, 0.587, 0.114))
    assert abs((out @ luma).mean() - (plain @ luma).mean()) < 1e-5
    grey = np.repeat(image[..., :1], 3, axis=2)
    out, _ = augment(grey, label, strong, np.random.default_rng(3), PREPROCESSING)
    assert np.ptp(out, axis=2).max() < 1e-5


def test_colour_jitter_against_pillow() -> None:
    """Saturation then contrast, as Pillow's enhancers have them, up to their rounding to whole intensities."""
    rng = np.random.default_rng(1)
    image = rng.integers(60, 190, (40, 50, 3), np.uint8)
    out = image.astype(np.float32) / 255
    _adjust(out, contrast=0.7, saturation=1.2)
    expected = ImageEnhance.Contrast(ImageEnhance.Color(Image.fromarray(image)).enhance(1.2)).enhance(0.7)
    assert np.abs(out * 255 - np.asarray(expected)).max() < 2.5


@pytest.mark.parametrize(
    "options",
    [
        {"crop": (0, 4)},
        {"crop": (4, 4), "scale_min": 0},
        {"crop": (4, 4), "scale_min": 2.0, "scale_max": 1.0},
        {"crop": (4, 4), "scale_max": float("nan")},
        {"crop": (4, 4), "brightness": 1.0},
        {"crop": (4, 4), "offset": -0.1},
        {"crop": (4, 4), "colour": 1.1},
        {"crop": (4, 4), "colour": float("nan")},
    ],
)
def test_bad_settings(options: dict) -> None:
    with pytest.raises(InvalidInput):
        Augment(**options)


def test_normalise_and_batch() -> None:
    image = np.broadcast_to(np.array(LITE.mean, np.float32), (4, 6, 3))
    assert np.abs(normalise(image, LITE)).max() < 1e-6
    assert np.allclose(normalise(image + np.array(LITE.std, np.float32), LITE), 1, atol=1e-5)
    images, labels = to_batch([(image, np.full((4, 6), 255, np.uint8))] * 2)
    assert images.shape == (2, 3, 4, 6) and images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert labels.shape == (2, 4, 6) and labels.dtype == torch.int64 and int(labels.max()) == 255
    for bad in ([], [(image, np.zeros((4, 5), np.uint8))]):
        with pytest.raises(InvalidInput, match="one size"):
            to_batch(bad)


def test_import_needs_no_torch() -> None:
    code = "import sys; sys.modules.update(torch=None, tyro=None, rich=None, matplotlib=None, pymoo=None); import hyctas.data"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_frames_are_held_once() -> None:
    source = Scenes(train=5, size=(48, 64))
    frames = Frames(source, "train")
    assert len(frames) == 5 and frames.nbytes == 5 * 48 * 64 * 4
    image, label = source.load("train", frames.samples[4])
    assert np.array_equal(frames[4][0], image) and np.array_equal(frames[4][1], label)
    with pytest.raises(ValueError, match="read-only"):
        frames[0][0][0, 0, 0] = 1
    small = Frames(source, "train", frames.samples[:2], size=(24, 40))
    assert small[1][0].shape == (24, 40, 3) and small[1][1].shape == (24, 40)
    counted = sum(int((label != 255).sum()) for _, label in small)
    assert small.class_counts().shape == (10,) and small.class_counts().sum() == counted


def test_frames_refuse_to_fill_the_memory() -> None:
    source = Scenes(train=100, size=(48, 64))
    for size in (None, (48, 64)):
        with pytest.raises(InvalidInput, match="100 frames of split 'train' need about"):
            Frames(source, "train", size=size, limit_mib=0.5)
    with pytest.raises(InvalidInput, match="no samples"):
        Frames(source, "train", samples=[])
    with pytest.raises(InvalidInput, match="empty"):
        Frames(source, "train", size=(0, 4))
