"""Part 4: whole networks, as the torch target runs them, with each way to compute their attention."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.gpu_suite.session import Session
from benchmarks.gpu_suite.table import path
from export.runtime import Session as Loaded
from export.target import Target
from export.torch_session import TorchRuntime
from hyctas import published
from hyctas.attention import dispatch, measured
from hyctas.genotype import Genotype
from hyctas.network import Native, build
from hyctas.operators import SelfAttention
from hyctas.plan import lower
from hyctas.space import edge
from hyctas.workloads import draw_networks
from latency.lock import measuring

CLASSES, SIZE = 19, (512, 1024)
SAMPLES, ROUND = 400, 10
"""Samples of each session, and how many are taken in a row before it is another's turn."""


class Plain(nn.Module):
    """A network with folded norms that offers no fused form, so that a session computes its attention in steps."""

    def __init__(self, network: Native) -> None:
        super().__init__()
        self.folded_network = network.folded()

    def forward(self, image: Tensor) -> Tensor:
        """Map images to native output."""
        output: Tensor = self.folded_network(image)
        return output


def run(session: Session) -> None:
    """Time both networks."""
    for name, genotype in (("published S", published.genotype("S")), ("edge", edge_network())):
        session.records.attempt(name, lambda genotype=genotype: timed(session, genotype), needs=8.0)  # type: ignore[misc]


def edge_network() -> Genotype:
    """Return the first network of a fixed draw from the space `edge` that has self-attention of the kind that can be fused."""
    for genotype in draw_networks(edge(), 200, 0, 0x453245):
        operators = [node.operator for node in lower(genotype, SIZE, CLASSES).nodes]
        if any(isinstance(op, SelfAttention) and op.heads == op.pool == 1 and not op.pool_last for op in operators):
            return genotype
    raise LookupError("no network of the draw has one head and all keys; draw more")


def ways(session: Session) -> dict[str, tuple[bool, str, Path | None]]:
    """Return by name: whether blocks are fused, the implementation that is forced, and the table that is used."""
    found: dict[str, tuple[bool, str, Path | None]] = {
        "fused": (True, "", None), "two-step": (False, "", None),
        "sdpa": (False, "sdpa", None), "chunked": (False, "chunked", None),
    }  # fmt: skip
    if path(session).exists():
        found = {"fused, tuned": (True, "", path(session).parent), "two-step, tuned": (False, "", path(session).parent), **found}
    return {name: way for name, way in found.items() if not (session.place.rehearsal and way[1])}


def timed(session: Session, genotype: Genotype) -> dict[str, Any]:
    """Time one network with every way to compute its attention, in turn."""
    place = session.place
    size, samples = ((64, 128), 2 * ROUND) if place.rehearsal else (SIZE, SAMPLES)
    target = Target.parse("torch-cpu:fp32" if place.rehearsal else "torch-cuda:fp16")
    network = Native(build(genotype, CLASSES).eval())
    image = np.random.default_rng(session.seed).standard_normal((1, 3, *size), dtype=np.float32)
    sessions: dict[str, Loaded] = {}
    errors: dict[str, str] = {}
    with ExitStack() as stack:
        if not place.rehearsal:
            stack.enter_context(measuring())
        for name, (fused, forced, tables) in ways(session).items():
            try:
                with environment(forced, tables):
                    module = network if fused else Plain(network)
                    (loaded,) = TorchRuntime(target).load_modules([(module, (torch.from_numpy(image),))])
            except Exception as error:  # one way may not run here; the others are timed
                errors[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
                if not place.healthy():
                    raise
                continue
            loaded.bind({"x0": image})
            sessions[name] = stack.enter_context(loaded)
        times: dict[str, list[float]] = {name: [] for name in sessions}
        for loaded in sessions.values():
            loaded.step()
        for _ in range(samples // ROUND):
            for name, loaded in sessions.items():
                times[name] += [loaded.step() for _ in range(ROUND)]
        outputs = {name: loaded.run({"x0": image})[0] for name, loaded in sessions.items()}
    first = next(iter(outputs.values()))
    return {
        "genotype": genotype.id, "size": list(size), "target": str(target), "samples": samples, "errors": errors,
        "ms": {name: dict(zip(("median", "p10", "p99"), map(float, np.percentile(t, (50, 10, 99))), strict=True))
               for name, t in times.items()},
        "difference": {name: float(np.linalg.norm(y - first) / np.linalg.norm(first)) for name, y in outputs.items()},
        **({"state": "error", "error": f"no way ran: {errors}"} if not sessions else {}),
    }  # fmt: skip


@contextmanager
def environment(forced: str, tables: Path | None) -> Iterator[None]:
    """Force an implementation and a folder of tables while a network is loaded; its CUDA graph keeps them."""
    wanted = {dispatch.VARIABLE: forced, measured.VARIABLE: str(tables or "")}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
