"""Turn the tensors of a trained classification network into a `SourceTrunk`, or say what is in the way."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from export.errors import InvalidInput
from hyctas.pretrained.block_names import Naming, Pair, naming_of
from hyctas.pretrained.families import LITE, LITE_TIMM, MOBILENETV2, RESNET, SUPPORTED, Family
from hyctas.pretrained.state_file import WITHOUT
from hyctas.pretrained.trunk import EPS, NormedConv, SourceBlock, SourceTrunk

COUNTER = "num_batches_tracked"
STATISTICS = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where tensors came from; goes into the run's record."""

    sha256: str
    licence: str
    origin: str


def read_trunk(state: Mapping[str, Tensor], name: str, provenance: Provenance) -> SourceTrunk:
    """Find family and blocks in a state dict.

    Args:
        state: tensors under the names of a supported package. Those of the classifier may be absent.
        name: what the user gave; errors begin with it, and where timm has two trainings under the same tensor names
            (`tf_efficientnet_lite0`, `efficientnet_lite0`) it tells them apart.
        provenance: is copied into the result.

    Raises:
        InvalidInput: no supported network; the text names what was found, what is supported, and how to go without.
    """
    naming = naming_of(state)
    if naming is None:
        first = ", ".join(list(state)[:3])
        raise unsupported(name, f"{len(state)} tensors under unknown names ({first}, ...)")
    listed = naming.blocks(state)
    _check_names(state, naming, [pair for _, layers in listed for pair in layers.values()], name)
    blocks, channels = [], 3
    for op, layers in listed:
        read = {role: _pair(state, pair, name) for role, pair in layers.items()}
        block = _block(op, read, channels, f"{name}: {next(iter(layers.values()), ('', ''))[0]}")
        blocks.append(block)
        channels = block.out
    family = _resnet_family(blocks, name) if naming.name == "resnet" else _mobile_family(blocks, naming, name)
    return SourceTrunk(
        family=family.name,
        blocks=tuple(_finished(block, stride, family) for block, stride in zip(blocks, _strides(blocks, family), strict=True)),
        mean=family.mean,
        std=family.std,
        symmetric_padding=family.symmetric_padding,
        sha256=provenance.sha256,
        licence=provenance.licence,
        origin=provenance.origin,
    )


def unsupported(name: str, found: str) -> InvalidInput:
    """Return the error for weights that fit none of our operators."""
    return InvalidInput(f"{name}: found {found}; weights are taken from {SUPPORTED}: give one of these", WITHOUT)


def _check_names(state: Mapping[str, Tensor], naming: Naming, pairs: list[Pair], name: str) -> None:
    """Refuse missing tensors, and tensors that belong to no block: the network would compute something else with them."""
    needed = {f"{conv}.weight" for conv, _ in pairs} | {f"{norm}.{part}" for _, norm in pairs for part in STATISTICS}
    if missing := sorted(needed - set(state)):
        raise unsupported(name, f"names of {naming.name}, but no {missing[0]} ({len(missing)} tensors missing)")
    others = [key for key in state if key not in needed and not key.endswith(COUNTER) and not naming.left_out.match(key)]
    if others:
        raise unsupported(name, f"names of {naming.name}, but with {others[0]}, which is in none of their blocks")


def _pair(state: Mapping[str, Tensor], pair: Pair, name: str) -> NormedConv:
    """Read a convolution and its norm, and check them as far as they can be checked alone."""
    conv, norm = pair
    keys = [f"{conv}.weight", *(f"{norm}.{part}" for part in STATISTICS)]
    for key in keys:
        tensor = state[key]
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            raise InvalidInput(f"{name}: {key} holds no floating-point numbers (quantised?); give the weights before that")
        if not torch.isfinite(tensor).all():
            raise InvalidInput(f"{name}: {key} holds NaN or infinity")
    tensors = [state[key].detach().to(device="cpu", dtype=torch.float32, copy=True).contiguous() for key in keys]
    if tensors[0].dim() != 4 or tensors[0].shape[2] != tensors[0].shape[3]:
        raise unsupported(name, f"{conv}.weight of shape {tuple(tensors[0].shape)}, which is no square 2-D convolution")
    if any(tensor.shape != tensors[0].shape[:1] for tensor in tensors[1:]):
        raise unsupported(name, f"{norm} of shape {tuple(tensors[1].shape)} after {conv} of {tuple(tensors[0].shape)}")
    if (tensors[4] < 0).any():
        raise InvalidInput(f"{name}: {norm}.running_var holds negative variances")
    return NormedConv(*tensors)


def _block(op: str, layers: dict[str, NormedConv], channels: int, where: str) -> SourceBlock:
    """Derive a block from its shapes and compare these with what its operator is; stride and activation come later."""
    shapes = {role: tuple(layer.weight.shape) for role, layer in layers.items()}
    out, kernel, expansion = channels, 3, 1
    if op == "conv":
        out, _, kernel, _ = shapes["conv"]
        expected = {"conv": (out, channels, kernel, kernel)}
    elif op == "inverted":
        middle, _, kernel, _ = shapes["depthwise"]
        out, expansion = shapes["project"][0], middle // channels
        expected = {"expand": (channels * expansion, channels, 1, 1)} if "expand" in shapes else {}
        expected |= {"depthwise": (channels * expansion, 1, kernel, kernel), "project": (out, channels * expansion, 1, 1)}
    elif op == "residual":
        out = shapes["first"][0]
        expected = {"first": (out, channels, 3, 3), "second": (out, out, 3, 3)}
        if out != channels:
            expected["shortcut"] = (out, channels, 1, 1)
    else:
        expected = {}
    for role in shapes | expected:
        if shapes.get(role) != expected.get(role):
            raise unsupported(where, f"shape {shapes.get(role)} of {role}, where {expected.get(role)} is the published block's")
    return SourceBlock(op, out, 1, kernel, expansion, False, layers)


def _resnet_family(blocks: list[SourceBlock], name: str) -> Family:
    """Hold a ResNet to what its strides are derived from: a 7x7 stem, and four stages, each of another width."""
    changes = [before.out != block.out for before, block in pairwise(blocks[1:])]
    if blocks[0].kernel != 7 or changes[0] or sum(changes) != 3:
        widths = " ".join(str(block.out) for block in blocks[1:])
        raise unsupported(name, f"a ResNet with a {blocks[0].kernel}x{blocks[0].kernel} stem and blocks of widths {widths}")
    return RESNET


def _mobile_family(blocks: list[SourceBlock], naming: Naming, name: str) -> Family:
    """Tell EfficientNet-Lite from MobileNetV2 by kernels and expansions."""
    found = [(block.kernel, block.expansion) for block in blocks[1:]]
    for family in (LITE, MOBILENETV2):
        layout = family.layout(len(found))
        if layout is not None and found == [(stage.kernel, stage.expansion) for stage, _ in layout]:
            break
    else:
        shown = " ".join(f"k{kernel}e{expansion}" for kernel, expansion in found)
        raise unsupported(name, f"{len(found)} inverted residuals of an unknown network (kernels and expansions {shown})")
    if family is not LITE or naming.name != "timm":
        return family
    if said := re.findall(r"(tf_)?efficientnet_lite", name):
        return LITE if said[-1] else LITE_TIMM
    raise InvalidInput(
        f"{name}: found EfficientNet-Lite under timm's names, of which there are two trainings with different padding and batch "
        "norm; name the file after its model, tf_efficientnet_lite0 (TensorFlow's weights) or efficientnet_lite0 (timm's own)"
    )


def _strides(blocks: list[SourceBlock], family: Family) -> list[int]:
    """Return every block's stride; in a ResNet it is 2 where the width changes (torchvision's and timm's rule)."""
    layout = family.layout(len(blocks) - 1)
    if layout is not None:
        return [2, *(stride for _, stride in layout)]
    strides = [2, 2]
    for before, block in pairwise(blocks[1:]):
        strides.append(1 if block.out == before.out else 2)
    return strides


def _finished(block: SourceBlock, stride: int, family: Family) -> SourceBlock:
    layers = {role: _converted(layer, family.eps) for role, layer in block.layers.items()}
    return replace(block, stride=stride, relu6=family.relu6, layers=layers)


def _converted(layer: NormedConv, eps: float) -> NormedConv:
    """Change the norm's weight so that the norm with `EPS` computes what it did with `eps`."""
    if eps == EPS:
        return layer
    variance = layer.running_var.double()
    factor = ((variance + EPS) / (variance + eps)).sqrt()
    return replace(layer, norm_weight=(layer.norm_weight.double() * factor).float())
