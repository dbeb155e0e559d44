"""Invent the street of a generated clip: what stands where, as flat polygons in metres.

Axes: x to the right of the road's centre line, y up from the ground, z ahead of the first camera position. The camera
drives on the right-hand lane towards +z; left-hand traffic is the mirror image (`Street.mirrored`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from hyctas.data.labels import IGNORE, Labels

STREET = Labels(
    ("sky", "building", "road", "pavement", "vegetation", "fence", "pole", "sign", "car", "pedestrian"),
    (
        (128, 178, 220), (128, 0, 0), (128, 64, 128), (232, 60, 220), (96, 140, 40), (186, 150, 150), (150, 150, 150),
        (220, 210, 0), (0, 0, 150), (220, 30, 60),
    ),
)  # fmt: skip
SKY, BUILDING, ROAD, PAVEMENT, VEGETATION, FENCE, POLE, SIGN, CAR, PEDESTRIAN = range(10)
FAR = 90.0
"""How far ahead anything stands, in metres."""
DEPTHS = (-8.0, 1.8, 2.5, 3.5, 5.0, 7.0, 10.0, 14.0, 20.0, 28.0, 40.0, 60.0, FAR + 8)
"""Where the ground is cut into strips, because roads bend."""

Colour = tuple[float, float, float]
Point = tuple[float, float]
# Colours are shared between classes on purpose: grey is road, pavement, building, car and sky; brick is building and
# autumn tree; bright is sign, car, coat, awning. What a pixel is has to be read from position and surroundings.
GREYS: tuple[Colour, ...] = ((92, 92, 96), (112, 110, 108), (132, 130, 128), (150, 148, 144), (170, 168, 164))
WALLS: tuple[Colour, ...] = ((146, 140, 130), (168, 158, 142), (128, 84, 68), (150, 102, 82), (186, 180, 170), (98, 88, 80))
LEAVES: tuple[Colour, ...] = ((62, 82, 44), (78, 98, 54), (52, 66, 46), (98, 98, 52), (120, 92, 52), (76, 72, 58))
BRIGHT: tuple[Colour, ...] = ((176, 42, 38), (40, 70, 150), (206, 178, 58), (40, 110, 78), (214, 214, 210), (60, 140, 180))
COATS: tuple[Colour, ...] = ((44, 44, 50), (70, 66, 64), (36, 44, 66), (104, 100, 96), (84, 90, 70), (176, 170, 158))
SKIN: tuple[Colour, ...] = ((214, 170, 140), (168, 120, 90), (104, 72, 54), (232, 192, 164))
GLASS: tuple[Colour, ...] = ((44, 50, 58), (86, 98, 108), (130, 146, 160))
SIGNALS: tuple[Colour, ...] = ((210, 50, 40), (220, 170, 40), (60, 190, 110))
DARK, PALE, BARK = (26.0, 26.0, 28.0), (206.0, 206.0, 200.0), (78.0, 66.0, 54.0)


@dataclass(frozen=True)
class Face:
    """A flat polygon of one class and colour."""

    kind: int
    colour: Colour
    corners: np.ndarray
    """float64 (n, 3)."""


@dataclass(frozen=True)
class Thing:
    """What moves and hides as one: its faces from the back to the front, and its shadow on the ground."""

    z: float
    faces: tuple[Face, ...]
    shadow: Face
    speed: Point = (0.0, 0.0)
    """Along x and z, in metres per frame."""


@dataclass(frozen=True)
class Street:
    """Everything that a clip shows, and how its camera moves."""

    mirrored: bool
    camera: Point
    """Camera x and height."""
    speed: float
    horizon: float
    """Height of the horizon as a fraction of the image from above."""
    yaw: Point
    """Shift of the vanishing point as a fraction of the width: at the first frame, per frame."""
    curve: float
    slope: float
    sky: tuple[Colour, Colour]
    """Colour above and at the horizon."""
    haze: float
    sun: float
    """-1..1: where shadows fall; 0 = overcast."""
    light: Colour
    noise: float
    ground: tuple[Face, ...]
    roadside: tuple[Thing, ...]
    objects: tuple[Thing, ...]


def invent_street(rng: np.random.Generator) -> Street:
    """Draw a street."""
    pick = _Pick(rng)
    overcast, gain, warmth = pick.chance(0.45), pick.between(0.62, 1.12), pick.between(-0.07, 0.08)
    pick.road, pick.pavement, pick.sun = pick.between(2.9, 5.2), pick.between(1.6, 3.6), pick.between(0.35, 1) * (not overcast)
    pick.sun *= pick.rng.choice((-1, 1))
    pick.camera = (pick.between(0.3, 0.6) * pick.road, pick.between(1.25, 1.75))
    top = ((150, 156, 164), (205, 208, 210)) if overcast else ((92, 136, 190), (128, 164, 204))
    low = ((196, 200, 204),) if overcast else ((196, 200, 204), (226, 200, 168))
    return Street(
        mirrored=pick.chance(0.5),
        camera=pick.camera,
        speed=pick.between(0.25, 1.3),
        horizon=pick.between(0.38, 0.52),
        yaw=(pick.between(-0.09, 0.09), pick.between(-0.008, 0.008)),
        curve=pick.between(-1, 1) ** 3 * 0.004,
        slope=pick.between(-0.02, 0.03),
        sky=(pick.colour(top), pick.colour(low)),
        haze=pick.between(0.002, 0.012),
        sun=pick.sun,
        light=(gain * (1 + warmth), gain, gain * (1 - warmth)),
        noise=pick.between(0.008, 0.035),
        ground=tuple(_ground(pick)),
        roadside=tuple(_roadside(pick)),
        objects=tuple(_furniture(pick) + _traffic(pick) + _people(pick)),
    )


class _Pick:
    """The draws of one street, and what all its parts must know of it."""

    road: float
    pavement: float
    sun: float
    camera: Point

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.rng.random()

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def colour(self, choices: Sequence[Colour], spread: float = 12) -> Colour:
        red, green, blue = choices[int(self.rng.integers(len(choices)))]
        common = self.between(-spread, spread)
        shift = [common + self.between(-spread, spread) / 3 for _ in range(3)]
        return red + shift[0], green + shift[1], blue + shift[2]

    def thing(
        self, x: float, z: float, width: float, height: float, faces: list[Face], length: float = 0.3, speed: Point = (0, 0)
    ) -> Thing:
        """Gather faces of something that stands in the middle of `width`; its shadow leans with the sun."""
        lean = self.sun * height * 0.7
        left, right = x - width / 2 + min(0.0, lean), x + width / 2 + max(0.0, lean)
        return Thing(z, tuple(faces), _flat(ROAD, DARK, left, right, z, z + length), speed)

    def box(self, kind: int, colour: Colour, x: float, width: float, y: Point, z: Point) -> list[Face]:
        """Return the faces of a box that the camera can see: one side, perhaps the top, the near end."""
        left, right = x - width / 2, x + width / 2
        side = _wall(kind, _shade(colour, 0.85), left if left > self.camera[0] else right, y, z)
        top = _flat(kind, _shade(colour, 1.1), left, right, *z, y[1])
        return [side] + [top] * (y[1] < self.camera[1]) + [_board(kind, colour, x, width, y, z[0])]


def _face(kind: int, colour: Colour, x: ArrayLike, y: ArrayLike, z: ArrayLike) -> Face:
    return Face(kind, colour, np.stack(np.broadcast_arrays(np.asarray(x, float), y, z), -1))


def _wall(kind: int, colour: Colour, x: float, y: Point, z: Point) -> Face:
    """Return an upright rectangle along the road."""
    return _face(kind, colour, x, (y[0], y[1], y[1], y[0]), (z[0], z[0], z[1], z[1]))


def _flat(kind: int, colour: Colour, left: float, right: float, near: float, far: float, y: float = 0.0) -> Face:
    """Return a level rectangle."""
    return _face(kind, colour, (left, right, right, left), y, (near, near, far, far))


def _board(kind: int, colour: Colour, x: float, width: float, y: Point, z: float) -> Face:
    """Return an upright rectangle that faces the camera."""
    left, right = x - width / 2, x + width / 2
    return _face(kind, colour, (left, right, right, left), (y[0], y[0], y[1], y[1]), z)


def _disc(kind: int, colour: Colour, x: float, y: float, radius: float, z: float, corners: int = 12) -> Face:
    """Return a regular polygon that faces the camera."""
    angle = np.arange(corners) * 2 * math.pi / corners + (math.pi / 4 if corners == 4 else math.pi / 2)
    return _face(kind, colour, x + radius * np.cos(angle), y + radius * np.sin(angle), z)


def _shade(colour: Colour, factor: float) -> Colour:
    return colour[0] * factor, colour[1] * factor, colour[2] * factor


def _ground(pick: _Pick) -> list[Face]:
    """Lay pavement, grass, kerb and road from the far end on, then the markings, and the silhouettes behind it all."""
    paving, asphalt = pick.colour((*GREYS[1:], (158, 140, 120)), 8), pick.colour(GREYS[:4], 8)
    beside = (VEGETATION, pick.colour(LEAVES[:4])) if pick.chance(0.2) else (PAVEMENT, paving)
    road, edge = pick.road, pick.road + pick.pavement
    lanes = [(60.0, *beside), (edge, PAVEMENT, paving), (road + 0.18, PAVEMENT, _shade(paving, 1.15)), (road, ROAD, asphalt)]
    faces, x = [], -90.0
    while x < 90:
        width, height, wood = pick.between(6, 20), pick.between(3, 14), pick.chance(0.5)
        faces += [_disc(VEGETATION, LEAVES[1], x, 0, min(width, height) * 0.6, FAR) if wood else
                  _board(BUILDING, GREYS[2], x, width, (0, height), FAR)]  # fmt: skip
        x += width * pick.between(0.6, 1.0)
    for near, far in reversed(list(pairwise(DEPTHS))):
        faces += [_flat(kind, colour, -half, half, near, far) for half, kind, colour in lanes]
    if dash := pick.rng.choice((0.0, 2.0, 3.0)):
        faces += [_flat(ROAD, PALE, -0.08, 0.08, z, z + dash) for z in np.arange(0, 60, 2.5 * dash)]
    if pick.chance(0.25):
        z = pick.between(8, 26)
        faces += [_flat(ROAD, PALE, x, x + 0.5, z, z + 3) for x in np.arange(0.3 - road, road - 0.4)]
    return faces


def _roadside(pick: _Pick) -> list[Thing]:
    """Line both sides with houses, and the gaps between them with fences and trees."""
    things, built_up = [], pick.between(0.45, 0.95)
    for side in (-1, 1):
        z, x = -6.0, side * (pick.road + pick.pavement + pick.between(0, 1.5))
        while z < FAR:
            length = pick.between(6, 18)
            things += [_house(pick, side, x, z, length)] if pick.chance(built_up) else _gap(pick, side, x, z, length)
            z += length + pick.rng.choice((0.0, 2.5))
    return things


def _gap(pick: _Pick, side: int, x: float, z: float, length: float) -> list[Thing]:
    trees = [_tree(pick, x + side * pick.between(0.5, 6), z + pick.between(0, length), 0.5) for _ in range(int(length / 2))]
    if pick.chance(0.3):
        return trees
    height, colour = pick.between(0.9, 1.9), pick.colour((*WALLS[:4], *GREYS[:3]))
    starts = [(z, length)] if pick.chance(0.4) else [(z + i * 0.6, 0.4) for i in range(int(length / 0.6))]
    pickets = [_wall(FENCE, colour, x, (0, height), (start, start + extent)) for start, extent in reversed(starts)]
    return [*trees, pick.thing(x, z, 0.1, height, pickets, length)]


def _house(pick: _Pick, side: int, x: float, z: float, length: float) -> Thing:
    storeys, columns, storey = int(pick.between(1.6, 6)), max(2, round(length / pick.between(2.4, 4))), pick.between(2.8, 3.6)
    wall, glass, bay = pick.colour(WALLS, 14), pick.colour(GLASS), length / columns
    faces = pick.box(BUILDING, wall, x + side * 7, 14, (0, storeys * storey + 0.8), (z, z + length))
    for floor in range(storeys if z < 45 else 0):
        for column in reversed(range(columns)):
            low, start = 0.6 + (floor + 0.2) * storey, z + (column + 0.25) * bay
            tint = _shade(glass, pick.between(0.8, 1.2))
            faces.insert(-1, _wall(BUILDING, tint, x, (low, low + 0.55 * storey), (start, start + bay / 2)))
    if pick.chance(0.3):
        faces.insert(-1, _wall(BUILDING, pick.colour(BRIGHT), x - side * 0.3, (2.3, 3.0), (z + 0.4, z + length - 0.4)))
    return pick.thing(x, z, 0.1, storeys * storey, faces, length)


def _tree(pick: _Pick, x: float, z: float, bush: float) -> Thing:
    leaf, low = pick.colour(LEAVES), pick.chance(bush)
    radius = pick.between(0.6, 1.4) if low else pick.between(1.2, 2.4)
    middle = radius * 0.6 if low else pick.between(4, 8)
    faces = [_board(VEGETATION, BARK, x, 0.28, (0, middle), z)]
    for _ in range(5 if low else 9):
        dx, dy, size = pick.between(-0.9, 0.9) * radius, pick.between(-0.5, 0.6) * radius, radius * pick.between(0.4, 0.8)
        lit = 1.1 if dx * pick.sun < 0 else 0.9
        faces.append(_disc(VEGETATION, _shade(pick.colour((leaf,)), lit), x + dx, max(0, middle + dy), size, z))
    return pick.thing(x, z, radius, middle, faces, radius)


def _furniture(pick: _Pick) -> list[Thing]:
    """Stand lamps, trees, signs, traffic lights and bins (which are ignored) on the pavements."""
    things, spacing, trees_too = [], pick.between(12, 26), pick.chance(0.6)
    for side in (-1, 1):
        kerb, lamps = side * (pick.road + 0.5), pick.chance(0.75)
        for z in np.arange(pick.between(0, spacing), FAR * 0.8, spacing):
            if lamps:
                height, arm, colour = pick.between(4.5, 8), pick.between(0.6, 1.8), pick.colour(GREYS)
                post = [_board(POLE, colour, kerb, pick.between(0.12, 0.22), (0, height), z)]
                post.append(_board(POLE, colour, kerb - side * arm / 2, arm, (height, height + 0.15), z))
                things.append(pick.thing(kerb, z, 0.2, height, post))
            if trees_too and pick.chance(0.7):
                things.append(_tree(pick, side * (pick.road + min(1.0, pick.pavement / 2)), z + spacing / 2, 0.0))
        things += [_sign(pick, kerb + pick.between(-0.2, 0.4), pick.between(5, 45)) for _ in range(pick.rng.integers(1, 5))]
        if pick.chance(0.35):
            x, z, width = side * (pick.road + pick.pavement * 0.75), pick.between(6, 30), pick.between(0.5, 1.2)
            faces = pick.box(IGNORE, pick.colour((*GREYS, *LEAVES)), x, width, (0, 1), (z, z + 1))
            things.append(pick.thing(x, z, width, 1, faces))
    return things


def _sign(pick: _Pick, x: float, z: float) -> Thing:
    """Return a round, triangular or square sign, or a traffic light, on its pole."""
    y, size, shape = pick.between(2.1, 2.9), pick.between(0.3, 0.5), int(pick.rng.choice((0, 3, 4, 12)))
    faces = [_board(POLE, pick.colour(GREYS), x, pick.between(0.08, 0.14), (0, y + 0.5), z)]
    if shape:
        faces.append(_disc(SIGN, pick.colour((*BRIGHT, PALE)), x, y, size * 1.2, z, shape))
        faces.append(_disc(SIGN, PALE, x, y, size * 0.7, z, shape))
    else:
        lamp = pick.rng.integers(3)
        faces.append(_board(SIGN, (40, 42, 42), x, size, (y - 1.3 * size, y + 1.3 * size), z))
        faces.append(_disc(SIGN, SIGNALS[lamp], x, y + (1 - lamp) * 0.8 * size, size * 0.35, z))
    return pick.thing(x, z, 0.2, y, faces)


def _traffic(pick: _Pick) -> list[Thing]:
    """Let cars drive on both lanes, and park at the kerb of a wide road."""
    cars = []
    for direction, x, most in ((1, pick.road * 0.5, 3), (-1, -pick.road * 0.45, 4)):
        z = pick.between(8, 20)
        for _ in range(pick.rng.integers(most)):
            cars.append(_car(pick, x + pick.between(-0.3, 0.3), z, direction * pick.between(0.2, 1.2)))
            z += pick.between(9, 25)
    for side in (-1, 1):
        if pick.road > 3.8 and pick.chance(0.5):
            starts = np.arange(pick.between(2, 12), 60, pick.between(5.5, 8))
            cars += [_car(pick, side * (pick.road - 0.9), z, 0.0) for z in starts if pick.chance(0.65)]
    return cars


def _car(pick: _Pick, x: float, z: float, speed: float) -> Thing:
    van = pick.chance(0.2)
    length, height = (pick.between(4.6, 6.5), pick.between(1.9, 2.7)) if van else (pick.between(3.7, 4.7), pick.between(1.38, 1.65))
    width, belt, bonnet = pick.between(1.65, 2.0), 1.15 if van else 0.9, 0.05 if van else 0.15 * length
    body, glass, cabin = pick.colour((*COATS, *BRIGHT[:2], *BRIGHT[4:])), pick.colour(GLASS), (z + bonnet, z + length - bonnet)
    faces = pick.box(CAR, body, x, width, (0.22, belt), (z, z + length))
    side = width / 2 if x < pick.camera[0] else -width / 2
    faces[1:1] = [_wall(CAR, DARK, x + side, (0, 0.6), (wheel, wheel + 0.6)) for wheel in (z + 0.15 * length, z + 0.75 * length)]
    faces += [_board(CAR, DARK, x + dx, 0.22, (0, 0.3), z) for dx in (0.15 - width / 2, width / 2 - 0.15)]
    lamp = (228, 226, 206) if speed < 0 else (164, 30, 28)
    faces += [_board(CAR, lamp, x + dx, 0.24, (belt - 0.3, belt - 0.12), z) for dx in (0.2 - width / 2, width / 2 - 0.2)]
    faces += pick.box(CAR, glass, x, width - 0.25, (belt, height), cabin)
    faces += pick.box(CAR, body, x, width - 0.25, (height - 0.14, height), cabin)
    return pick.thing(x, z, width, 0.5, faces, length, (0, speed))


def _people(pick: _Pick) -> list[Thing]:
    """Let people walk along the pavements or cross, alone or by two."""
    people = []
    for _ in range(pick.rng.integers(1, 9)):
        crossing, side, speed = pick.chance(0.2), pick.rng.choice((-1, 1)), pick.between(-0.2, 0.2)
        x = pick.between(-1, 1) * pick.road if crossing else side * (pick.road + pick.between(0.3, 0.95) * pick.pavement)
        z = pick.between(5, 20 if crossing else 36)
        for companion in range(1 + pick.chance(0.3)):
            tall, trousers, stride = pick.between(1.45, 1.9), pick.colour(COATS[:4]), pick.between(0.1, 0.28)
            x, hip, neck = x + 0.6 * companion, 0.46 * tall, 0.84 * tall
            faces = [_face(PEDESTRIAN, trousers, (x - 0.13, x + 0.13, x + foot + 0.08, x + foot - 0.08), (hip, hip, 0, 0), z)
                     for foot in (-stride, stride)]  # fmt: skip
            coat = (x - 0.24, x + 0.24, x + 0.2, x - 0.2)
            faces.append(_face(PEDESTRIAN, pick.colour((*COATS, *BRIGHT)), coat, (neck, neck, hip, hip), z))
            faces.append(_disc(PEDESTRIAN, pick.colour(COATS[:4]), x, 0.94 * tall, 0.13, z))
            faces.append(_disc(PEDESTRIAN, pick.colour(SKIN), x, 0.92 * tall, 0.11, z))
            people.append(pick.thing(x, z, 0.3, tall, faces, speed=(speed, 0) if crossing else (0, speed)))
    return people
