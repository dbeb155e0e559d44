"""Paint one frame of a generated street: far things first, colour and class in one stroke.

The canvas is RGBA with the class number in the fourth channel, so that image and label can never disagree. It is twice
as large as the frame where that is affordable; the image is then averaged down and the label sampled.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from hyctas.data.world import SKY, STREET, Face, Street, Thing

__all__ = ["STREET", "paint"]
_NEAREST = 1.2
"""Nothing is painted nearer than this, in metres."""
_DOUBLE_UP_TO = 400 * 640

# Strength of (fine, middle, coarse) texture per class, ignored things last.
_TEXTURE = np.full((256, 3), 0.05, np.float32)
_TEXTURE[:10] = [
    (0.00, 0.00, 0.05), (0.04, 0.04, 0.05), (0.06, 0.03, 0.04), (0.05, 0.05, 0.04), (0.16, 0.20, 0.12),
    (0.06, 0.06, 0.05), (0.03, 0.02, 0.03), (0.04, 0.05, 0.02), (0.03, 0.04, 0.04), (0.06, 0.08, 0.02),
]  # fmt: skip


def paint(street: Street, frame: int, size: tuple[int, int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Paint frame number `frame` of a clip.

    Args:
        street: what there is.
        frame: 0 for the first; the camera and all that moves go on by their speed.
        size: (height, width).
        rng: for texture and sensor noise.

    Returns:
        Image uint8 (H, W, 3), label uint8 (H, W) in the classes of `STREET`, or 255.
    """
    factor = 2 if size[0] * size[1] <= _DOUBLE_UP_TO else 1
    canvas = np.asarray(_draw(street, frame, size[0] * factor, size[1] * factor))
    label = canvas[factor // 2 :: factor, factor // 2 :: factor, 3]
    image = Image.fromarray(canvas[..., :3]).reduce(factor)
    picture = _light(np.asarray(image), label, street, rng)
    if street.mirrored:
        picture, label = picture[:, ::-1], label[:, ::-1]
    return np.ascontiguousarray(picture), np.ascontiguousarray(label)


def _draw(street: Street, frame: int, height: int, width: int) -> Image.Image:
    """Draw sky, ground, shadows on it, what lines the road, and what stands or moves before that."""
    focal = 0.85 * math.sqrt(width * height * 4 / 3)
    vanish_x, horizon = width * (0.5 + street.yaw[0] + street.yaw[1] * frame), height * street.horizon

    def draw(onto: Image.Image, faces: list[tuple[Face, Thing | None]], fill: int | None = None) -> None:
        counts = [len(face.corners) for face, _ in faces]
        first = np.cumsum([0, *counts])
        speed = np.array([thing.speed if thing else (0.0, 0.0) for _, thing in faces])
        move = np.repeat((speed - (0, street.speed)) * frame - (street.camera[0], 0), counts, 0)
        x, y, z = np.concatenate([face.corners for face, _ in faces]).T
        z = np.maximum(z + move[:, 1], _NEAREST)
        # The far end of a road that climbs lies above the horizon, of one that drops below it.
        across = vanish_x + focal / z * (x + move[:, 0] + street.curve * z * z)
        down = horizon + focal / z * (street.camera[1] - y - street.slope * z)
        left, right = np.minimum.reduceat(across, first[:-1]), np.maximum.reduceat(across, first[:-1])
        middle, thin = np.repeat((left + right) / 2, counts), np.repeat(right - left < 2, counts)
        across[thin] = np.where(across > middle, middle + 1, middle - 1)[thin]  # thin things keep a pixel of the frame
        clear = np.exp(-street.haze * np.minimum.reduceat(z, first[:-1]))[:, None]
        colours = np.array([face.colour for face, _ in faces]) * clear + np.array(street.sky[1]) * (1 - clear)
        fills = np.column_stack((colours.clip(0, 255), [face.kind for face, _ in faces])).astype(int).tolist()
        visible = (np.maximum.reduceat(z, first[:-1]) > _NEAREST) & (right > 0) & (left < width)
        brush, points = ImageDraw.Draw(onto), np.stack((across, down), 1)
        for i in np.flatnonzero(visible):
            brush.polygon(points[first[i] : first[i + 1]].ravel().tolist(), fill=tuple(fills[i]) if fill is None else fill)

    rows = np.linspace(0, 1 / street.horizon, height)[:, None, None].clip(0, 1)
    sky = np.array(street.sky[0]) * (1 - rows) + np.array(street.sky[1]) * rows
    pixels = np.full((height, width, 4), SKY, np.uint8)
    pixels[..., :3] = sky.clip(0, 255)
    canvas, mask = Image.fromarray(pixels), Image.new("L", (width, height), 255)
    things = [t for group in (street.roadside, street.objects) for t in sorted(group, key=lambda t: -t.z - t.speed[1] * frame)]
    draw(canvas, [(face, None) for face in street.ground])
    draw(mask, [(thing.shadow, thing) for thing in things], 150)
    pixels = np.array(canvas)
    dark = np.asarray(mask.filter(ImageFilter.BoxBlur(height / 200)), np.uint16)[..., None]
    pixels[..., :3] = pixels[..., :3] * dark >> 8
    canvas = Image.fromarray(pixels)
    draw(canvas, [(face, thing) for thing in things for face in thing.faces])
    return canvas


@lru_cache(maxsize=4)
def _noise(height: int, width: int) -> tuple[np.ndarray, ...]:
    """Return three fixed noise float32 fields of mean 0 and deviation 1, twice a frame's size: fine, middle, coarse."""
    rng = np.random.default_rng([height, width])
    tall, wide = height * 2, width * 2
    fields = []
    for grain in (1, max(2, round(height / 40)), max(4, round(height / 9))):
        small = rng.standard_normal((tall // grain + 2, wide // grain + 2)).astype(np.float32)
        field = np.asarray(Image.fromarray(small).resize((wide, tall), Image.Resampling.BICUBIC))
        fields.append(field / field.std())
    return tuple(fields)


def _light(image: np.ndarray, label: np.ndarray, street: Street, rng: np.random.Generator) -> np.ndarray:
    """Add texture, lighting, vignette, lens blur and sensor noise."""
    height, width = label.shape
    strength = np.ones((height, width), np.float32)
    for i, field in enumerate(_noise(height, width)):
        top, left = (int(rng.integers(limit)) for limit in (height, width))
        strength += _TEXTURE[:, i][label] * field[top : top + height, left : left + width]
    across, down = np.meshgrid(np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32))
    strength *= 1.04 + 0.06 * street.sun * across - 0.08 * (across**2 + down**2)
    picture = np.clip(image * strength[..., None] * np.array(street.light, np.float32), 0, 255).astype(np.uint8)
    picture = np.asarray(Image.fromarray(picture).filter(ImageFilter.BoxBlur(0.3 + height / 1200)), np.float32)
    picture = picture + rng.standard_normal(picture.shape, dtype=np.float32) * np.float32(255 * street.noise)
    return np.clip(picture, 0, 255).astype(np.uint8)
