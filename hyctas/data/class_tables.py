"""Name the classes of well-known data sets, and say how their label files denote them. Pure tables."""

from __future__ import annotations

from hyctas.data.coding import Coding, numbered
from hyctas.data.labels import CAMVID, CITYSCAPES, CITYSCAPES_IDS, IGNORE, Colour, Labels, default_colours


def _voc_colours(count: int) -> tuple[Colour, ...]:
    """Return Pascal VOC's colours: the bits of a class number, three at a time, are the high bits of R, G and B."""

    def channel(number: int, first: int) -> int:
        return sum((number >> (3 * place + first) & 1) << (7 - place) for place in range(3))

    return tuple((channel(n, 0), channel(n, 1), channel(n, 2)) for n in range(count))


_VOC_NAMES = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep "
    "sofa train tvmonitor"
).split()
VOC = Labels(tuple(_VOC_NAMES), _voc_colours(len(_VOC_NAMES)))
"""Pascal VOC's 20 classes behind the background, in its own colours."""

_ADE20K_NAMES = (
    "wall,building,sky,floor,tree,ceiling,road,bed,windowpane,grass,cabinet,sidewalk,person,earth,door,table,mountain,plant,"
    "curtain,chair,car,water,painting,sofa,shelf,house,sea,mirror,rug,field,armchair,seat,fence,desk,rock,wardrobe,lamp,bathtub,"
    "railing,cushion,base,box,column,signboard,chest of drawers,counter,sand,sink,skyscraper,fireplace,refrigerator,grandstand,"
    "path,stairs,runway,case,pool table,pillow,screen door,stairway,river,bridge,bookcase,blind,coffee table,toilet,flower,book,"
    "hill,bench,countertop,stove,palm,kitchen island,computer,swivel chair,boat,bar,arcade machine,hovel,bus,towel,light,truck,"
    "tower,chandelier,awning,streetlight,booth,television receiver,airplane,dirt track,apparel,pole,land,bannister,escalator,"
    "ottoman,bottle,buffet,poster,stage,van,ship,fountain,conveyer belt,canopy,washer,plaything,swimming pool,stool,barrel,basket,"
    "waterfall,tent,bag,minibike,cradle,oven,ball,food,step,tank,trade name,microwave,pot,animal,bicycle,lake,dishwasher,screen,"
    "blanket,sculpture,hood,sconce,vase,traffic light,tray,ashcan,fan,pier,crt screen,plate,monitor,bulletin board,shower,radiator,"
    "glass,clock,flag"
).split(",")
ADE20K = Labels(tuple(_ADE20K_NAMES), default_colours(len(_ADE20K_NAMES)))
"""The 150 classes of ADE20K's scene parsing benchmark."""

CAMVID_32: dict[str, tuple[Colour, str | None]] = {
    "Sky": ((128, 128, 128), "Sky"),
    "Building": ((128, 0, 0), "Building"),
    "Wall": ((64, 192, 0), "Building"),
    "Bridge": ((0, 128, 64), "Building"),
    "Tunnel": ((64, 0, 64), "Building"),
    "Archway": ((192, 0, 128), "Building"),
    "Column_Pole": ((192, 192, 128), "Pole"),
    "TrafficCone": ((0, 0, 64), "Pole"),
    "Road": ((128, 64, 128), "Road"),
    "LaneMkgsDriv": ((128, 0, 192), "Road"),
    "LaneMkgsNonDriv": ((192, 0, 64), "Road"),
    "Sidewalk": ((0, 0, 192), "Pavement"),
    "ParkingBlock": ((64, 192, 128), "Pavement"),
    "RoadShoulder": ((128, 128, 192), "Pavement"),
    "Tree": ((128, 128, 0), "Tree"),
    "VegetationMisc": ((192, 192, 0), "Tree"),
    "SignSymbol": ((192, 128, 128), "SignSymbol"),
    "Misc_Text": ((128, 128, 64), "SignSymbol"),
    "TrafficLight": ((0, 64, 64), "SignSymbol"),
    "Fence": ((64, 64, 128), "Fence"),
    "Car": ((64, 0, 128), "Car"),
    "SUVPickupTruck": ((64, 128, 192), "Car"),
    "Truck_Bus": ((192, 128, 192), "Car"),
    "Train": ((192, 64, 128), "Car"),
    "OtherMoving": ((128, 64, 64), "Car"),
    "Pedestrian": ((64, 64, 0), "Pedestrian"),
    "Child": ((192, 128, 64), "Pedestrian"),
    "CartLuggagePram": ((64, 0, 192), "Pedestrian"),
    "Animal": ((64, 128, 64), "Pedestrian"),
    "Bicyclist": ((0, 128, 192), "Bicyclist"),
    "MotorcycleScooter": ((192, 0, 192), "Bicyclist"),
    "Void": ((0, 0, 0), None),
}
"""CamVid as it was published: the colour of each of its 32 classes, and which of the 11 usual ones takes it (none: ignored)."""

CAMVID_NUMBERS = numbered(
    CAMVID, ignored=(CAMVID.num_classes, IGNORE), colours=CAMVID.colours, ignored_colours=((0, 0, 0),)
)  # fmt: skip
"""CamVid as the SegNet papers distribute it."""
CAMVID_COLOURS = Coding(
    labels=CAMVID, values={}, palettes="colours",
    colours={colour: IGNORE if name is None else CAMVID.names.index(name) for colour, name in CAMVID_32.values()},
)  # fmt: skip
CITYSCAPES_LABEL_IDS = numbered(
    CITYSCAPES, CITYSCAPES_IDS, ignored=[*(i for i in range(34) if i not in CITYSCAPES_IDS), IGNORE]
)  # fmt: skip
CITYSCAPES_TRAIN_IDS = numbered(CITYSCAPES)
ADE20K_NUMBERS = numbered(ADE20K, range(1, ADE20K.num_classes + 1), ignored=(0,))
VOC_INDICES = numbered(VOC, colours=VOC.colours, ignored_colours=((224, 224, 192),))
"""Palette files as distributed, or the same painted in RGB; the cream-coloured outlines are ignored."""
