"""Choose how each attention of a network is computed, per shape, by measurement: plugin, native fused, decomposed. No torch here.

For every distinct shape of the network's attention nodes, each implementation on offer is built into a small engine of its own,
held against a float64 reference, and timed in turns with the others (`export.trt.attention_trial`). The fastest that is right is
taken; the plugin only where it is faster by `PLUGIN_GAIN`, since native code fuses with what surrounds it. What was refused or
failed is kept with its reason.

| implementation | is                                                            | refused where                                   |
|----------------|---------------------------------------------------------------|-------------------------------------------------|
| `plugin`       | our kernel (`export.trt.plugin`)                              | TensorRT < 10.16; no kernel for GPU or shape    |
| `small-plugin` | the same with less shared memory, 48 KiB per block            | likewise; not on offer where `plugin` is small  |
| `native`       | ONNX's operator Attention: a layer of TensorRT's for it       | TensorRT < 10.14; as `fused`                    |
| `fused`        | a body that TensorRT turns into one kernel of its own         | channels, dtype or number of keys do not suit   |
| `decomposed`   | a body of plain products and softmax                          | its logits take too much memory                 |
| `chunked`      | the same, some queries at a time                              | the whole fits                                  |

What is on offer comes from the caller (`Offer`), as do the means to build and run (`Lab`): nothing here knows an operator's bodies.

`HYCTAS_TENSORRT_ATTENTION=fused,decomposed,chunked` names all that may be taken, whatever the command; unset, that is everything.
It is for a kernel that breaks CUDA (`CudaBroken`): an illegal access leaves nothing in the process usable, so no other can be tried
in its place.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from export.onnx_function import OnnxFunction, nodes_of
from export.trt.attention_case import AttentionCase, graph_of
from export.trt.attention_trial import (
    IMPLEMENTATIONS,
    VARIABLE,
    Lab,
    NoAttention,
    Offer,
    Rounds,
    Trial,
    allowed_implementations,
    placed,
)

if TYPE_CHECKING:
    import onnx

    from export.plugin_kernel import PluginKernel


class Memory(Protocol):
    """What was chosen before on this machine, under the same conditions."""

    def get(self, case: AttentionCase, offered: Sequence[str]) -> dict[str, Any] | None:
        """Return the fields of a `Choice` that measuring decided among these implementations; None where there are none."""
        ...

    def put(self, case: AttentionCase, offered: Sequence[str], chosen: dict[str, Any]) -> None:
        """Keep them."""
        ...


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What was chosen for one case, and why."""

    case: AttentionCase
    nodes: tuple[str, ...]
    """The nodes of this shape."""
    implementation: str
    reason: str
    body: str = ""
    """Of the function; empty for the plugin."""
    plugin: str = ""
    """The plugin's name; empty for the others."""
    times_ms: Mapping[str, float] = field(default_factory=dict)
    """Median by implementation; empty where nothing was measured."""
    parity: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Relative error by implementation and kind of inputs (`KINDS`)."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Why not, by implementation."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values; errors that are infinite (an output was not finite) become the text `not finite`."""
        finite = {name: {kind: _plain(value) for kind, value in errors.items()} for name, errors in self.parity.items()}
        return {**asdict(self), "nodes": list(self.nodes), "parity": finite}


@dataclass(frozen=True)
class AttentionChoice:
    """A network's graph with an implementation in every attention's place, and how it came about."""

    model: onnx.ModelProto = field(repr=False)
    """Standard operators and plugin nodes alone: the bodies stand in their nodes' places."""
    choices: tuple[Choice, ...]
    """Per shape; none for a network without attention."""
    measured: bool

    @property
    def plugins(self) -> tuple[str, ...]:
        """The names of the plugins that the graph has nodes of."""
        return tuple(sorted({choice.plugin for choice in self.choices if choice.plugin}))

    def to_json(self) -> dict[str, Any]:
        """Return what a manifest holds as `attention`."""
        return {"measured": self.measured, "choices": [choice.to_json() for choice in self.choices]}


def choose_attention(
    model: onnx.ModelProto,
    function: OnnxFunction,
    offers: Callable[[AttentionCase], Sequence[Offer]],
    lab: Lab,
    *,
    measure: bool = True,
    lean: bool = False,
    newer: OnnxFunction | None = None,
    memory: Memory | None = None,
    rounds: Rounds | None = None,
    tell: Callable[[str], None] | None = None,
) -> AttentionChoice:
    """Choose an implementation for every attention node of a model, and put it in its place.

    Args:
        model: in the precision that it is to be built in, with nodes of the function.
        function: the operator, with every body that `offers` names.
        offers: gives for a case each implementation once, or why it cannot be taken.
        lab: builds and runs.
        measure: without it the first of `IMPLEMENTATIONS` that is not refused is taken, unproven: for quick builds.
        lean: where `native` is right build none of those behind it, and likewise with `fused`: for tables, which have many shapes.
        newer: bodies on offer that need a newer operator set than the model's, as a function of another name.
        memory: where choices are looked up before they are measured, and kept.
        rounds: how to time.
        tell: is told what is being done.

    Raises:
        NoAttention: for some shape nothing works, with every reason.
        CudaBroken: an implementation broke CUDA for this process.
        InvalidInput: the nodes are not those of attention, or `HYCTAS_TENSORRT_ATTENTION` names something unknown.
    """
    allowed = allowed_implementations()
    cases: dict[AttentionCase, list[str]] = {}
    for node in nodes_of(model, function):
        cases.setdefault(AttentionCase.of(node), []).append(node.name)
    choices: list[Choice] = []
    kernels: dict[str, PluginKernel] = {}
    for number, (case, nodes) in enumerate(cases.items(), 1):
        offered = sorted(offers(case), key=lambda offer: IMPLEMENTATIONS.index(offer.name))
        on_offer = {offer.name: offer if offer.name in allowed else _left_out(offer) for offer in offered}
        refused = {name: offer.refused for name, offer in on_offer.items() if offer.refused}
        taken = {name: offer for name, offer in on_offer.items() if not offer.refused}
        chosen = memory.get(case, [*taken]) if memory is not None and measure else None
        if chosen is None or chosen["implementation"] not in taken:
            if tell is not None:
                tell(f"attention {number} of {len(cases)}: {case}")
            trial = Trial(case, graph_of(case, model, nodes[0], function), (function, newer), lab, rounds or Rounds(), lean)
            chosen = trial.choose(taken, refused) if measure else _first(case, taken, refused)
            if memory is not None and measure:
                memory.put(case, [*taken], chosen)
        offer = taken[chosen["implementation"]]
        if offer.kernel is not None:
            lab.register([offer.kernel])
            kernels |= dict.fromkeys(nodes, offer.kernel)
        plugin = offer.kernel.name if offer.kernel is not None else ""
        choices.append(Choice(case=case, nodes=tuple(nodes), body=offer.body, plugin=plugin, **chosen))
    bodies = {name: choice.body for choice in choices for name in choice.nodes if choice.body}
    return AttentionChoice(placed(model, (function, newer), bodies, kernels), tuple(choices), measure)


def _first(case: AttentionCase, offers: Mapping[str, Offer], refused: Mapping[str, str]) -> dict[str, Any]:
    if not offers:
        raise NoAttention(case, refused)
    sure = [name for name in offers if name != "native"] or [*offers]  # native fails to build where TensorRT has no kernel
    return {"implementation": sure[0], "reason": "not measured", "refused": dict(refused)}


def _left_out(offer: Offer) -> Offer:
    return Offer(name=offer.name, refused=offer.refused or f"{VARIABLE}={os.environ[VARIABLE]} leaves it out")


def _plain(error: float) -> float | str:
    return error if error < float("inf") else "not finite"
