"""hyctas-profile and hyctas-bench on a TensorRT that computes on a fake GPU: the whole way from a space to a table."""

from __future__ import annotations

import errno
import functools
import itertools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from export import bench_timing as bench_module
from export.bench_models import BenchModel
from export.bench_timing import bench
from export.bundle.bundle import CONTENT
from export.bundle.imaging import Preprocessing
from export.bundle.manifest import write_manifest
from export.errors import CorruptFile, InvalidInput, Unavailable
from export.onnx.exporter import export_modules
from export.plugin_kernel import PluginKernel
from export.target import Target
from export.trt import attention_benchmark
from export.trt.attention_benchmark import NOT_TRIED, Rounds
from export.trt.attention_case import AttentionCase
from export.trt.cuda import guard
from export.trt.cuda.guard import Gpu
from export.trt.engine_precision import check_graph
from export.trt.tensorrt_runtime import TensorRTRuntime
from hyctas.cli.advice import explain
from hyctas.cli.profile import ProfileJob
from hyctas.commands.profile import part
from hyctas.commands.profile_tensorrt import engines_ahead, protocol_of
from hyctas.cost.calibrate import measure_networks
from hyctas.cost.workloads import draw_networks, workloads
from hyctas.engine import context
from hyctas.engine.table_attention import TRIALS, open_target
from hyctas.space import edge, tiny
from latency.journal import journal_path, read_journal
from latency.profiling import profile
from latency.table import LatencyTable
from tests.export import foreign_files as foreign
from tests.export.trt.fakes_engines import FakeBuilder, install_builder
from tests.export.trt.fakes_gpu import CAPTURE_UNSUPPORTED
from tests.export.trt.fakes_run import SHAPE, Rig, make_rig, plan, save
from tests.hyctas.cli.conftest import Command, expect, nano

FP16 = Target("tensorrt", "fp16")
QUICK = "warmup_ms = 0\nmin_samples = 6\nmax_samples = 6\nbudget_ms = 0\nci = 0.5\nretake_load = 1\n"


@pytest.fixture(scope="module", autouse=True)
def exporter(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Let the exporter's first use, which takes seconds, be no test's."""
    export_modules([(torch.nn.ReLU(), (torch.ones(1, 1, 2, 2),))], tmp_path_factory.mktemp("first"), ["first"])


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Rig:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return make_rig(monkeypatch, "11.4.0")


@pytest.fixture
def builder(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> FakeBuilder:
    builder = install_builder(monkeypatch, rig)
    builder.ms = lambda model: 0.01 * len(model.graph.node)

    def no_compiler(case: AttentionCase, gpu: Gpu) -> PluginKernel:
        raise Unavailable("the offline compiler", "not here", "nothing")

    monkeypatch.setattr(context, "compiled", no_compiler)
    monkeypatch.setattr(attention_benchmark, "Rounds", functools.partial(Rounds, warm_up=1, rounds=2, steps=2))
    return builder


def profile_arguments(tmp_path: Path, *more: str) -> list[str]:
    (tmp_path / "quick.toml").write_text(QUICK)
    return ["--run", str(tmp_path / "run"), "--space", "tiny", "--size", "64x64", "--classes", "4", "--target", "tensorrt:fp16",
            "--networks", "0", "--config", str(tmp_path / "quick.toml"), *more]  # fmt: skip


def rows_of(journal: Path) -> list[str]:
    found = read_journal(journal)
    assert found is not None
    return list(found.rows)


def trials(builder: FakeBuilder) -> list[onnx.ModelProto]:
    """Return the graphs of engines that attention was chosen by."""
    return [model for model in builder.graphs if [info.name for info in model.graph.input] == ["q", "k", "v"]]


def operators_of(model: onnx.ModelProto) -> int:
    return len({info.name.partition("_")[0] for info in model.graph.input})


PARITY = {
    "output": "native", "inputs": 3, "seed": 0, "finite": True, "max_abs_error": 0.0, "relative_error": 0.0, "label_agreement": 1.0,
    "tolerance": 1e-4, "min_agreement": 0.999, "passed": True,
}  # fmt: skip
"""What a bundle's parity.json says."""


class TestProfile:
    """hyctas-profile --target tensorrt:fp16."""

    def test_a_table(self, command: Command, rig: Rig, builder: FakeBuilder, tmp_path: Path) -> None:
        said = expect(command("profile", *profile_arguments(tmp_path, "--shard", "32/60")), 0)
        table = LatencyTable.load(tmp_path / "run/latency.json")
        tried = trials(builder)
        engines = len(builder.graphs) - len(tried) - 1  # the reference has one more
        counted = f"{len(table)} operators in {engines // 3}, times 3 builds, and {TRIALS} to choose attention; at 10 s"
        assert f"about {engines + TRIALS} engines to build: {counted}" in said and len(tried) == 1, said
        assert "attention of 1 shape: grouped for 1" in said
        assert "(estimated, not run)" in said and "several measurements of one operator differ by 0.0%" in said
        assert len(table) > 2 and all(row.builds == 3 and row.spread == pytest.approx(0) for row in table.rows.values())
        identity = table.identity
        assert (identity.target, identity.protocol["builds"]) == ("tensorrt:fp16", 3)
        assert set(identity.versions) >= {"tensorrt", "cuda", "driver", "gpu0", "cuda_graph", "build", "operators"}
        assert identity.versions["attention"] == "fastest per shape"
        shared = [operators_of(model) for model in builder.graphs if model not in tried]
        assert shared[0] == 1 and max(shared) > 1, "the reference first, then several in one engine"
        assert set(builder.caches) == {tmp_path / "cache/hyctas/tensorrt", None}
        assert rig.gpu.leaks() == []

    def test_networks_calibrate_it(self, command: Command, rig: Rig, builder: FakeBuilder, tmp_path: Path) -> None:
        """Whole networks get an engine each, with fp32 inputs, whatever the operators have."""
        runtime = open_target(FP16, 1)
        measured = measure_networks(draw_networks(nano(), 2, 0, 1), runtime, (64, 64), 4, rounds=1)
        networks = [model for model in builder.graphs if model not in trials(builder)]
        assert set(builder.caches) == {tmp_path / "cache/hyctas/tensorrt"}, "the same as the operators'"
        assert measured.shape == (1, 2)
        assert [model.graph.input[0].type.tensor_type.elem_type for model in networks] == [TensorProto.FLOAT] * 2
        assert [model.graph.input[0].name for model in networks] == ["x0", "x0"]
        assert rig.gpu.leaks() == []

    @pytest.mark.parametrize("precision", ["bf16"])
    def test_attention_is_chosen_once(
        self, rig: Rig, builder: FakeBuilder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
    ) -> None:
        """For operators and whole networks, by every command, as long as nothing changes that decides it."""
        network = tiny().sample(np.random.default_rng(45))  # attends

        def measured() -> int:
            before = len(trials(builder))
            measure_networks([network], open_target(Target("tensorrt", precision), 1), (64, 64), 4, rounds=1)
            return len(trials(builder)) - before

        assert measured() == 1 and measured() == 0
        whole = builder.graphs[-1]
        assert [(item.domain, item.version) for item in whole.opset_import] == [("", 22 if precision == "bf16" else 18)]
        assert check_graph(whole, precision)
        assert "Concat" in {node.op_type for node in whole.graph.node}, "one head in two groups of queries"
        assert {node.domain for node in whole.graph.node} == {""} and not whole.functions
        (kept,) = (tmp_path / "cache/hyctas/tensorrt").glob("*.attention.json")
        (choice,) = json.loads(kept.read_text())["choices"].values()
        assert choice["implementation"] == "grouped" and "not here" in choice["refused"]["plugin"]
        assert choice["refused"]["decomposed"] == NOT_TRIED and "a single head of so few pairs" in choice["refused"]["fused"]

        monkeypatch.setenv("HYCTAS_TENSORRT_ATTENTION", "decomposed")
        assert measured() == 1 and len(json.loads(kept.read_text())["choices"]) == 2
        assert [item.version for item in builder.graphs[-1].opset_import] == [22 if precision == "bf16" else 18]
        assert "Attention" not in {node.op_type for node in builder.graphs[-1].graph.node}
        monkeypatch.delenv("HYCTAS_TENSORRT_ATTENTION")
        kept.write_text("{")
        told: list[str] = []
        runtime = open_target(Target("tensorrt", precision), 1)
        assert isinstance(runtime, TensorRTRuntime)
        runtime.on_status = told.append
        measure_networks([network], runtime, (64, 64), 4, rounds=1)
        assert (kept.parent / f"{kept.name}.unusable").exists() and json.loads(kept.read_text())
        assert f"{kept.name} cannot be read and was moved to {kept.name}.unusable" in told[1] and "attention 1 of 1" in told[0]
        assert rig.gpu.leaks() == []

    def test_a_failing_operator_is_named_and_the_others_stay(
        self, command: Command, rig: Rig, builder: FakeBuilder, tmp_path: Path
    ) -> None:
        whole, chosen = profile_arguments(tmp_path, "--shard", "1/45"), list[list[int]]()

        def fails(model: onnx.ModelProto) -> bool:
            if not chosen and operators_of(model) > 1:
                weights = (t for t in model.graph.initializer if t.name.startswith("k0001_0_") and len(t.dims) == 4)
                chosen.extend(list(tensor.dims) for tensor in itertools.islice(weights, 1))
            return any(list(tensor.dims) in chosen for tensor in model.graph.initializer)

        builder.fails = fails
        said = expect(command("profile", *whole), 1)
        keys = set(part(tiny().keys((64, 64), 4), "1/45"))
        rest = set(LatencyTable.load(tmp_path / "run/latency.json").rows)
        lost = keys - rest
        assert rest and lost and rest < keys
        assert all(f"{key}: building the engine failed." in said for key in sorted(lost)[:5]), said
        assert "could not be loaded" in said and "could not find any implementation" in said
        assert "holds all that was measured; the same command tries what is missing again" in said
        builder.fails = lambda model: False
        before = len(builder.graphs)
        code, said = command("profile", *whole)
        assert code == 0 and set(LatencyTable.load(tmp_path / "run/latency.json").rows) == keys, said
        assert len(builder.graphs) - before < 4 + 3 * len(lost), "what was measured is not built again"
        assert rig.gpu.leaks() == []

    def test_what_was_measured_is_not_built_again(
        self, command: Command, rig: Rig, builder: FakeBuilder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Ctrl-C in the second batch, then a full disk, then the same command once more."""
        monkeypatch.setitem(profile.__kwdefaults__, "batch", 2)
        whole, table = profile_arguments(tmp_path, "--shard", "13/30"), tmp_path / "run/latency.json"
        lines: list[int] = []

        def interrupted(model: onnx.ModelProto) -> bool:
            if len(builder.graphs) > 7:
                raise KeyboardInterrupt
            return False

        builder.fails = interrupted
        said = expect(command("profile", *whole), 130, "the same command continues")
        first = set(rows_of(journal_path(table)))
        assert 2 <= len(first) < 7
        builder.fails = lambda model: False
        write = os.write

        def full(handle: int, data: bytes) -> int:
            if os.readlink(f"/proc/self/fd/{handle}").endswith(".journal.jsonl"):
                lines.append(len(data))
                if len(lines) > 3:
                    raise OSError(errno.ENOSPC, "No space left on device")
            return write(handle, data)

        with monkeypatch.context() as patched:
            patched.setattr(os, "write", full)
            code, said = command("profile", *whole)
        assert code == 2 and "No space left on device" in said and "repeat the command" in said, said
        second = set(rows_of(journal_path(table)))
        assert second and not second & first and first <= set(LatencyTable.load(table).rows), "kept, and not measured again"
        code, said = command("profile", *whole)
        assert code == 0 and len(LatencyTable.load(table)) == 7, said
        assert "of its row in the table" not in said, "alone in its engine the reference is no row's equal"
        assert f"engines to build: {7 - len(first | second)} operators in" in said, "rows of a journal count as done"
        counts = [entry["rows"] for entry in LatencyTable.load(table).provenance]
        assert counts == [len(first), len(second), 7 - len(first | second)], "no row twice"
        assert rig.gpu.leaks() == []

    def test_the_estimate_in_the_documentation(self, tmp_path: Path) -> None:
        engines, said = engines_ahead(workloads(edge().keys((360, 480), 19)), 3, tmp_path / "none")
        page = (Path(__file__).parents[3] / "docs/tensorrt.md").read_text()
        assert said in page.replace("\n    ", " ") and f"{engines} engines" in said

    def test_without_a_gpu(self, command: Command, tmp_path: Path) -> None:
        if guard.unavailable_reason() is None:
            pytest.skip("this machine has TensorRT and a GPU")
        code, said = command("profile", *profile_arguments(tmp_path))
        assert code == 3 and said.startswith("error: tensorrt:fp16 is unavailable: "), said
        assert not (tmp_path / "run").exists()

    def test_builds(self) -> None:
        cpu = Target("onnxruntime-cpu", "fp32")
        assert [protocol_of(ProfileJob(), target).builds for target in (FP16, cpu)] == [3, 1]
        assert protocol_of(ProfileJob(builds=1), FP16).builds == 1


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    """A network whose attention is chosen by measurement, twice: the second time nothing is chosen anew."""
    if (why := guard.unavailable_reason()) is not None:
        pytest.skip("; ".join(why))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    network = tiny().sample(np.random.default_rng(43))
    times, counts = [], []
    for _ in range(2):
        runtime = open_target(Target("tensorrt", precision), 1)
        assert isinstance(runtime, TensorRTRuntime)
        times.append(float(measure_networks([network], runtime, (256, 256), 4)[0, 0]))
        counts.append(runtime.engines)
    assert counts[0] > 0 and counts[1] == 0 and 0 < min(times) < max(times) < 2 * min(times)


class TestBench:
    """.engine and .plan files go to the TensorRT runtime as they are."""

    @pytest.fixture(autouse=True)
    def short_slices(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bench_module, "SLICE_S", 0.002)

    def engine(self, path: Path, rig: Rig, **changes: Any) -> Path:
        kinds: dict[str, Any] = {"inputs": {"image": ["FLOAT", *SHAPE]}, "outputs": {"native": ["FLOAT", *SHAPE]}, **changes}
        return save(path, rig.trt, plan(version=rig.trt.version, **kinds), precision="fp16")

    def onnx(self, path: Path) -> None:
        node = helper.make_node("Relu", ["image"], ["native"], name="relu")
        foreign.save(path, [node], [foreign.info("image", SHAPE)], [foreign.info("native", SHAPE)])

    def bench(self, *paths: Path, target: Target = FP16, size: tuple[int, int] | None = None) -> Any:
        models = [BenchModel(path.name, path, size=size) for path in paths]
        return bench(models, target, 1, seconds=0.05, warmup_s=0.0)

    def test_engines_and_plans(self, rig: Rig, builder: FakeBuilder, tmp_path: Path) -> None:
        paths = self.engine(tmp_path / "a.engine", rig), self.engine(tmp_path / "b.plan", rig, ms=0.5)
        report = self.bench(*paths)
        assert [(model.file, round(model.median_ms, 3)) for model in report.models] == [("a.engine", 0.25), ("b.plan", 0.5)]
        assert builder.graphs == [], "nothing is built"
        assert set(report.versions) >= {"tensorrt", "gpu0"} and "operators" not in report.versions

    def test_notes_of_the_session_reach_the_report(self, rig: Rig, builder: FakeBuilder, tmp_path: Path) -> None:
        rig.gpu.fail["end_capture"] = (CAPTURE_UNSUPPORTED, "operation not permitted")
        report = self.bench(self.engine(tmp_path / "a.engine", rig))
        (model,) = report.models
        assert sum("no CUDA graph" in note for note in model.notes) == 1, "known only once the inputs were bound"
        assert "a.engine: no CUDA graph" in report.to_markdown()

    def test_onnx_files_are_built(self, rig: Rig, builder: FakeBuilder, tmp_path: Path) -> None:
        self.onnx(tmp_path / "m.onnx")
        report = self.bench(tmp_path / "m.onnx")
        assert len(builder.graphs) == 1 and "the timing cache was new" in report.models[0].notes

    def test_a_bundle(self, rig: Rig, builder: FakeBuilder, tmp_path: Path) -> None:
        bundle = tmp_path / "my bundle"
        bundle.mkdir()
        for name in CONTENT:
            (bundle / name).write_text("{}")
        (bundle / "parity.json").write_text(json.dumps(PARITY))
        (bundle / "labels.json").write_text('{"names": ["road"], "colours": [[0, 0, 0]], "ignore": 255}')
        self.onnx(bundle / "model.onnx")
        model = onnx.load(bundle / "model.onnx")
        said = {"size": "4x6", "output": "native", "genotype": "{}", "preprocessing": json.dumps(Preprocessing().to_json())}
        for key, value in {**said, "labels": (bundle / "labels.json").read_text()}.items():
            model.metadata_props.add(key=key, value=value)
        onnx.save(model, bundle / "model.onnx")
        write_manifest(bundle, target="tensorrt:fp16", size=SHAPE[2:], output="native", extra={})
        engine = self.engine(bundle / "model.engine", rig)
        assert self.bench(bundle).models[0].file == "model.engine" and builder.graphs == []
        with pytest.raises(InvalidInput, match="is made for 4x6; asked for 32x64"):
            self.bench(bundle, size=(32, 64))
        fp32, cpu = Target("tensorrt", "fp32"), Target("onnxruntime-cpu", "fp32")
        (model,) = self.bench(bundle, target=fp32).models
        assert model.file == "model.onnx"
        assert "the bundle's engine is for tensorrt:fp16; this one was built for tensorrt:fp32" in model.notes
        engine.write_bytes(b"damaged")
        with pytest.raises(CorruptFile, match="differs from the manifest") as found:
            self.bench(bundle)
        assert explain(found.value).endswith(f"run hyctas-export '{engine}' --rebuild")
        engine.unlink()
        with pytest.raises(CorruptFile, match="missing") as found:
            self.bench(bundle)
        assert explain(found.value).endswith(f"run hyctas-export '{engine}' --rebuild")
        assert self.bench(bundle, target=cpu).models[0].file == "model.onnx", "where the engine is not used, nothing is lost"
