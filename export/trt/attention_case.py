"""Describe one shape of attention: a graph of it alone, inputs to try it with, and what it must give.

Two kinds of inputs: `varied` logits (standard deviation 2), in which rounding of logits shows, and `constant` ones (almost), whose
sums of equal weights overflow in fp16 where the number of keys is large. The reference is computed in float64 for a sample of the
queries, those at both ends among them, where kernels mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from export.errors import InvalidInput
from export.onnx.functions import FunctionNode, OnnxFunction
from export.runtime import TensorSpec
from export.trt.engine_precision import bf16_values, from_bits

if TYPE_CHECKING:
    import onnx

PRECISIONS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
"""Our names of precisions by numpy's of dtypes."""
LIMITS = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 3e-2}
"""Relative error (Frobenius norm) that an implementation may have; fp32 may be rounded to TF32."""
KINDS = {"varied": 2.0, "constant": 1e-3}
"""Standard deviation of the logits by the kind of inputs."""
SAMPLED, ENDS = 1024, 64
"""Queries that are compared, and how many of them lie at either end."""
LOGITS = 1 << 22
"""Logits of the reference that are held at a time: 32 MiB."""
BYTES_PER_LOGIT = 8
"""The softmax's input and output in fp32, of an implementation that holds all logits."""


@dataclass(frozen=True)
class AttentionCase:
    """What one choice is made for: q (B, h, d, N), k (B, h, d, M), v (B, h, e, M), o (B, h, e, N)."""

    batch: int
    heads: int
    qk_channels: int
    """d"""
    value_channels: int
    """e"""
    queries: int
    """N"""
    keys: int
    """M"""
    dtype: str
    """Of all tensors, as numpy names it."""
    scale: float
    """Factor on the logits."""

    @classmethod
    def of(cls, node: FunctionNode) -> AttentionCase:
        """Read it off a node; `InvalidInput` where its inputs are not those of attention, or not all of one dtype."""
        if len(node.inputs) != 3 or any(len(spec.shape) != 4 for spec in node.inputs):
            raise InvalidInput(f"node {node.name} has the inputs {node.inputs}; attention has q, k and v of rank 4")
        q, k, v = (spec.shape for spec in node.inputs)
        dtypes = {spec.dtype for spec in node.inputs}
        if k[:3] != q[:3] or v[:2] != q[:2] or v[3] != k[3] or len(dtypes) > 1:
            raise InvalidInput(f"node {node.name}: q {q}, k {k} and v {v} of {sorted(dtypes)} do not fit together")
        return cls(q[0], q[1], q[2], v[2], q[3], k[3], dtypes.pop(), float(node.attributes.get("scale", 1.0)))

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of q, k and v."""
        b, h = self.batch, self.heads
        return (b, h, self.qk_channels, self.queries), (b, h, self.qk_channels, self.keys), (b, h, self.value_channels, self.keys)

    @property
    def logits_bytes(self) -> int:
        """What an implementation takes that holds all logits at once."""
        return prod((self.batch, self.heads, self.queries, self.keys)) * BYTES_PER_LOGIT

    @property
    def precision(self) -> str:
        """The precision of an engine for it alone."""
        if self.dtype not in PRECISIONS:
            raise InvalidInput(f"attention in {self.dtype} is not known to TensorRT; it takes {', '.join(PRECISIONS)}")
        return PRECISIONS[self.dtype]

    def __str__(self) -> str:
        sizes = f"{self.batch}x{self.heads} heads, {self.qk_channels}/{self.value_channels} channels"
        return f"{sizes}, {self.queries} queries, {self.keys} keys, {self.dtype}, scale {self.scale:g}"


def graph_of(case: AttentionCase, model: onnx.ModelProto, name: str, function: OnnxFunction) -> onnx.ModelProto:
    """Return a graph that holds nothing but one node of a model, by its name, with inputs q, k, v and output o."""
    import onnx

    node = next(node for node in model.graph.node if node.name == name and function.owns(node.domain, node.op_type))
    copy = onnx.NodeProto.FromString(node.SerializeToString())
    del copy.input[:], copy.output[:]
    copy.input.extend(("q", "k", "v"))
    copy.output.append("o")
    kind = {"fp32": onnx.TensorProto.FLOAT, "fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}[case.precision]
    q, k, v = case.shapes
    shapes = {"q": q, "k": k, "v": v, "o": (*v[:3], q[3])}
    values = {tensor: onnx.helper.make_tensor_value_info(tensor, kind, shape) for tensor, shape in shapes.items()}
    graph = onnx.helper.make_graph([copy], "attention", [values[tensor] for tensor in "qkv"], [values["o"]])
    imports = [onnx.helper.make_opsetid(function.domain, 1), onnx.helper.make_opsetid("", function.opset)]
    return onnx.helper.make_model(graph, opset_imports=imports, ir_version=max(model.ir_version, 8))


@dataclass(frozen=True)
class Example:
    """Inputs, and the outputs of a sample of the queries."""

    kind: str
    """One of `KINDS`."""
    inputs: tuple[np.ndarray, ...]
    """q, k and v in float32, holding values of the case's dtype."""
    sample: np.ndarray
    """Numbers of the queries that were computed."""
    expected: np.ndarray
    """(B, h, e, samples) float64."""

    def error(self, output: np.ndarray) -> float:
        """Return the relative error of an output (B, h, e, N); infinite where any value of it is not finite."""
        if not np.isfinite(output).all():
            return float("inf")
        return float(np.linalg.norm(output[..., self.sample] - self.expected) / np.linalg.norm(self.expected))


def example(case: AttentionCase, kind: str, seed: int = 0) -> Example:
    """Draw inputs, and compute what they give."""
    rng = np.random.default_rng(seed)
    spread = (KINDS[kind] / (abs(case.scale) or 1.0)) ** 0.5 / case.qk_channels**0.25  # of q and of k
    spreads = (spread, spread, 1.0)
    drawn = [rng.standard_normal(shape, np.float32) * np.float32(s) for shape, s in zip(case.shapes, spreads, strict=True)]
    q, k, v = (rounded(array, case.dtype) for array in drawn)
    ends = [*range(min(ENDS, case.queries)), *range(max(0, case.queries - ENDS), case.queries)]
    sample = np.unique([*ends, *np.linspace(0, case.queries - 1, min(SAMPLED - 2 * ENDS, case.queries)).astype(int)])
    return Example(kind, (q, k, v), sample, _reference(q[..., sample], k, v, case.scale))


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """Round float32 values to what a dtype holds; they stay float32."""
    return from_bits(bf16_values(values)) if dtype == "bfloat16" else values.astype(dtype).astype(np.float32)


def as_fed(values: np.ndarray, spec: TensorSpec) -> np.ndarray:
    """Return values in the type of a session's input, which may see bfloat16 as the bits of uint16."""
    if spec.dtype not in ("bfloat16", "uint16"):
        return values.astype(spec.dtype)
    return bf16_values(values).view(np.dtype(spec.dtype))


def as_float(output: np.ndarray) -> np.ndarray:
    """Return a session's output as numbers."""
    return from_bits(output) if output.dtype == np.uint16 else output.astype(np.float64)


def feeds(inputs: Sequence[TensorSpec], values: Example) -> dict[str, Any]:
    """Return an example for a session with the inputs q, k and v; `InvalidInput` where it has others."""
    by_name = dict(zip("qkv", values.inputs, strict=True))
    if {spec.name for spec in inputs} != set(by_name):
        raise InvalidInput(f"an engine of attention alone has the inputs q, k and v; this one has {[spec.name for spec in inputs]}")
    return {spec.name: as_fed(by_name[spec.name], spec) for spec in inputs}


def _reference(q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float) -> np.ndarray:
    queries, keys = q.shape[3], k.shape[3]
    result = np.empty((*v.shape[:3], queries))
    rows = max(1, LOGITS // keys)
    for b, h in np.ndindex(q.shape[:2]):
        key, value = k[b, h].astype(np.float64), v[b, h].astype(np.float64)
        for start in range(0, queries, rows):
            part = slice(start, start + rows)
            logits = (q[b, h, :, part].astype(np.float64) * scale).T @ key  # (rows, M)
            weights = np.exp(logits - logits.max(1, keepdims=True))
            result[b, h, :, part] = value @ (weights / weights.sum(1, keepdims=True)).T
    return result
