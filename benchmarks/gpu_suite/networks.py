"""Parts 3 and 4: predicted against measured latency of `tiny`, and whole networks with every way to compute their attention."""

from __future__ import annotations

import math
import os
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from torch import nn

from benchmarks.gpu_suite.attention import table_path
from benchmarks.gpu_suite.launches import Session
from benchmarks.gpu_suite.records import TIME_OVER, LeftOut, describe
from export import codec
from export.backends.torch_session import TorchRuntime
from export.errors import Unavailable
from export.runtime import Runtime
from export.runtime import Session as Loaded
from export.target import Target
from hyctas import published
from hyctas.arch.genotype import Genotype
from hyctas.arch.operators import SelfAttention
from hyctas.attention import dispatch, measured
from hyctas.cost.calibrate import measure_networks
from hyctas.cost.workloads import calibration_name, draw_networks, units, workloads
from hyctas.engine.table_attention import open_target
from hyctas.network import Native, build
from hyctas.plan import lower
from hyctas.space import edge, tiny
from latency import LatencyTable, Protocol, predict, profile
from latency.judge import judge
from latency.lock import measuring
from latency.predictor import MIN_NETWORKS, fit

CLASSES, BATCH, ROUND, PURPOSE = 19, 8, 10, 0x666964
"""Networks that are measured together; samples of one network in a row before it is another's turn; of random draws."""


class Scale(NamedTuple):
    """How much is measured."""

    size: tuple[int, int]
    targets: tuple[str, ...]  # of fidelity
    keys: int  # at most profiled: those of networks which together need no more
    networks: int  # one half for the calibration, the other to judge it by
    draws: int  # networks of which these are chosen, the first that fit
    protocol: Protocol  # of operators
    rounds: int  # over networks that are measured together
    samples: int  # of each network end to end


FULL = Scale((512, 1024), ("torch-cuda:fp16", "tensorrt:fp16"), 120, 48, 500, Protocol(warmup_ms=20, budget_ms=120), 3, 400)
REHEARSAL = Scale((64, 96), ("torch-cpu:fp32", "tensorrt:fp16"), 84, 10, 60,
                  Protocol(warmup_ms=0, budget_ms=1, min_samples=2, max_samples=2, retake_load=1.0), 1, 10)  # fmt: skip


def fidelity(session: Session) -> None:
    """Profile, calibrate and judge every target that this machine offers."""
    scale = REHEARSAL if session.device.rehearsal else FULL
    for text in scale.targets:
        try:
            runtime = open_target(Target.parse(text), 1)
        except Unavailable as error:
            session.records.keep(f"{text} profile", {"state": "left_out", "reason": f"{text} is unavailable: {error.reason}"})
        else:
            _judge_target(session, scale, text, runtime)


def _judge_target(session: Session, scale: Scale, text: str, runtime: Runtime) -> None:
    records, space = session.records, tiny()
    keys, genotypes = _networks(scale, 4 if session.device.rehearsal else session.suite.seed)  # 4: ten are found
    path = session.folder / f"fidelity.{text.replace(':', '-')}.latency.json"

    def tick(*progress: Any) -> None:
        if records.seconds_left < 0:
            raise LeftOut(TIME_OVER)  # what was profiled is in the table's journal

    def profiled() -> dict[str, Any]:
        table = profile(workloads(keys), runtime, path, scale.protocol, progress=tick)
        return {"keys": len(keys), "of_keys": len(space.keys(scale.size, CLASSES)), "size": list(scale.size),
                "busy": table.busy}  # fmt: skip

    def measured_networks(start: int) -> dict[str, Any]:
        chosen = genotypes[start : start + BATCH]
        first, second = measure_networks(chosen, runtime, scale.size, CLASSES, repeats=2, rounds=scale.rounds, progress=tick)
        return {"ids": [genotype.id for genotype in chosen], "measured_ms": first.tolist(), "repeat_ms": second.tolist()}

    def judged() -> dict[str, Any]:
        if len(found) < 2 * MIN_NETWORKS:
            raise LeftOut(f"{len(found)} networks were measured; to calibrate and to judge takes {2 * MIN_NETWORKS}")
        half, table = len(found) // 2, LatencyTable.load(path)
        plans = [units(lower(genotype, scale.size, CLASSES)) for genotype, _, _ in found]
        _, ms, repeat = zip(*found, strict=True)
        name = calibration_name(space, scale.size)
        calibration = fit(plans[:half], ms[:half], table, space_hash=space.hash, name=name)
        judgement = judge([predict(plan, table, calibration) for plan in plans[half:]], ms[half:], repeat[half:])
        plain = judge([predict(plan, table) for plan in plans[half:]], ms[half:])
        return {"calibration": codec.plain(calibration), "judgement": judgement.to_json(), "plain_sum": plain.to_json(),
                "text": judgement.to_markdown()}  # fmt: skip

    if records.attempt(f"{text} profile", profiled, needs=5.0)["state"] != "ok":
        return
    found = list[tuple[Genotype, float, float]]()
    for start in range(0, len(genotypes), BATCH):
        record = records.attempt(f"{text} networks from {start}", partial(measured_networks, start), needs=8.0)
        if record["state"] == "ok":
            found += zip(genotypes[start : start + BATCH], record["measured_ms"], record["repeat_ms"], strict=True)
    records.attempt(f"{text} judgement by {len(found)} networks", judged, needs=-math.inf)


def _networks(scale: Scale, seed: int) -> tuple[list[str], list[Genotype]]:
    """Return networks that together need few keys, and these keys."""
    keys, chosen = dict[str, None](), list[Genotype]()
    for genotype in draw_networks(tiny(), scale.draws, seed, PURPOSE):
        more = keys | dict.fromkeys(node.key for node in lower(genotype, scale.size, CLASSES).nodes)
        if len(more) <= scale.keys and len(chosen) < scale.networks:
            keys, chosen = more, [*chosen, genotype]
    return list(keys), chosen


def end_to_end(session: Session) -> None:
    """Time the published network S, and one of `edge`, as the torch target runs them."""
    for name, genotype in (("published S", published.genotype("S")), ("edge", edge_network())):
        session.records.attempt(name, partial(_time_network, session, genotype), needs=8.0)


def edge_network() -> Genotype:
    """Return the first network of a fixed draw from the space `edge` that has self-attention of the kind that can be fused."""
    for genotype in draw_networks(edge(), 200, 0, 0x453245):
        operators = [node.operator for node in lower(genotype, FULL.size, CLASSES).nodes]
        if any(isinstance(op, SelfAttention) and op.heads == op.pool == 1 and not op.pool_last for op in operators):
            return genotype
    raise LookupError("no network of the draw has one head and all keys; draw more")


def _ways(session: Session) -> dict[str, tuple[bool, str, str]]:
    """Return by name: whether blocks are fused, the implementation that is forced, and the folder of tables."""
    tables = str(table_path(session).parent) if table_path(session).exists() else ""
    tuned = {"fused, tuned": (True, "", tables), "two-step, tuned": (False, "", tables)} if tables else {}
    forced = {} if session.device.rehearsal else {name: (False, name, "") for name in ("sdpa", "chunked")}
    return {**tuned, "fused": (True, "", ""), "two-step": (False, "", ""), **forced}


def _time_network(session: Session, genotype: Genotype) -> dict[str, Any]:
    device, scale = session.device, REHEARSAL if session.device.rehearsal else FULL
    target = Target.parse("torch-cpu:fp32" if device.rehearsal else "torch-cuda:fp16")
    network = Native(build(genotype, CLASSES).eval())
    image = np.random.default_rng(session.suite.seed).standard_normal((1, 3, *scale.size), dtype=np.float32)
    sessions, errors = dict[str, Loaded](), dict[str, str]()
    with ExitStack() as stack:
        if not device.rehearsal:
            stack.enter_context(measuring())
        for name, (fused, forced, tables) in _ways(session).items():
            try:
                with patch.dict(os.environ, {dispatch.VARIABLE: forced, measured.VARIABLE: tables}):  # a CUDA graph keeps them
                    module = network if fused else nn.Sequential(network.folded())  # which offers no fused form
                    (loaded,) = TorchRuntime(target).load_modules([(module, (torch.from_numpy(image),))])
            except Exception as error:  # one way may not run here; the others are timed
                errors[name] = describe(error)
                if not device.healthy():
                    raise
                continue
            loaded.bind({"x0": image})
            sessions[name] = stack.enter_context(loaded)
        for loaded in sessions.values():
            loaded.step()
        times: dict[str, list[float]] = {name: [] for name in sessions}
        for _ in range(scale.samples // ROUND):
            for name, loaded in sessions.items():
                times[name] += [loaded.step() for _ in range(ROUND)]
        outputs = {name: loaded.run({"x0": image})[0] for name, loaded in sessions.items()}
    if not sessions:
        return {"state": "error", "error": f"no way ran: {errors}"}
    first = next(iter(outputs.values()))
    return {
        "genotype": genotype.id, "size": list(scale.size), "target": str(target), "samples": scale.samples, "errors": errors,
        "ms": {name: dict(zip(("median", "p10", "p99"), map(float, np.percentile(t, (50, 10, 99))), strict=True))
               for name, t in times.items()},
        "difference": {name: float(np.linalg.norm(y - first) / np.linalg.norm(first)) for name, y in outputs.items()},
    }  # fmt: skip
