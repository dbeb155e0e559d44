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


class Street:
    """Everything that a clip shows, and how its camera moves, drawn by a generator."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        overcast, gain, warmth = self.chance(0.45), self.between(0.62, 1.12), self.between(-0.07, 0.08)
        self.road, self.pavement = self.between(2.9, 5.2), self.between(1.6, 3.6)  # half the width of the road; of a pavement
        self.sun = self.between(0.35, 1) * (not overcast) * rng.choice((-1, 1))  # where shadows fall; 0: nowhere
        self.camera = (self.between(0.3, 0.6) * self.road, self.between(1.25, 1.75))  # x and height
        top = ((150, 156, 164), (205, 208, 210)) if overcast else ((92, 136, 190), (128, 164, 204))
        low = ((196, 200, 204),) if overcast else ((196, 200, 204), (226, 200, 168))
        self.mirrored = self.chance(0.5)
        self.speed = self.between(0.25, 1.3)
        self.horizon = self.between(0.38, 0.52)  # share of the image that is above it
        # the vanishing point's shift as a share of the width: at the first frame, per frame
        self.yaw = (self.between(-0.09, 0.09), self.between(-0.008, 0.008))
        self.curve, self.slope = self.between(-1, 1) ** 3 * 0.004, self.between(-0.02, 0.03)
        self.sky = (self.colour(top), self.colour(low))  # above, and at the horizon
        self.haze = self.between(0.002, 0.012)
        self.light = (gain * (1 + warmth), gain, gain * (1 - warmth))
        self.noise = self.between(0.008, 0.035)
        self.ground, self.roadside = _ground(self), _roadside(self)
        self.objects = _furniture(self) + _traffic(self) + _people(self)

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


def _ground(street: Street) -> list[Face]:
    """Lay pavement, grass, kerb and road from the far end on, then the markings, and the silhouettes behind it all."""
    paving, asphalt = street.colour((*GREYS[1:], (158, 140, 120)), 8), street.colour(GREYS[:4], 8)
    beside = (VEGETATION, street.colour(LEAVES[:4])) if street.chance(0.2) else (PAVEMENT, paving)
    road, edge = street.road, street.road + street.pavement
    lanes = [(60.0, *beside), (edge, PAVEMENT, paving), (road + 0.18, PAVEMENT, _shade(paving, 1.15)), (road, ROAD, asphalt)]
    faces, x = [], -90.0
    while x < 90:
        width, height, wood = street.between(6, 20), street.between(3, 14), street.chance(0.5)
        faces += [_disc(VEGETATION, LEAVES[1], x, 0, min(width, height) * 0.6, FAR) if wood else
                  _board(BUILDING, GREYS[2], x, width, (0, height), FAR)]  # fmt: skip
        x += width * street.between(0.6, 1.0)
    for near, far in reversed(list(pairwise(DEPTHS))):
        faces += [_flat(kind, colour, -half, half, near, far) for half, kind, colour in lanes]
    if dash := street.rng.choice((0.0, 2.0, 3.0)):
        faces += [_flat(ROAD, PALE, -0.08, 0.08, z, z + dash) for z in np.arange(0, 60, 2.5 * dash)]
    if street.chance(0.25):
        z = street.between(8, 26)
        faces += [_flat(ROAD, PALE, x, x + 0.5, z, z + 3) for x in np.arange(0.3 - road, road - 0.4)]
    return faces


def _roadside(street: Street) -> list[Thing]:
    """Line both sides with houses, and the gaps between them with fences and trees."""
    things, built_up = [], street.between(0.45, 0.95)
    for side in (-1, 1):
        z, x = -6.0, side * (street.road + street.pavement + street.between(0, 1.5))
        while z < FAR:
            length = street.between(6, 18)
            things += [_house(street, side, x, z, length)] if street.chance(built_up) else _gap(street, side, x, z, length)
            z += length + street.rng.choice((0.0, 2.5))
    return things


def _gap(street: Street, side: int, x: float, z: float, length: float) -> list[Thing]:
    trees = [_tree(street, x + side * street.between(0.5, 6), z + street.between(0, length), 0.5) for _ in range(int(length / 2))]
    if street.chance(0.3):
        return trees
    height, colour = street.between(0.9, 1.9), street.colour((*WALLS[:4], *GREYS[:3]))
    starts = [(z, length)] if street.chance(0.4) else [(z + i * 0.6, 0.4) for i in range(int(length / 0.6))]
    pickets = [_wall(FENCE, colour, x, (0, height), (start, start + extent)) for start, extent in reversed(starts)]
    return [*trees, street.thing(x, z, 0.1, height, pickets, length)]


def _house(street: Street, side: int, x: float, z: float, length: float) -> Thing:
    storeys, columns, storey = int(street.between(1.6, 6)), max(2, round(length / street.between(2.4, 4))), street.between(2.8, 3.6)
    wall, glass, bay = street.colour(WALLS, 14), street.colour(GLASS), length / columns
    faces = street.box(BUILDING, wall, x + side * 7, 14, (0, storeys * storey + 0.8), (z, z + length))
    for floor in range(storeys if z < 45 else 0):
        for column in reversed(range(columns)):
            low, start = 0.6 + (floor + 0.2) * storey, z + (column + 0.25) * bay
            tint = _shade(glass, street.between(0.8, 1.2))
            faces.insert(-1, _wall(BUILDING, tint, x, (low, low + 0.55 * storey), (start, start + bay / 2)))
    if street.chance(0.3):
        faces.insert(-1, _wall(BUILDING, street.colour(BRIGHT), x - side * 0.3, (2.3, 3.0), (z + 0.4, z + length - 0.4)))
    return street.thing(x, z, 0.1, storeys * storey, faces, length)


def _tree(street: Street, x: float, z: float, bush: float) -> Thing:
    leaf, low = street.colour(LEAVES), street.chance(bush)
    radius = street.between(0.6, 1.4) if low else street.between(1.2, 2.4)
    middle = radius * 0.6 if low else street.between(4, 8)
    faces = [_board(VEGETATION, BARK, x, 0.28, (0, middle), z)]
    for _ in range(5 if low else 9):
        dx, dy, size = street.between(-0.9, 0.9) * radius, street.between(-0.5, 0.6) * radius, radius * street.between(0.4, 0.8)
        lit = 1.1 if dx * street.sun < 0 else 0.9
        faces.append(_disc(VEGETATION, _shade(street.colour((leaf,)), lit), x + dx, max(0, middle + dy), size, z))
    return street.thing(x, z, radius, middle, faces, radius)


def _furniture(street: Street) -> list[Thing]:
    """Stand lamps, trees, signs, traffic lights and bins (which are ignored) on the pavements."""
    things, spacing, trees_too = [], street.between(12, 26), street.chance(0.6)
    for side in (-1, 1):
        kerb, lamps = side * (street.road + 0.5), street.chance(0.75)
        for z in np.arange(street.between(0, spacing), FAR * 0.8, spacing):
            if lamps:
                height, arm, colour = street.between(4.5, 8), street.between(0.6, 1.8), street.colour(GREYS)
                post = [_board(POLE, colour, kerb, street.between(0.12, 0.22), (0, height), z)]
                post.append(_board(POLE, colour, kerb - side * arm / 2, arm, (height, height + 0.15), z))
                things.append(street.thing(kerb, z, 0.2, height, post))
            if trees_too and street.chance(0.7):
                things.append(_tree(street, side * (street.road + min(1.0, street.pavement / 2)), z + spacing / 2, 0.0))
        things += [_sign(street, kerb + street.between(-0.2, 0.4), street.between(5, 45)) for _ in range(street.rng.integers(1, 5))]
        if street.chance(0.35):
            x, z, width = side * (street.road + street.pavement * 0.75), street.between(6, 30), street.between(0.5, 1.2)
            faces = street.box(IGNORE, street.colour((*GREYS, *LEAVES)), x, width, (0, 1), (z, z + 1))
            things.append(street.thing(x, z, width, 1, faces))
    return things


def _sign(street: Street, x: float, z: float) -> Thing:
    """Return a round, triangular or square sign, or a traffic light, on its pole."""
    y, size, shape = street.between(2.1, 2.9), street.between(0.3, 0.5), int(street.rng.choice((0, 3, 4, 12)))
    faces = [_board(POLE, street.colour(GREYS), x, street.between(0.08, 0.14), (0, y + 0.5), z)]
    if shape:
        faces.append(_disc(SIGN, street.colour((*BRIGHT, PALE)), x, y, size * 1.2, z, shape))
        faces.append(_disc(SIGN, PALE, x, y, size * 0.7, z, shape))
    else:
        lamp = street.rng.integers(3)
        faces.append(_board(SIGN, (40, 42, 42), x, size, (y - 1.3 * size, y + 1.3 * size), z))
        faces.append(_disc(SIGN, SIGNALS[lamp], x, y + (1 - lamp) * 0.8 * size, size * 0.35, z))
    return street.thing(x, z, 0.2, y, faces)


def _traffic(street: Street) -> list[Thing]:
    """Let cars drive on both lanes, and park at the kerb of a wide road."""
    cars = []
    for direction, x, most in ((1, street.road * 0.5, 3), (-1, -street.road * 0.45, 4)):
        z = street.between(8, 20)
        for _ in range(street.rng.integers(most)):
            cars.append(_car(street, x + street.between(-0.3, 0.3), z, direction * street.between(0.2, 1.2)))
            z += street.between(9, 25)
    for side in (-1, 1):
        if street.road > 3.8 and street.chance(0.5):
            starts = np.arange(street.between(2, 12), 60, street.between(5.5, 8))
            cars += [_car(street, side * (street.road - 0.9), z, 0.0) for z in starts if street.chance(0.65)]
    return cars


def _car(street: Street, x: float, z: float, speed: float) -> Thing:
    van = street.chance(0.2)
    length = street.between(4.6, 6.5) if van else street.between(3.7, 4.7)
    height = street.between(1.9, 2.7) if van else street.between(1.38, 1.65)
    width, belt, bonnet = street.between(1.65, 2.0), 1.15 if van else 0.9, 0.05 if van else 0.15 * length
    body, glass, cabin = street.colour((*COATS, *BRIGHT[:2], *BRIGHT[4:])), street.colour(GLASS), (z + bonnet, z + length - bonnet)
    faces = street.box(CAR, body, x, width, (0.22, belt), (z, z + length))
    side = width / 2 if x < street.camera[0] else -width / 2
    faces[1:1] = [_wall(CAR, DARK, x + side, (0, 0.6), (wheel, wheel + 0.6)) for wheel in (z + 0.15 * length, z + 0.75 * length)]
    faces += [_board(CAR, DARK, x + dx, 0.22, (0, 0.3), z) for dx in (0.15 - width / 2, width / 2 - 0.15)]
    lamp = (228, 226, 206) if speed < 0 else (164, 30, 28)
    faces += [_board(CAR, lamp, x + dx, 0.24, (belt - 0.3, belt - 0.12), z) for dx in (0.2 - width / 2, width / 2 - 0.2)]
    faces += street.box(CAR, glass, x, width - 0.25, (belt, height), cabin)
    faces += street.box(CAR, body, x, width - 0.25, (height - 0.14, height), cabin)
    return street.thing(x, z, width, 0.5, faces, length, (0, speed))


def _people(street: Street) -> list[Thing]:
    """Let people walk along the pavements or cross, alone or by two."""
    people = []
    for _ in range(street.rng.integers(1, 9)):
        crossing, side, speed = street.chance(0.2), street.rng.choice((-1, 1)), street.between(-0.2, 0.2)
        x = street.between(-1, 1) * street.road if crossing else side * (street.road + street.between(0.3, 0.95) * street.pavement)
        z = street.between(5, 20 if crossing else 36)
        for companion in range(1 + street.chance(0.3)):
            tall, trousers, stride = street.between(1.45, 1.9), street.colour(COATS[:4]), street.between(0.1, 0.28)
            x, hip, neck = x + 0.6 * companion, 0.46 * tall, 0.84 * tall
            faces = [_face(PEDESTRIAN, trousers, (x - 0.13, x + 0.13, x + foot + 0.08, x + foot - 0.08), (hip, hip, 0, 0), z)
                     for foot in (-stride, stride)]  # fmt: skip
            coat = (x - 0.24, x + 0.24, x + 0.2, x - 0.2)
            faces.append(_face(PEDESTRIAN, street.colour((*COATS, *BRIGHT)), coat, (neck, neck, hip, hip), z))
            faces.append(_disc(PEDESTRIAN, street.colour(COATS[:4]), x, 0.94 * tall, 0.13, z))
            faces.append(_disc(PEDESTRIAN, street.colour(SKIN), x, 0.92 * tall, 0.11, z))
            people.append(street.thing(x, z, 0.3, tall, faces, speed=(speed, 0) if crossing else (0, speed)))
    return people
