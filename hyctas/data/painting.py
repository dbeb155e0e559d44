"""Paint one frame of a generated street: far things first, colour and class in one stroke.

The canvas is RGBA with the class number in the fourth channel, so that image and label can never disagree. It is twice
as large as the frame where that is affordable; the image is then averaged down and the label sampled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from hyctas.data.labels import IGNORE, Labels
from hyctas.data.world import FAR, Barrier, Bin, Car, Colour, House, Person, Pole, Street, Tree

STREET = Labels(
    ("sky", "building", "road", "pavement", "vegetation", "fence", "pole", "sign", "car", "pedestrian"),
    (
        (128, 178, 220), (128, 0, 0), (128, 64, 128), (232, 60, 220), (96, 140, 40), (186, 150, 150), (150, 150, 150),
        (220, 210, 0), (0, 0, 150), (220, 30, 60),
    ),
)  # fmt: skip
SKY, BUILDING, ROAD, PAVEMENT, VEGETATION, FENCE, POLE, SIGN, CAR, PEDESTRIAN = range(10)
_NEAREST = 1.2
"""Nothing is painted nearer than this, in metres."""
_DOUBLE_UP_TO = 400 * 640
Point = tuple[float, float]

# Strength of (fine, middle, coarse) texture per class, ignored things last.
_TEXTURE = np.zeros((256, 3), np.float32)
_TEXTURE[:10] = [
    (0.00, 0.00, 0.05), (0.04, 0.04, 0.05), (0.06, 0.03, 0.04), (0.05, 0.05, 0.04), (0.16, 0.20, 0.12),
    (0.06, 0.06, 0.05), (0.03, 0.02, 0.03), (0.04, 0.05, 0.02), (0.03, 0.04, 0.04), (0.06, 0.08, 0.02),
]  # fmt: skip
_TEXTURE[255] = (0.05, 0.05, 0.05)


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
    height, width = size
    factor = 2 if height * width <= _DOUBLE_UP_TO else 1
    brush = _Brush(street, frame, (height * factor, width * factor))
    brush.ground()
    brush.shadows()
    for house in sorted(street.houses, key=lambda h: -h.near):
        brush.house(house)
    for barrier in sorted(street.barriers, key=lambda b: -b.near):
        brush.barrier(barrier)
    for _, thing in sorted(((brush.depth(o), o) for o in street.objects), key=lambda pair: -pair[0]):
        brush.thing(thing)
    canvas = np.asarray(brush.canvas)
    label = canvas[factor // 2 :: factor, factor // 2 :: factor, 3].copy()
    image = brush.canvas.convert("RGB")
    if factor > 1:
        image = image.reduce(factor)
    picture = _light(np.asarray(image), label, street, rng)
    if street.mirrored:
        picture, label = picture[:, ::-1], label[:, ::-1]
    return np.ascontiguousarray(picture), np.ascontiguousarray(label)


class _Brush:
    """A canvas with a camera."""

    def __init__(self, street: Street, frame: int, size: tuple[int, int]) -> None:
        self.street, self.frame = street, frame
        self.height, self.width = size
        self.canvas = Image.new("RGBA", (self.width, self.height))
        self.draw = ImageDraw.Draw(self.canvas)
        self.focal = 0.85 * math.sqrt(self.width * self.height * 4 / 3)
        self.vanish_x = self.width * (0.5 + street.yaw[0] + street.yaw[1] * frame)
        self.horizon = self.height * street.horizon
        self.camera_z = street.speed * frame
        self.haze = street.sky[1]

    # geometry

    def depth(self, thing: Tree | Pole | Car | Person | Bin) -> float:
        """Distance from the camera, of the near end for cars."""
        moved = thing.speed if isinstance(thing, Car) else thing.speed_z if isinstance(thing, Person) else 0.0
        return thing.z + moved * self.frame - self.camera_z

    def at(self, x: float, y: float, z: float) -> Point:
        """Project a point, z in metres from the camera."""
        street = self.street
        scale = self.focal / z
        return (
            self.vanish_x + scale * (x - street.camera[0] + street.curve * z * z),
            self.horizon + scale * (street.camera[1] - y - street.slope * z),
        )

    def faded(self, colour: Colour, z: float, dim: float = 1.0) -> Colour:
        """Mix a colour with haze by distance; `dim` darkens it first."""
        clear = math.exp(-self.street.haze * max(z, 0.0))
        red, green, blue = (int(min(255.0, c * dim * clear + h * (1 - clear))) for c, h in zip(colour, self.haze, strict=True))
        return red, green, blue

    def shape(self, points: Sequence[Point], colour: Colour, kind: int) -> None:
        self.draw.polygon(points, fill=(*colour, kind))

    def oval(self, centre: Point, rx: float, ry: float, colour: Colour, kind: int) -> None:
        x, y = centre
        self.draw.ellipse((x - rx, y - ry, x + rx, y + ry), fill=(*colour, kind))

    # the scene

    def ground(self) -> None:
        """Paint sky, far silhouettes, pavement, road and its markings."""
        street, draw = self.street, self.draw
        # The far end of a road that climbs lies above the horizon, of one that drops below it.
        end = self.at(0, 0, FAR)[1]
        bands = 16
        for i in range(bands):
            t = (i + 0.5) / bands
            red, green, blue = (int(a + (b - a) * t) for a, b in zip(*street.sky, strict=True))
            y = end * i / bands
            draw.rectangle((0, y, self.width, end), fill=(red, green, blue, SKY))
        metre = self.focal / FAR
        for left, right, tall, trees in street.skyline:
            colour = self.faded((92, 100, 76) if trees else (128, 124, 122), FAR * 0.8)
            box = (left * self.width, end - tall * metre * (0.6 if trees else 1), right * self.width, end + 1)
            if trees:
                draw.ellipse((box[0], box[1], box[2], 2 * end - box[1]), fill=(*colour, VEGETATION))
                draw.rectangle((box[0], (box[1] + end) / 2, box[2], end + 1), fill=(*colour, VEGETATION))
            else:
                draw.rectangle(box, fill=(*colour, BUILDING))
        edge = street.road + street.pavement
        depths = [FAR, 60, 40, 28, 20, 14, 10, 7, 5, 3.5, 2.5, 1.8, _NEAREST]
        draw.rectangle((0, end, self.width, self.height), fill=(*self.faded(street.paving, FAR * 0.7), PAVEMENT))
        for far, near in pairwise(depths):
            paving, asphalt = self.faded(street.paving, near), self.faded(street.asphalt, near)
            self._strip(-60, 60, far, near, paving, PAVEMENT)
            if street.verge is not None:
                grass = self.faded(street.verge, near)
                self._strip(-edge - 40, -edge, far, near, grass, VEGETATION)
                self._strip(edge, edge + 40, far, near, grass, VEGETATION)
            kerb = self.faded(street.paving, near, 1.15)
            self._strip(-street.road - 0.18, street.road + 0.18, far, near, kerb, PAVEMENT)
            self._strip(-street.road, street.road, far, near, asphalt, ROAD)
        self._markings()

    def _strip(self, left: float, right: float, far: float, near: float, colour: Colour, kind: int) -> None:
        corners = [self.at(left, 0, far), self.at(right, 0, far), self.at(right, 0, near), self.at(left, 0, near)]
        self.shape(corners, colour, kind)

    def _markings(self) -> None:
        street = self.street
        if street.dashes:
            period = street.dashes * 2.5
            z = period - self.camera_z % period - period
            while z < 60:
                if z + street.dashes > _NEAREST:
                    near = max(z, _NEAREST)
                    self._strip(-0.08, 0.08, z + street.dashes, near, self.faded((196, 196, 190), near), ROAD)
                z += period
        z = street.zebra - self.camera_z
        if street.zebra and z > _NEAREST:
            x = -street.road + 0.3
            while x < street.road - 0.4:
                self._strip(x, x + 0.5, z + 3, z, self.faded((200, 200, 196), z), ROAD)
                x += 1.0

    def shadows(self) -> None:
        """Darken the ground where the sun is blocked."""
        street = self.street
        if not street.sun:
            return
        mask = Image.new("L", self.canvas.size, 255)
        draw = ImageDraw.Draw(mask)
        side = -1 if street.sun > 0 else 1  # houses of this side throw their shadow towards the road
        for house in street.houses:
            near, far = house.near - self.camera_z, house.far - self.camera_z
            if house.side == side and far > _NEAREST:
                near = max(near, _NEAREST)
                inner = house.side * (house.x - min(house.height * abs(street.sun) * 0.6, 2 * street.road))
                outer = house.side * house.x
                corners = ((outer, near), (inner, near), (inner, far), (outer, far))
                draw.polygon([self.at(x, 0, z) for x, z in corners], fill=150)
        for thing in street.objects:
            z = self.depth(thing)
            if z < _NEAREST + 1 or z > 50:
                continue
            if isinstance(thing, Tree) and thing.trunk:
                x, y = self.at(thing.x + street.sun * thing.trunk * 0.7, 0, z)
                scale = self.focal / z
                draw.ellipse((x - 2 * scale, y - 1.6 * scale**2 / self.focal * 2, x + 2 * scale, y + scale * 0.4), fill=160)
            elif isinstance(thing, Pole | Person):
                tall, half = thing.height, 0.2 if isinstance(thing, Person) else thing.width / 2
                foot, tip = self.at(thing.x, 0, z), self.at(thing.x + street.sun * tall * 0.8, 0, z + 0.3)
                draw.line((foot, tip), fill=160, width=max(1, round(2 * half * self.focal / z * 0.5)))
        dark = np.asarray(mask.filter(ImageFilter.BoxBlur(self.height / 200)), np.uint16)[..., None]
        pixels = np.array(self.canvas)
        below = max(0, int(self.at(0, 0, FAR)[1]))
        pixels[below:, :, :3] = pixels[below:, :, :3] * dark[below:] >> 8
        self.canvas = Image.fromarray(pixels)
        self.draw = ImageDraw.Draw(self.canvas)

    def house(self, house: House) -> None:
        near, far = max(house.near - self.camera_z, _NEAREST), house.far - self.camera_z
        if far <= near:
            return
        x, tall = house.side * house.x, house.height
        lit = 1.12 if self.street.sun * house.side < 0 else 0.86 if self.street.sun else 1.0
        outer = x + house.side * 14
        end_wall = [self.at(x, 0, near), self.at(outer, 0, near), self.at(outer, tall, near), self.at(x, tall, near)]
        self.shape(end_wall, self.faded(house.wall, near, 0.8), BUILDING)
        self._facade(x, near, far, 0, tall, self.faded(house.wall, (near + far) / 2, lit))
        seen = abs(self.at(x, 0, near)[0] - self.at(x, 0, far)[0])
        if seen > 6:
            self._windows(house, x, near, far, grid=seen > 4 * house.columns)
        self._facade(x, near, far, tall - 0.35, tall, self.faded(house.wall, (near + far) / 2, lit * 0.82))
        if house.awning is not None and seen > 4:
            self._facade(x - house.side * 0.3, near + 0.4, far - 0.4, 2.3, 3.0, self.faded(house.awning, near))

    def _facade(self, x: float, near: float, far: float, low: float, high: float, colour: Colour) -> None:
        if far <= near:
            return
        corners = [self.at(x, low, near), self.at(x, high, near), self.at(x, high, far), self.at(x, low, far)]
        self.shape(corners, colour, BUILDING)

    def _windows(self, house: House, x: float, near: float, far: float, grid: bool) -> None:
        storey = (house.height - 0.8) / house.storeys
        length = (house.far - house.near) / house.columns
        for floor in range(house.storeys):
            low = 0.4 + floor * storey + (0.1 if not floor else 0.25) * storey
            high = 0.4 + floor * storey + 0.8 * storey
            for column in range(house.columns if grid else 1):
                z0 = house.near - self.camera_z + column * length
                z1 = z0 + length
                start, end = (z0 + 0.25 * length, z0 + 0.75 * length) if grid else (near + 0.3, far - 0.3)
                if z1 > near and end > max(start, _NEAREST):
                    tint = 0.8 + 0.4 * ((floor * 7 + column * 13) % 10) / 10
                    self._facade(x, max(start, _NEAREST), end, low, high, self.faded(house.window, z0, tint))

    def barrier(self, barrier: Barrier) -> None:
        near, far = max(barrier.near - self.camera_z, _NEAREST), barrier.far - self.camera_z
        if far <= near:
            return
        x, tall = barrier.side * barrier.x, barrier.height
        corners = [self.at(x, 0, near), self.at(x, tall, near), self.at(x, tall, far), self.at(x, 0, far)]
        self.shape(corners, self.faded(barrier.colour, near, 1.0 if barrier.solid else 0.75), FENCE)
        if barrier.solid:
            return
        z = barrier.near - self.camera_z
        while z < far and z < 30:
            if z > near:
                foot, top = self.at(x, 0, z), self.at(x, tall, z)
                width = max(1, round(0.08 * self.focal / z))
                self.draw.line((foot, top), fill=(*self.faded(barrier.colour, z, 1.2), FENCE), width=width)
            z += 0.6

    # things

    def thing(self, thing: Tree | Pole | Car | Person | Bin) -> None:
        z = self.depth(thing)
        if isinstance(thing, Car):
            self._car(thing, z)
        elif _NEAREST + 0.6 < z < FAR:
            if isinstance(thing, Tree):
                self._tree(thing, z)
            elif isinstance(thing, Pole):
                self._pole(thing, z)
            elif isinstance(thing, Person):
                self._person(thing, z)
            else:
                left, right = thing.x - thing.width / 2, thing.x + thing.width / 2
                self._board(left, right, 0, thing.height, z, self.faded(thing.colour, z), IGNORE)

    def _board(self, left: float, right: float, low: float, high: float, z: float, colour: Colour, kind: int) -> None:
        """Paint an upright rectangle that faces the camera, at least one frame pixel wide."""
        (x0, y0), (x1, y1) = self.at(left, high, z), self.at(right, low, z)
        if x1 - x0 < 2:
            middle = (x0 + x1) / 2
            x0, x1 = middle - 1, middle + 1
        self.draw.rectangle((x0, y0, x1, max(y0, y1)), fill=(*colour, kind))

    def _tree(self, tree: Tree, z: float) -> None:
        scale = self.focal / z
        if tree.trunk:
            self._board(tree.x - 0.14, tree.x + 0.14, 0, tree.trunk + 1, z, self.faded((78, 66, 54), z), VEGETATION)
        for dx, y, radius, colour in tree.blobs:
            lit = 1.1 if dx * self.street.sun < 0 else 0.9
            self.oval(self.at(tree.x + dx, y, z), radius * scale, radius * scale * 0.9, self.faded(colour, z, lit), VEGETATION)

    def _pole(self, pole: Pole, z: float) -> None:
        half, colour = pole.width / 2, self.faded(pole.colour, z)
        self._board(pole.x - half, pole.x + half, 0, pole.height, z, colour, POLE)
        scale = self.focal / z
        if pole.arm:
            start, end = self.at(pole.x, pole.height, z), self.at(pole.x + pole.arm, pole.height + 0.2, z)
            self.draw.line((start, end), fill=(*colour, POLE), width=max(2, round(0.1 * scale)))
        if not pole.sign:
            return
        (x, y), size = self.at(pole.x, pole.sign_height, z), max(1.0, pole.sign_size / 2 * scale)
        paint, pale = self.faded(pole.sign_colour, z), self.faded((226, 226, 220), z)
        if pole.sign == "disc":
            self.oval((x, y), size, size, paint, SIGN)
            self.oval((x, y), size * 0.6, size * 0.6, pale, SIGN)
        elif pole.sign == "triangle":
            for part, tone in ((1.0, paint), (0.55, pale)):
                r = size * part
                self.shape([(x - r, y + r * 0.8), (x + r, y + r * 0.8), (x, y - r)], tone, SIGN)
        elif pole.sign == "panel":
            self.draw.rectangle((x - size, y - size * 0.7, x + size, y + size * 0.7), fill=(*paint, SIGN))
            self.draw.rectangle((x - size * 0.6, y - size * 0.1, x + size * 0.6, y + size * 0.1), fill=(*pale, SIGN))
        else:
            self.draw.rectangle((x - size * 0.5, y - size * 1.3, x + size * 0.5, y + size * 1.3), fill=(*paint, SIGN))
            lamp = ((210, 50, 40), (220, 170, 40), (60, 190, 110))[int(pole.z * 10) % 3]
            shift = (-0.8, 0.0, 0.8)[int(pole.z * 10) % 3]
            self.oval((x, y + shift * size), size * 0.35, size * 0.35, lamp, SIGN)

    def _car(self, car: Car, z: float) -> None:
        near, far = max(z, _NEAREST + 0.4), z + car.length
        if far < near + 0.5 or near > 75:
            return
        left, right = car.x - car.width / 2, car.x + car.width / 2
        ground = 0.22
        # The contact shadow is ground, not car.
        shade = [self.at(left - 0.1, 0, near - 0.2), self.at(right + 0.1, 0, near - 0.2), self.at(right + 0.1, 0, far),
                 self.at(left - 0.1, 0, far)]  # fmt: skip
        self.shape(shade, self.faded(self.street.asphalt, near, 0.4), ROAD)
        visible = left if left > self.street.camera[0] else right if right < self.street.camera[0] else None
        belt = 1.15 if car.van else 0.9
        bonnet = 0.0 if car.van else 0.22
        body, glass = car.paint, car.glass
        cabin_near = near + (0.05 if car.van or z < near else bonnet * car.length * 0.6)
        cabin_far = far - bonnet * car.length
        if visible is not None:
            self._side(visible, near, far, ground, belt, self.faded(body, near, 0.8), CAR)
            self._side(visible, cabin_near, cabin_far, belt, car.height, self.faded(glass, near, 0.85), CAR)
            self._side(visible, cabin_near, cabin_far, car.height - 0.12, car.height, self.faded(body, near, 0.95), CAR)
            for wheel in (near + 0.18 * car.length, far - 0.18 * car.length):
                if wheel > near:
                    x, y = self.at(visible, 0.32, wheel)
                    radius = 0.32 * self.focal / wheel
                    slant = max(1.0, abs(self.at(visible, 0, wheel)[0] - self.at(visible, 0, wheel + 0.32)[0]))
                    self.oval((x, y), slant, radius, (26, 26, 28), CAR)
        if z < near:
            return  # the near end is beside or behind the camera
        inset = 0.0 if car.van else 0.14
        roof = [self.at(left + inset, car.height, cabin_near), self.at(right - inset, car.height, cabin_near),
                self.at(right, belt, near), self.at(left, belt, near)]  # fmt: skip
        self.shape(roof, self.faded(body, near, 1.05), CAR)
        top = car.height - 0.12
        pane = [self.at(left + inset + 0.1, top, cabin_near), self.at(right - inset - 0.1, top, cabin_near),
                self.at(right - 0.15, belt, near), self.at(left + 0.15, belt, near)]  # fmt: skip
        self.shape(pane, self.faded(glass, near), CAR)
        self._board(left, right, ground + 0.06, belt, near, self.faded(body, near), CAR)
        self._board(left + 0.05, right - 0.05, ground + 0.06, ground + 0.2, near, self.faded(body, near, 0.6), CAR)
        for x in (left + 0.04, right - 0.26):
            self._board(x, x + 0.22, 0, ground + 0.1, near, (24, 24, 26), CAR)
            lamp = (228, 226, 206) if car.speed < 0 else (164, 30, 28)
            self._board(x, x + 0.22, belt - 0.3, belt - 0.14, near, self.faded(lamp, near), CAR)

    def _side(self, x: float, near: float, far: float, low: float, high: float, colour: Colour, kind: int) -> None:
        corners = [self.at(x, low, near), self.at(x, high, near), self.at(x, high, far), self.at(x, low, far)]
        self.shape(corners, colour, kind)

    def _person(self, person: Person, z: float) -> None:
        tall, x = person.height, person.x + person.speed_x * self.frame
        scale = self.focal / z
        stride = 0.16 * math.sin(person.phase + self.frame * 1.3)
        hip, neck = 0.48 * tall, 0.84 * tall
        trousers, coat = self.faded(person.trousers, z), self.faded(person.coat, z)
        for foot in (x - 0.1 - stride, x + 0.1 + stride):
            legs = [
                self.at(x - 0.13, hip, z),
                self.at(x + 0.13, hip, z),
                self.at(foot + 0.08, 0, z),
                self.at(foot - 0.08, 0, z),
            ]
            self.shape(legs, trousers, PEDESTRIAN)
        body = [
            self.at(x - 0.24, neck, z),
            self.at(x + 0.24, neck, z),
            self.at(x + 0.2, hip * 0.9, z),
            self.at(x - 0.2, hip * 0.9, z),
        ]
        self.shape(body, coat, PEDESTRIAN)
        self.oval(
            self.at(x, 0.92 * tall, z),
            max(1.0, 0.11 * scale),
            max(1.0, 0.135 * scale),
            self.faded(person.skin, z),
            PEDESTRIAN,
        )
        hair = self.at(x, 0.96 * tall, z)
        self.oval(hair, max(0.5, 0.11 * scale), max(0.5, 0.08 * scale), self.faded(person.trousers, z, 0.8), PEDESTRIAN)


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
    across = np.linspace(-1, 1, width, dtype=np.float32)
    down = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    strength *= 1.04 + 0.06 * street.sun * across - 0.08 * (across**2 + down**2)
    picture = image * strength[..., None]
    picture *= np.array(street.light, np.float32)
    blurred = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).filter(ImageFilter.BoxBlur(0.3 + height / 1200))
    picture = np.asarray(blurred, np.float32)
    picture = picture + rng.standard_normal(picture.shape, dtype=np.float32) * np.float32(255 * street.noise)
    return np.clip(picture, 0, 255).astype(np.uint8)
