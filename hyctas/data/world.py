"""Invent the street of a generated clip: what stands where, in metres, as plain frozen data.

Axes: x to the right of the road's centre line, y up from the ground, z ahead of the first camera position. The camera
drives on the right-hand lane towards +z; left-hand traffic is the mirror image (`Street.mirrored`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np

T = TypeVar("T")

Colour = tuple[int, int, int]
FAR = 90.0
"""How far ahead anything stands, in metres."""

# Colours are shared between classes on purpose: grey is road, pavement, building, car and sky; brick is building and
# autumn tree; bright is sign, car, coat, awning. What a pixel is has to be read from position and surroundings.
GREYS: tuple[Colour, ...] = ((92, 92, 96), (112, 110, 108), (132, 130, 128), (150, 148, 144), (170, 168, 164))
WALLS: tuple[Colour, ...] = (
    (146, 140, 130), (168, 158, 142), (128, 84, 68), (150, 102, 82), (112, 108, 108), (186, 180, 170), (98, 88, 80),
    (120, 122, 130), (178, 150, 112), (90, 98, 92),
)  # fmt: skip
LEAVES: tuple[Colour, ...] = ((62, 82, 44), (78, 98, 54), (52, 66, 46), (98, 98, 52), (120, 92, 52), (76, 72, 58))
BRIGHT: tuple[Colour, ...] = (
    (176, 42, 38), (40, 70, 150), (206, 178, 58), (40, 110, 78), (214, 214, 210), (60, 140, 180), (200, 110, 40),
)  # fmt: skip
CARS: tuple[Colour, ...] = (
    (112, 112, 116), (140, 142, 146), (74, 76, 80), (38, 40, 44), (206, 206, 204), (150, 38, 36), (44, 66, 118),
    (92, 98, 90), (168, 158, 140),
)  # fmt: skip
COATS: tuple[Colour, ...] = (
    (44, 44, 50), (70, 66, 64), (36, 44, 66), (104, 100, 96), (140, 56, 48), (84, 90, 70), (176, 170, 158),
    (52, 96, 130),
)  # fmt: skip
SKIN: tuple[Colour, ...] = ((214, 170, 140), (168, 120, 90), (104, 72, 54), (232, 192, 164))


@dataclass(frozen=True)
class House:
    """A building along the street; its front wall stands at |x| = `x`."""

    side: int
    x: float
    near: float
    far: float
    height: float
    storeys: int
    columns: int
    wall: Colour
    window: Colour
    awning: Colour | None


@dataclass(frozen=True)
class Barrier:
    """A fence along a gap between buildings."""

    side: int
    x: float
    near: float
    far: float
    height: float
    colour: Colour
    solid: bool


@dataclass(frozen=True)
class Tree:
    """A tree (`trunk` > 0) or a bush: blobs of (dx, y, radius, colour)."""

    x: float
    z: float
    trunk: float
    blobs: tuple[tuple[float, float, float, Colour], ...]


@dataclass(frozen=True)
class Pole:
    """A post, perhaps with an arm over the road and a sign or traffic light on it."""

    x: float
    z: float
    height: float
    width: float
    colour: Colour
    arm: float
    sign: str
    """`disc`, `triangle`, `panel`, `light` or empty."""
    sign_height: float
    sign_size: float
    sign_colour: Colour


@dataclass(frozen=True)
class Car:
    """A vehicle; `speed` in metres per frame, negative = towards the camera."""

    x: float
    z: float
    speed: float
    length: float
    width: float
    height: float
    van: bool
    paint: Colour
    glass: Colour


@dataclass(frozen=True)
class Person:
    """Somebody on foot; speeds in metres per frame."""

    x: float
    z: float
    speed_x: float
    speed_z: float
    height: float
    coat: Colour
    trousers: Colour
    skin: Colour
    phase: float


@dataclass(frozen=True)
class Bin:
    """A thing of no class (bin, box, bench): its pixels are ignored."""

    x: float
    z: float
    width: float
    height: float
    colour: Colour


@dataclass(frozen=True)
class Street:
    """Everything that a clip shows, and how its camera moves."""

    mirrored: bool
    road: float
    """Half the width of the road."""
    pavement: float
    """Width of each pavement."""
    curve: float
    slope: float
    camera: tuple[float, float]
    """Camera x and height."""
    speed: float
    horizon: float
    """Height of the horizon as a fraction of the image from above."""
    yaw: tuple[float, float]
    """Shift of the vanishing point as a fraction of the width: at the first frame, per frame."""
    asphalt: Colour
    paving: Colour
    verge: Colour | None
    """Colour of a grass strip beside the road, if any."""
    dashes: float
    """Length of the centre line's dashes; 0 = none."""
    zebra: float
    """Distance of a zebra crossing; 0 = none."""
    sky: tuple[Colour, Colour]
    """Colour above and at the horizon."""
    haze: float
    sun: float
    """-1..1: where shadows fall; 0 = overcast, no shadows."""
    light: tuple[float, float, float]
    noise: float
    skyline: tuple[tuple[float, float, float, bool], ...]
    """Far silhouettes: left and right as fractions of the width, height in metres, whether it is trees."""
    houses: tuple[House, ...]
    barriers: tuple[Barrier, ...]
    objects: tuple[Tree | Pole | Car | Person | Bin, ...]


def invent_street(rng: np.random.Generator) -> Street:
    """Draw a street."""
    pick = _Pick(rng)
    road, pavement = pick.between(2.9, 5.2), pick.between(1.6, 3.6)
    overcast = pick.chance(0.45)
    sky_top = pick.of((pick.near((150, 156, 164), 16), pick.near((205, 208, 210), 14)) if overcast else
                      (pick.near((92, 136, 190), 14), pick.near((128, 164, 204), 14)))  # fmt: skip
    sky_low = pick.near((196, 200, 204), 18) if overcast or pick.chance(0.6) else pick.near((226, 200, 168), 14)
    gain = pick.between(0.62, 1.12)
    warmth = pick.between(-0.07, 0.08)
    houses, barriers, plants = _roadside(pick, road + pavement)
    return Street(
        mirrored=pick.chance(0.5),
        road=road,
        pavement=pavement,
        curve=pick.between(-1, 1) ** 3 * 0.004,
        slope=pick.between(-0.02, 0.03),
        camera=(pick.between(0.3, 0.6) * road, pick.between(1.25, 1.75)),
        speed=pick.between(0.25, 1.3),
        horizon=pick.between(0.38, 0.52),
        yaw=(pick.between(-0.09, 0.09), pick.between(-0.008, 0.008)),
        asphalt=pick.near(pick.of(GREYS[:4]), 8),
        paving=pick.near(pick.of((*GREYS[1:], (158, 140, 120))), 8),
        verge=pick.near(pick.of(LEAVES[:4]), 8) if pick.chance(0.2) else None,
        dashes=pick.of((0.0, 2.0, 3.0)),
        zebra=pick.between(8, 26) if pick.chance(0.25) else 0.0,
        sky=(sky_top, sky_low),
        haze=pick.between(0.002, 0.012),
        sun=0.0 if overcast else pick.of((-1, 1)) * pick.between(0.35, 1.0),
        light=(gain * (1 + warmth), gain, gain * (1 - warmth)),
        noise=pick.between(0.008, 0.035),
        skyline=_skyline(pick),
        houses=houses,
        barriers=barriers,
        objects=(*plants, *_furniture(pick, road, pavement), *_traffic(pick, road), *_people(pick, road, pavement)),
    )


class _Pick:
    """Short names for the draws."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.rng.random()

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def of(self, items: tuple[T, ...]) -> T:
        return items[int(self.rng.random() * len(items))]

    def near(self, colour: Colour, spread: float) -> Colour:
        common = self.between(-spread, spread)
        red, green, blue = (int(min(255, max(0, c + common + self.between(-spread, spread) / 3))) for c in colour)
        return red, green, blue


def _skyline(pick: _Pick) -> tuple[tuple[float, float, float, bool], ...]:
    blocks, x = [], -0.4
    while x < 1.4:
        width = pick.between(0.05, 0.22)
        blocks.append((x, x + width, pick.between(3, 14), pick.chance(0.5)))
        x += width * pick.between(0.6, 1.0)
    return tuple(blocks)


def _roadside(pick: _Pick, line: float) -> tuple[tuple[House, ...], tuple[Barrier, ...], list[Tree]]:
    """Line both sides with houses, and gaps with fences, bushes and trees."""
    houses: list[House] = []
    barriers: list[Barrier] = []
    plants: list[Tree] = []
    built_up = pick.between(0.45, 0.95)
    for side in (-1, 1):
        z, setback = -6.0, line + pick.between(0.0, 1.5)
        while z < FAR:
            length = pick.between(6, 18)
            if pick.chance(built_up):
                storeys = int(pick.between(1.6, 6))
                houses.append(
                    House(
                        side, setback + pick.of((0.0, 0.0, 0.8)), z, z + length, storeys * pick.between(2.8, 3.6) + 0.8,
                        storeys,
                        max(2, round(length / pick.between(2.4, 4))), pick.near(pick.of(WALLS), 14),
                        pick.of((pick.near((58, 62, 70), 12), pick.near((120, 136, 152), 20))),
                        pick.near(pick.of(BRIGHT), 10) if pick.chance(0.3) else None,
                    )
                )  # fmt: skip
            else:
                if pick.chance(0.65):
                    barriers.append(
                        Barrier(side, setback, z, z + length, pick.between(0.9, 1.9),
                                pick.near(pick.of((*WALLS[:4], *GREYS[:3])), 12), pick.chance(0.4))
                    )  # fmt: skip
                for _ in range(int(length / 3)):
                    plants.append(_tree(pick, side * (setback + pick.between(1.5, 6)), z + pick.between(0, length), 0.5))
            z += length + pick.of((0.0, 0.0, 2.5))
    return tuple(houses), tuple(barriers), plants


def _tree(pick: _Pick, x: float, z: float, bush: float) -> Tree:
    leaf = pick.near(pick.of(LEAVES), 12)
    if pick.chance(bush):
        size = pick.between(0.6, 1.4)
        return Tree(x, z, 0.0, tuple(
            (pick.between(-1, 1) * size, size * pick.between(0.5, 1.0), size * pick.between(0.6, 0.9),
             pick.near(leaf, 14))
            for _ in range(5)
        ))  # fmt: skip
    height, radius = pick.between(4, 9), pick.between(1.2, 2.4)
    return Tree(x, z, height - radius, tuple(
        (pick.between(-0.8, 0.8) * radius, height + pick.between(-1.0, 0.8) * radius, radius * pick.between(0.4, 0.8),
         pick.near(leaf, 16))
        for _ in range(9)
    ))  # fmt: skip


def _furniture(pick: _Pick, road: float, pavement: float) -> list[Tree | Pole | Bin]:
    """Stand lamps, signs, lights, street trees and bins on the pavements."""
    things: list[Tree | Pole | Bin] = []
    spacing = pick.between(12, 26)
    trees_too = pick.chance(0.45)
    for side in (-1, 1):
        z = pick.between(0, spacing)
        lamps = pick.chance(0.75)
        while z < FAR * 0.8:
            x = side * (road + pick.between(0.3, 0.7))
            if lamps:
                things.append(Pole(x, z, pick.between(4.5, 8), pick.between(0.12, 0.22), pick.near(pick.of(GREYS), 12),
                                   -side * pick.between(0.6, 1.8), "", 0, 0, (0, 0, 0)))  # fmt: skip
            if trees_too and pick.chance(0.7):
                things.append(_tree(pick, side * (road + min(1.0, pavement / 2)), z + spacing / 2, 0.0))
            z += spacing * pick.between(0.8, 1.2)
        for _ in range(int(pick.between(1, 4.9))):
            kind = pick.of(("disc", "triangle", "panel", "light"))
            size = pick.between(0.6, 1.0)
            colour = pick.near((40, 42, 42) if kind == "light" else pick.of((*BRIGHT, (200, 200, 200))), 10)
            things.append(Pole(side * (road + pick.between(0.3, 0.9)), pick.between(5, 45), pick.between(2.5, 3.5),
                               pick.between(0.08, 0.14), pick.near(pick.of(GREYS), 12), 0.0, kind,
                               pick.between(2.1, 2.9), size, colour))  # fmt: skip
        if pick.chance(0.35):
            things.append(Bin(side * (road + pavement * pick.between(0.6, 0.9)), pick.between(6, 30),
                              pick.between(0.5, 1.2), pick.between(0.8, 1.2),
                              pick.near(pick.of((*GREYS, *LEAVES)), 10)))  # fmt: skip
    return things


def _traffic(pick: _Pick, road: float) -> list[Car]:
    cars: list[Car] = []
    for direction, x, count in ((1, road * 0.5, pick.between(0, 2.9)), (-1, -road * 0.45, pick.between(0, 3.9))):
        z = pick.between(8, 20)
        for _ in range(int(count)):
            cars.append(_car(pick, x + pick.between(-0.3, 0.3), z, direction * pick.between(0.2, 1.2)))
            z += pick.between(9, 25)
    for side in (-1, 1):
        if road < 3.8 or pick.chance(0.5):
            continue
        z = pick.between(2, 12)
        while z < 60:
            if pick.chance(0.65):
                cars.append(_car(pick, side * (road - 0.9), z, 0.0))
            z += pick.between(5.5, 8)
    return cars


def _car(pick: _Pick, x: float, z: float, speed: float) -> Car:
    van = pick.chance(0.2)
    return Car(x, z, speed, pick.between(4.6, 6.5) if van else pick.between(3.7, 4.7), pick.between(1.65, 2.0),
               pick.between(1.9, 2.7) if van else pick.between(1.38, 1.65), van, pick.near(pick.of(CARS), 10),
               pick.near(pick.of(((44, 50, 58), (86, 98, 108), (130, 146, 160))), 10))  # fmt: skip


def _people(pick: _Pick, road: float, pavement: float) -> list[Person]:
    people: list[Person] = []
    for _ in range(int(pick.between(1, 7.9))):
        crossing = pick.chance(0.2)
        side = pick.of((-1, 1))
        x = pick.between(-road, road) if crossing else side * (road + pick.between(0.3, 0.95) * pavement)
        z = pick.between(6, 20) if crossing else pick.between(5, 36)
        for companion in range(2 if pick.chance(0.3) else 1):
            speed_x, speed_z = (side * 0.15, 0.0) if crossing else (0.0, pick.of((-0.15, 0.15)))
            people.append(Person(x + 0.6 * companion, z, speed_x, speed_z, pick.between(1.45, 1.9),
                                 pick.near(pick.of(COATS), 10), pick.near(pick.of(COATS[:4]), 10),
                                 pick.of(SKIN), pick.between(0, 6.28)))  # fmt: skip
    return people
