"""Hold the released code's weights: load them, compute with them in the released arithmetic, save them back as they came."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from export.errors import InvalidInput
from hyctas.arch.genotype import Genotype
from hyctas.arch.operators import FeatureFusion
from hyctas.network import Network, attach
from hyctas.nn.blocks import Block
from hyctas.plan import lower
from hyctas.published.names import Key, keys, unsupported
from hyctas.published.released import genotype

SHOWN = 5
"""Most keys that an error names."""


class PublishedNetwork(nn.Module):
    """A network with the released module set, in the genotype's arithmetic.

    `network` is what computes; what the released code holds but its logits do not need (the fusions at 1/16 and 1/32, where
    no auxiliary heads are asked for) is held and never executed. `state_dict()` has the released keys.
    """

    def __init__(self, genotype: Genotype, num_classes: int, *, auxiliary: bool = False) -> None:
        super().__init__()
        if cells := unsupported(genotype):
            raise InvalidInput(
                f"the released skip does not down-sample (a defect), so no released weights fit the skip of {', '.join(cells)}"
            )
        self.network = Network(genotype, num_classes, auxiliary=auxiliary)
        size = (self.network.multiple,) * 2
        plan = lower(genotype, (size[0], size[1]), num_classes, auxiliary=True)
        self.places: dict[str, str] = {node.name: f"network.{node.name}" for node in self.network.nodes}
        for node in plan.nodes:
            if node.name not in self.places and isinstance(node.operator, FeatureFusion):
                self.places[node.name] = f"held.{node.name}"
                attach(self, self.places[node.name], Block(node.operator))
        self.keys = [key for key in keys(plan) if key.node in self.places]
        self.loaded: tuple[str, ...] = tuple(key.published for key in self.keys if not key.counter)
        """Keys that `state_dict` gives: those of the checkpoint that was loaded."""

    @property
    def genotype(self) -> Genotype:
        """What the network is, in normal form."""
        return self.network.genotype

    def forward(self, image: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to semantic logits at the head's stride s (4; 8 for the light head): (N, classes, H/s, W/s).

        Sizes are rounded up; the released code fails at sizes that are no multiple of 32 (64 where a light-weight
        convolution works at 1/32).
        """
        return self.network.forward_native(image)

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """Return the tensors under the released keys (those that were loaded)."""
        if args:
            raise TypeError("state_dict takes keyword arguments only")
        destination = {} if destination is None else destination
        inner, wanted = self._inner(), set(self.loaded)
        for key in self.keys:
            if key.published in wanted:
                tensor = inner[f"{self.places[key.node]}.{key.tensor}"]
                tensor = tensor.reshape(1) if key.tensor.endswith(".value") else tensor
                destination[prefix + key.published] = tensor if keep_vars else tensor.detach()
        return destination

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load tensors under the released keys; aliases and batch counters may be absent.

        Raises:
            InvalidInput: a key is unknown or missing, a shape does not fit, a value is not finite, or an alias differs from
                the tensor it is a name of; the text names the keys.
        """
        if not strict or assign:
            raise TypeError("a published checkpoint is loaded as a whole: strict=True, assign=False")
        self._check(state_dict)
        inner = self._inner()
        with torch.no_grad():
            for key in self.keys:
                if key.published in state_dict and not key.alias:
                    target = inner[f"{self.places[key.node]}.{key.tensor}"]
                    target.copy_(state_dict[key.published].reshape(target.shape))
        self.loaded = tuple(key.published for key in self.keys if key.published in state_dict)

    def _inner(self) -> dict[str, Tensor]:
        return {**dict(self.named_parameters()), **dict(self.named_buffers())}

    def _check(self, state: Mapping[str, Any]) -> None:
        known, inner = {key.published: key for key in self.keys}, self._inner()
        if unknown := [name for name in state if name not in known]:
            raise InvalidInput(f"checkpoint: unknown keys {_some(unknown)}{_hint(unknown)}")
        needed = [key.published for key in self.keys if not key.alias and not key.counter]
        if missing := [name for name in needed if name not in state]:
            raise InvalidInput(f"checkpoint: missing keys {_some(missing)}; was it written for another network or head?")
        owners = {(key.node, key.tensor): key.published for key in self.keys if not key.alias}
        for name in state:
            key: Key = known[name]
            tensor = state[name]
            if not isinstance(tensor, Tensor):
                raise InvalidInput(f"checkpoint: {name} is a {type(tensor).__name__}, expected a tensor")
            target = inner[f"{self.places[key.node]}.{key.tensor}"]
            shape = torch.Size([1]) if key.tensor.endswith(".value") else target.shape
            if tensor.shape != shape:
                raise InvalidInput(
                    f"checkpoint: {name} has shape {tuple(tensor.shape)}, expected {tuple(shape)}; "
                    "was it written for another base width, number of classes or head?"
                )
            if not torch.isfinite(tensor).all():
                raise InvalidInput(f"checkpoint: {name} holds NaN or infinity")
            owner = owners[key.node, key.tensor]
            if key.alias and (owner not in state or not torch.equal(tensor, state[owner])):
                raise InvalidInput(
                    f"checkpoint: {name} is another name of {owner} (branches share this cell), but their values differ"
                )


def load_checkpoint(
    network: str | Genotype, state_dict: Mapping[str, Tensor], head: int | str = 1, *, auxiliary: bool = False
) -> PublishedNetwork:
    """Build a released network and load its weights.

    Args:
        network: "S", "M" or "L" (base width and number of classes are read off the tensors), or a genotype, whose own head
            counts.
        state_dict: tensors under the released keys. Aliases of shared cells and batch counters may be absent.
        head: 1, 2, or 0 ("light"); for a name.
        auxiliary: hold the auxiliary heads at 1/16 and 1/32 too; the checkpoint must have them.

    Returns:
        A module whose eval mode gives the semantic logits at stride 4 (8 for the light head), and whose `state_dict()` is what
        was loaded. Panoptic heads are held where the checkpoint has them.

    Raises:
        InvalidInput: an unknown name or head, or a key that is unknown, missing, wrongly shaped, not finite, or an alias of a
            different value; the text names it.
    """
    classes = _leading("sem_head.predictor.weight", state_dict)
    if isinstance(network, str):
        base = _leading("backbone.stem1.0.weight", state_dict) // 4
        panoptic = any(name.startswith("ins_head.") for name in state_dict)
        network = genotype(network, base, head, panoptic=panoptic)
    module = PublishedNetwork(network, classes, auxiliary=auxiliary)
    module.load_state_dict(state_dict)
    return module.eval()


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read a file that the released training code saved (torch.save), without executing anything from it.

    A dictionary around the tensors (`state_dict`, `model`) and the prefix `module.` of parallel training are taken off.

    Raises:
        InvalidInput: no such file, not a file of torch.save, or without tensors.
    """
    if not path.is_file():
        raise InvalidInput(f"there is no checkpoint {path}")
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, LookupError, TypeError, AttributeError, pickle.UnpicklingError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InvalidInput(f"{path} is not a checkpoint of plain tensors as torch.save writes it ({first})") from None
    for name in ("state_dict", "model"):
        if isinstance(value, dict) and isinstance(value.get(name), dict):
            value = value[name]
    if not isinstance(value, dict) or not value or not all(isinstance(name, str) for name in value):
        raise InvalidInput(f"{path} holds no state dict (names and tensors)")
    return {name.removeprefix("module."): tensor for name, tensor in value.items()}


def _leading(name: str, state: Mapping[str, Any]) -> int:
    """Return the first dimension of a tensor that every checkpoint has."""
    tensor = state.get(name)
    if not isinstance(tensor, Tensor) or tensor.dim() != 4:
        raise InvalidInput(
            f"checkpoint: missing keys {name}; give the state dict of a released network (not wrapped in another dictionary, "
            'without the prefix "module.")'
        )
    return int(tensor.shape[0])


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _hint(unknown: list[str]) -> str:
    if any("_head_aux" in name for name in unknown):
        return "; auxiliary heads are held with auxiliary=True"
    if any(name.startswith("ins_head") for name in unknown):
        return "; an instance head needs a panoptic genotype (hyctas.published.genotype(..., panoptic=True))"
    return "; was it written for another network or head?"
