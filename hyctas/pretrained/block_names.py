"""Find the blocks of a trained network in the names of its tensors, for each set of names that is read."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

Pair = tuple[str, str]
"""Names of a convolution and of the batch norm after it."""
Blocks = list[tuple[str, dict[str, Pair]]]
"""(operator, layers) of every block, stem first."""


@dataclass(frozen=True)
class Naming:
    """A set of names in use."""

    name: str
    found: Collection[str]
    """Tensors that tell this naming from the others."""
    blocks: Callable[[Collection[str]], Blocks]
    left_out: re.Pattern[str]
    """Tensors of the classifier, and of the 1x1 convolution before it."""


def _indices(pattern: str, names: Collection[str]) -> list[tuple[int, ...]]:
    """List the numbers in names that match, in numerical order."""
    found = (re.match(pattern, name) for name in names)
    return sorted({tuple(int(number) for number in match.groups()) for match in found if match})


def _lite_pytorch(names: Collection[str]) -> Blocks:
    blocks: Blocks = [("conv", {"conv": ("_conv_stem", "_bn0")})]
    for (index,) in _indices(r"_blocks\.(\d+)\.", names):
        at = f"_blocks.{index}."
        layers = {"expand": (f"{at}_expand_conv", f"{at}_bn0")} if f"{at}_expand_conv.weight" in names else {}
        layers |= {"depthwise": (f"{at}_depthwise_conv", f"{at}_bn1"), "project": (f"{at}_project_conv", f"{at}_bn2")}
        blocks.append(("inverted", layers))
    return blocks


def _timm_mobile(names: Collection[str]) -> Blocks:
    blocks: Blocks = [("conv", {"conv": ("conv_stem", "bn1")})]
    for stage, index in _indices(r"blocks\.(\d+)\.(\d+)\.", names):
        at = f"blocks.{stage}.{index}."
        if f"{at}conv_pwl.weight" in names:
            layers = {"expand": (f"{at}conv_pw", f"{at}bn1"), "depthwise": (f"{at}conv_dw", f"{at}bn2")}
            layers |= {"project": (f"{at}conv_pwl", f"{at}bn3")}
        else:
            layers = {"depthwise": (f"{at}conv_dw", f"{at}bn1"), "project": (f"{at}conv_pw", f"{at}bn2")}
        blocks.append(("inverted", layers))
    return blocks


def _torchvision_mobilenetv2(names: Collection[str]) -> Blocks:
    blocks: Blocks = [("conv", {"conv": ("features.0.0", "features.0.1")})]
    for (index,) in _indices(r"features\.(\d+)\.conv\.", names):
        at = f"features.{index}.conv."
        if f"{at}1.0.weight" in names:
            layers = {"expand": (f"{at}0.0", f"{at}0.1"), "depthwise": (f"{at}1.0", f"{at}1.1"), "project": (f"{at}2", f"{at}3")}
        else:
            layers = {"depthwise": (f"{at}0.0", f"{at}0.1"), "project": (f"{at}1", f"{at}2")}
        blocks.append(("inverted", layers))
    return blocks


def _resnet(names: Collection[str]) -> Blocks:
    blocks: Blocks = [("conv", {"conv": ("conv1", "bn1")}), ("pool", {})]
    for stage, index in _indices(r"layer(\d+)\.(\d+)\.", names):
        at = f"layer{stage}.{index}."
        layers = {"first": (f"{at}conv1", f"{at}bn1"), "second": (f"{at}conv2", f"{at}bn2")}
        if f"{at}downsample.0.weight" in names:
            layers["shortcut"] = (f"{at}downsample.0", f"{at}downsample.1")
        blocks.append(("residual", layers))
    return blocks


NAMINGS = (
    Naming("efficientnet-lite-pytorch", ("_conv_stem.weight",), _lite_pytorch, re.compile(r"_conv_head\.|_bn1\.|_fc\.")),
    Naming("timm", ("conv_stem.weight", "blocks.0.0.conv_dw.weight"), _timm_mobile, re.compile(r"conv_head\.|bn2\.|classifier\.")),
    Naming(
        "torchvision",
        ("features.0.0.weight", "features.1.conv.0.0.weight"),
        _torchvision_mobilenetv2,
        re.compile(r"features\.\d+\.[01]\.|classifier\."),
    ),
    Naming("resnet", ("conv1.weight", "layer1.0.conv1.weight"), _resnet, re.compile(r"fc\.")),
)


def naming_of(names: Collection[str]) -> Naming | None:
    """Return the naming that tensors follow, or None."""
    return next((naming for naming in NAMINGS if all(name in names for name in naming.found)), None)
