"""Choose how each attention of a network is computed, per shape.

| implementation | is                                               | refused where                                         |
|----------------|--------------------------------------------------|-------------------------------------------------------|
| `fused`        | a body that TensorRT makes one kernel of         | fp32; over 256 channels; one head of few pairs        |
| `grouped`      | the same, one head's queries in two groups       | fp32; over 256 channels; several heads                |
| `decomposed`   | a body of plain products and softmax             | its logits take too much memory                       |
| `chunked`      | the same, some queries at a time                 | the whole fits                                        |
| `plugin`       | our kernel (`export.trt.plugin`), a last resort  | TensorRT < 10.16, or RTX; no kernel for GPU or shape  |

Who chooses is given (`Judge`): where a GPU is, engines of each are timed (`export.trt.attention_benchmark`); where none is,
TensorRT-RTX's builder says which it fuses (`ask_builder`); or nobody does, and the first that may work is taken (`take_first`).

What may be taken comes from the caller (`Candidate`): nothing here knows an operator's bodies.
`HYCTAS_TENSORRT_ATTENTION=fused,decomposed,chunked` names all that may be taken, whatever the command; unset, that is everything.
It is for a kernel that breaks CUDA: an illegal access leaves nothing in the process usable, so no other can be tried in its place.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from export.errors import HyctasError, InvalidInput
from export.onnx.functions import OnnxFunction, attach, nodes_of
from export.trt.attention_case import AttentionCase, graph_of
from export.trt.layers import fused_attention, softmax_nodes
from export.trt.options import BuildOptions
from export.trt.plugin import with_plugins

if TYPE_CHECKING:
    import onnx

    from export.plugin_kernel import PluginKernel

IMPLEMENTATIONS = ("fused", "grouped", "decomposed", "chunked", "plugin")
"""In the order in which they are taken where nothing is measured."""
ONE_KERNEL = ("fused", "grouped")
"""Those that TensorRT is to make one kernel of."""
VARIABLE = "HYCTAS_TENSORRT_ATTENTION"
"""Environment variable that names what may be taken."""


class NoAttention(HyctasError):
    """No implementation computes an attention of this shape here.

    Attributes:
        case: the shape.
        refused: why, by implementation.
    """

    exit_code = 1

    def __init__(self, case: AttentionCase, refused: Mapping[str, str]) -> None:
        self.case, self.refused = case, dict(refused)
        reasons = "\n".join(f"  {name}: {why}" for name, why in refused.items()) or "  there was no candidate"
        memory = f"Holding all its logits takes {case.logits_bytes / 2**30:.2f} GiB"
        advice = "take a smaller image, or fewer heads or channels of attention"
        super().__init__(f"no implementation computes attention of {case}:\n{reasons}\n{memory}; {advice}.")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An implementation for one case: a body of the function, or a kernel, or why there is none."""

    name: str
    """One of `IMPLEMENTATIONS`."""
    body: str = ""
    """Name of the body in the `OnnxFunction`."""
    kernel: PluginKernel | None = None
    refused: str = ""
    """Why the implementation cannot be taken; empty where it can."""

    def __post_init__(self) -> None:
        if self.name not in IMPLEMENTATIONS:
            raise InvalidInput(f"unknown implementation {self.name!r}; there are {', '.join(IMPLEMENTATIONS)}")
        if (bool(self.body), self.kernel is not None, bool(self.refused)).count(True) != 1:
            raise InvalidInput(f"a candidate has either a body, a kernel or a reason for none; {self.name} has {self}")


@dataclass(frozen=True)
class Question:
    """One shape of attention, and what may compute it."""

    case: AttentionCase
    model: onnx.ModelProto = field(repr=False)
    """One node of the function, with inputs q, k, v and output o."""
    function: OnnxFunction
    candidates: Mapping[str, Candidate]
    """By name; none of them is refused."""
    refused: Mapping[str, str]
    """Why not the others."""

    def graph(self, candidate: Candidate) -> onnx.ModelProto:
        """Return a graph of the attention alone, in this implementation."""
        node = self.model.graph.node[0].name
        kernels = {node: candidate.kernel} if candidate.kernel is not None else {}
        return placed(self.model, self.function, {node: candidate.body} if candidate.body else {}, kernels)


Judge = Callable[[Question], dict[str, Any]]
"""Returns what decides a `Choice`: implementation, reason, and what else is known; raises `NoAttention` where nothing works."""


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
        plain = {
            name: {kind: error if error < float("inf") else "not finite" for kind, error in errors.items()}
            for name, errors in self.parity.items()
        }
        return {**asdict(self), "nodes": list(self.nodes), "parity": plain}


@dataclass(frozen=True)
class AttentionChoice:
    """A network's graph with an implementation in every attention's place, and how it came about."""

    model: onnx.ModelProto = field(repr=False)
    """Standard operators and plugin nodes alone: the bodies stand in their nodes' places."""
    choices: tuple[Choice, ...]
    """Per shape; none for a network without attention."""

    @property
    def plugins(self) -> tuple[str, ...]:
        """The names of the plugins that the graph has nodes of."""
        return tuple(sorted({choice.plugin for choice in self.choices if choice.plugin}))

    def to_json(self) -> dict[str, Any]:
        """Return what a manifest holds as `attention`."""
        return {"measured": any(c.times_ms for c in self.choices), "choices": [choice.to_json() for choice in self.choices]}


def choose_attention(
    model: onnx.ModelProto,
    function: OnnxFunction,
    candidates: Callable[[AttentionCase], Sequence[Candidate]],
    judge: Judge,
    status: Callable[[str], None] | None = None,
) -> AttentionChoice:
    """Choose an implementation for every attention node of a model, and put it in its place.

    Args:
        model: in the precision that it is to be built in, with nodes of the function.
        function: the operator, with every body that `candidates` names.
        candidates: gives for a case each implementation once, or why it cannot be taken.
        judge: chooses among those that can.
        status: is told what is being done.

    Raises:
        NoAttention: for some shape nothing works, with every reason.
        InvalidInput: the nodes are not those of attention, or `HYCTAS_TENSORRT_ATTENTION` names something unknown.
    """
    allowed = allowed_implementations()
    cases: dict[AttentionCase, list[str]] = {}
    for node in nodes_of(model, function):
        cases.setdefault(AttentionCase.of(node), []).append(node.name)
    choices: list[Choice] = []
    bodies: dict[str, str] = {}
    kernels: dict[str, PluginKernel] = {}
    for number, (case, nodes) in enumerate(cases.items(), 1):
        if status is not None:
            status(f"attention {number} of {len(cases)}: {case}")
        listed = sorted(candidates(case), key=lambda candidate: IMPLEMENTATIONS.index(candidate.name))
        taken = {candidate.name: candidate for candidate in listed if not candidate.refused and candidate.name in allowed}
        left_out = f"{VARIABLE}={os.environ.get(VARIABLE)} leaves it out"
        refused = {candidate.name: candidate.refused or left_out for candidate in listed if candidate.name not in taken}
        if not taken:
            raise NoAttention(case, refused)
        chosen = judge(Question(case, graph_of(case, model, nodes[0], function), function, taken, refused))
        body, kernel = taken[chosen["implementation"]].body, taken[chosen["implementation"]].kernel
        bodies |= dict.fromkeys(nodes, body) if kernel is None else {}
        kernels |= dict.fromkeys(nodes, kernel) if kernel is not None else {}
        plugin = kernel.name if kernel is not None else ""
        choices.append(Choice(case=case, nodes=tuple(nodes), body=body, plugin=plugin, **chosen))
    return AttentionChoice(placed(model, function, bodies, kernels), tuple(choices))


def take_first(question: Question) -> dict[str, Any]:
    """Take the first implementation that is not refused: a `Judge` that asks nobody."""
    return {"implementation": next(iter(question.candidates)), "reason": "not measured", "refused": dict(question.refused)}


def ask_builder(question: Question, capability: int, trt: Any) -> dict[str, Any]:
    """Take the first implementation that TensorRT-RTX's builder makes one kernel of, for a compute capability.

    A `Judge` for machines without a GPU.
    """
    from export.trt.build import build_engine
    from export.trt.log import TensorRTFailed

    options = BuildOptions(precision=question.case.precision, capabilities=(capability,))
    refused = dict(question.refused)
    for name in filter(ONE_KERNEL.__contains__, question.candidates):
        model = question.graph(question.candidates[name])
        try:
            found = fused_attention(build_engine(model.SerializeToString(), options, trt=trt).engine_layers, softmax_nodes(model))
        except (TensorRTFailed, InvalidInput) as error:
            refused[name] = " ".join(str(error).split())
            continue
        if found.verdict == "yes":
            return {"implementation": name, "reason": "fused into one kernel, as TensorRT-RTX's builder tells", "refused": refused}
        refused[name] = f"TensorRT-RTX's builder leaves its softmax by itself ({', '.join(found.evidence)})"
    if not (rest := [name for name in question.candidates if name not in refused]):
        raise NoAttention(question.case, refused)
    return {"implementation": rest[0], "reason": "nothing is fused into one kernel", "refused": refused}


def allowed_implementations() -> tuple[str, ...]:
    """Return what `HYCTAS_TENSORRT_ATTENTION` allows, all where it is not set; `InvalidInput` where it names an unknown one."""
    names = tuple(filter(None, (name.strip() for name in os.environ.get(VARIABLE, "").split(","))))
    if unknown := [name for name in names if name not in IMPLEMENTATIONS]:
        known = f"one or more of {', '.join(IMPLEMENTATIONS)}, with commas between them, or do not set it"
        raise InvalidInput(f"{VARIABLE} names {', '.join(unknown)}; write {known}")
    return names or IMPLEMENTATIONS


def placed(
    model: onnx.ModelProto, function: OnnxFunction, bodies: Mapping[str, str], kernels: Mapping[str, PluginKernel]
) -> onnx.ModelProto:
    """Return a copy of a model in which every node of a function is a plugin node, or a body's operators, by the node's name.

    `InvalidInput` where the choice misses nodes, or names unknown ones.
    """
    from onnx import inliner

    result = with_plugins(model, function, kernels)
    if bodies or nodes_of(result, function):
        result = inliner.inline_local_functions(attach(result, function, bodies))
    if not kernels:  # a domain that no node is of would only be a question to the parser
        kept = [item for item in result.opset_import if item.domain != function.domain]
        del result.opset_import[:]
        result.opset_import.extend(kept)
    return result
