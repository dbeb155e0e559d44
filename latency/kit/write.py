"""Write a device kit (see `latency.kit.format`): group operators into files, join their ONNX graphs, fill in the script."""

from __future__ import annotations

import itertools
import math
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.resources import files as resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.errors import InvalidInput
from export.files import sha256, write_bytes, write_text
from export.onnx.precision import converted, opset
from export.target import Target
from latency.kit.format import CANARY, FLOOR, NETWORK, OPERATORS, Kit, KitFile, KitOperator, Timing, digest
from latency.workload import Workload, unique

if TYPE_CHECKING:
    import onnx

PER_FILE = 20
EXPORT_BATCH = 40
MIN_FILE_MS = 0.4
"""Estimated time of a file below which its operators come several times."""
MAX_COPIES = 8
MAX_RATIO = 6.0
"""Of the largest to the smallest estimate within a file."""
MAX_FILE_BYTES = 2**28
"""Of the inputs of a file, in fp32: boards share little memory between everything."""
OWN = {"onnx", "run.sh", "kit.json"}
"""What a kit writes; a folder with anything else but results is not ours."""
NetworkModel = Callable[[], "onnx.ModelProto"]
"""Makes a network's fp32 model."""
Group = tuple[list[Workload], int]
"""Workloads that share a file, and how many copies of each it holds."""


def write_kit(
    folder: Path,
    workloads: Sequence[Workload],
    networks: Mapping[str, NetworkModel],
    target: Target,
    *,
    about: Mapping[str, Any],
    cost_ms: Mapping[str, float],
    alone: Collection[str] = (),
    rounds: int = 1,
    timing: Timing | None = None,
    then: str = "ingest this folder",
    progress: Callable[[int, int], None] | None = None,
) -> Kit:
    """Write a kit, or return the one that stands there if it was asked for in the same words.

    Args:
        folder: new, empty, or holding the same kit.
        workloads: operators to measure.
        networks: whole networks to measure, by name; equal names must mean equal networks (`about` may hold their hashes).
        target: `tensorrt:fp32` or `tensorrt:fp16`.
        about: what the kit is for, as plain data; comes back from `latency.kit.ingest`.
        cost_ms: rough estimate of the time of every key; operators of similar cost share a file.
        alone: families (`Workload.op`) or keys that get a file per operator.
        rounds: how often each network is timed.
        timing: default `Timing()`.
        then: printed by the script at its end: what to do with the results.
        progress: told (operators exported and files written, in all).

    Raises:
        InvalidInput: the folder holds something else, or the target is none of TensorRT's.
        Unavailable: the precision cannot be written here.
    """
    if target.runtime != "tensorrt":
        raise InvalidInput(f"a device kit measures with trtexec: its target is tensorrt:fp16 or tensorrt:fp32, not {target}")
    floor = converted(_floor(opset(target.precision)), target.precision, keep_io=False)  # refuses a precision before any work
    timing, wanted = timing or Timing(), unique(workloads)
    groups = grouped(list(wanted.values()), cost_ms, alone)
    if not groups and not networks:
        raise InvalidInput("a device kit needs operators or networks to measure")
    listed = [[[w.key, w.op, copies] for w in members] for members, copies in groups]
    request = digest([str(target), dict(about), asdict(timing), rounds, listed, list(networks)])
    standing = _standing(folder, request)
    if standing is not None:
        return standing
    total, done = len(wanted) + 1 + bool(groups) + len(groups) + len(networks), list[KitFile]()

    def tick(exported: int) -> None:
        if progress is not None:
            progress(exported + len(done), total)

    floor_file = [(KitFile("floor", FLOOR, ""), floor)]
    operators, wholes = _operator_files(groups, cost_ms, target.precision, tick), _network_files(networks, target.precision)
    for file, model in itertools.chain(operators, floor_file, wholes):
        path = folder / "onnx" / f"{file.name}.onnx"
        write_bytes(path, model.SerializeToString(deterministic=True))
        done.append(replace(file, sha256=sha256(path)))
        tick(len(wanted))
    kit = Kit(target=target, about=dict(about), request=request, timing=timing, rounds=rounds, files=tuple(done))
    write_text(folder / "run.sh", script(kit, then))
    kit.save(folder)
    return kit


def _standing(folder: Path, request: str) -> Kit | None:
    """Return the kit that stands in the folder if it is whole and the same; clear what a stopped writer left."""
    if not folder.exists():
        return None
    if not folder.is_dir():
        raise InvalidInput(f"{folder} is a file; give a folder")
    names = {path.name for path in folder.iterdir()}
    if "kit.json" in names:
        kit = Kit.load(folder)
        if kit.request != request:
            raise InvalidInput(f"{folder} holds another device kit; give another folder, or remove it if its results are ingested")
        damaged = [f.name for f in kit.files if not _intact(folder, f)]
        if not damaged and "run.sh" in names:
            return kit
        if "results" in names:
            raise InvalidInput(f"{folder} lost or changed {', '.join(damaged) or 'run.sh'} since its results; give another folder")
    elif names - OWN:
        raise InvalidInput(f"{folder} is not empty and holds no device kit; give another folder")
    shutil.rmtree(folder / "onnx", ignore_errors=True)
    return None


def _intact(folder: Path, file: KitFile) -> bool:
    path = folder / "onnx" / f"{file.name}.onnx"
    return path.is_file() and sha256(path) == file.sha256


def grouped(workloads: Sequence[Workload], cost_ms: Mapping[str, float], alone: Collection[str] = ()) -> list[Group]:
    """Share workloads out to files: one family and similar cost per file, cheap ones several times over."""
    groups: list[list[Workload]] = []
    for workload in sorted(workloads, key=lambda w: (w.op, cost_ms[w.key], w.key)):
        last = groups[-1] if groups else []
        fits = last and last[0].op == workload.op and len(last) < PER_FILE and not {workload.op, workload.key} & set(alone)
        fits = fits and not {last[0].key} & set(alone) and cost_ms[workload.key] <= MAX_RATIO * cost_ms[last[0].key]
        if fits and sum(map(_bytes, last)) + _bytes(workload) <= MAX_FILE_BYTES:
            last.append(workload)
        else:
            groups.append([workload])
    return [(members, _copies(members, cost_ms)) for members in groups]


def _copies(members: Sequence[Workload], cost_ms: Mapping[str, float]) -> int:
    wanted = math.ceil(MIN_FILE_MS / max(sum(cost_ms[w.key] for w in members), 1e-9))
    room = MAX_FILE_BYTES // max(1, sum(map(_bytes, members)))
    return max(1, min(wanted, room, MAX_COPIES))


def _bytes(workload: Workload) -> int:
    return 4 * sum(math.prod(shape) for shape in workload.inputs)


def _operator_files(
    groups: Sequence[Group], cost_ms: Mapping[str, float], precision: str, tick: Callable[[int], None]
) -> Iterator[tuple[KitFile, onnx.ModelProto]]:
    """Yield the canary, which has the ninth decile of the costs, and then one file per group."""
    members = sorted((w for group, _ in groups for w in group), key=lambda w: (cost_ms[w.key], w.key))
    if not members:
        return
    with tempfile.TemporaryDirectory(prefix="hyctas-kit-") as temporary:
        paths = _export(members, Path(temporary), precision, tick)
        slow = members[len(members) * 9 // 10]
        reference = KitOperator(slow.key, slow.op, "k0000", _copies([slow], cost_ms))
        yield KitFile("canary", CANARY, "", (reference,)), _joined([reference], paths, precision)
        number = 0
        for index in sorted(range(len(groups)), key=lambda index: digest(index)):  # shuffled: drift must not favour one family
            group, copies = groups[index]
            operators = [KitOperator(w.key, w.op, f"k{number + n:04d}", copies) for n, w in enumerate(group)]
            number += len(group)
            yield KitFile(f"ops-{index:04d}", OPERATORS, "", tuple(operators)), _joined(operators, paths, precision)


def _network_files(networks: Mapping[str, NetworkModel], precision: str) -> Iterator[tuple[KitFile, onnx.ModelProto]]:
    for number, (name, make) in enumerate(networks.items()):
        yield KitFile(f"net-{number:04d}", NETWORK, "", network=name), converted(make(), precision, keep_io=True)


def _joined(operators: Sequence[KitOperator], paths: Mapping[str, Path], precision: str) -> onnx.ModelProto:
    import onnx

    from export.onnx.join import join

    parts: list[tuple[str, onnx.ModelProto]] = []
    for operator in operators:
        model = converted(onnx.load(paths[operator.key]), precision, keep_io=False)
        parts += [(f"{operator.prefix}_{copy}_", model) for copy in range(operator.copies)]
    return join(parts)


def _export(workloads: Sequence[Workload], folder: Path, precision: str, tick: Callable[[int], None]) -> dict[str, Path]:
    """Write the fp32 model of each workload, with weights drawn from its key: who writes a kit again gets the same bytes."""
    import torch

    from export.onnx.exporter import export_modules

    paths: list[Path] = []
    for start in range(0, len(workloads), EXPORT_BATCH):
        modules = []
        with torch.random.fork_rng(devices=[]):
            for workload in workloads[start : start + EXPORT_BATCH]:
                torch.manual_seed(int(digest(workload.key)[:8], 16))
                modules.append(workload.example())
        names = [f"m{start + index}" for index in range(len(modules))]
        paths += export_modules(modules, folder, names, batch=EXPORT_BATCH, opset=opset(precision))
        tick(len(paths))
    return {workload.key: path for workload, path in zip(workloads, paths, strict=True)}


def _floor(opset_version: int) -> onnx.ModelProto:
    """Make a model that does next to nothing: what is left is the cost of launching an engine."""
    from onnx import TensorProto, helper

    shape = [1, 8, 16, 16]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x0", "y0")]
    graph = helper.make_graph([helper.make_node("Relu", ["x0"], ["y0"], name="n0")], "floor", ends[:1], ends[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset_version)], ir_version=10, producer_name="hyctas")


def script(kit: Kit, then: str) -> str:
    """Fill the script's template in."""
    columns = [(s.name, s.file.name, int(s.profile), int(s.keep), s.file.kind, s.file.sha256) for s in kit.steps()]
    timing = kit.timing
    values = {
        "KIT": kit.id, "TARGET": kit.target, "PRECISION": kit.target.precision, "THEN": re.sub(r"[^\w .,:;=/()<>+-]", "?", then),
        "WARMUP": timing.warmup_ms, "DURATION": f"{timing.duration_s:g}", "ITERATIONS": timing.iterations, "LEVEL": timing.level,
        "AVGTIMING": timing.avg_timing, "WORKSPACE": timing.workspace_mib,
        "STEPS": "\n".join(" ".join(map(str, row)) for row in columns),
    }  # fmt: skip
    text = resources("latency.kit").joinpath("kit_run.sh.txt").read_text()
    for name, value in values.items():
        text = text.replace(f"@{name}@", str(value))
    return text
