"""Engines from trained networks: with TensorRT-RTX's builder, and on a stand-in for a GPU whose engines are ONNX Runtime's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from export.errors import CheckFailed, InvalidInput, Unavailable
from export.files import sha256
from export.onnx import exporter
from export.onnx.functions import attach, nodes_of
from export.plugin_kernel import PluginKernel
from export.runtime import Session
from export.target import Target
from export.trt import mixed
from export.trt.attention_benchmark import Benchmarks, Rounds
from export.trt.attention_case import AttentionCase
from export.trt.build import BuildResult
from export.trt.choose import Candidate, take_first
from export.trt.cuda import guard
from export.trt.cuda.guard import Gpu
from export.trt.engine_file import UNPROVEN, Machine, read_manifest
from export.trt.engine_file import check_free as check_engine_free
from export.trt.engine_precision import check_graph
from export.trt.options import BuildOptions
from export.trt.runner import open_engine
from export.trt.versions import has_plugins
from hyctas.arch.genotype import Genotype
from hyctas.artifacts.bundling import Trained, check_free
from hyctas.attention.onnx.bodies import self_attention_function
from hyctas.data import Labels, default_colours
from hyctas.engine import attention_choice as attention
from hyctas.engine.attention_choice import candidates, choose, intermediate
from hyctas.engine.context import BuildContext, compiled, named_context, open_context
from hyctas.engine.engine_export import EngineReport, write_engine
from hyctas.engine.settings import EngineSettings
from hyctas.network import build
from hyctas.space import tiny
from tests.export.trt import attention_plugin as made
from tests.export.trt.fakes_version import fake_tensorrt
from tests.export.trt.rtx_builds import needs_rtx

SIZE = (64, 96)
GPU = Gpu("Fake A100", (8, 0), 40 << 30, 108, (13, 0))
MACHINE = Machine("11.4.0", "13.0", "580.1", GPU.name, GPU.capability, "Linux-x86_64")
FULL: dict[str, Any] = {"full_check": True}
QUICK = Rounds(warm_up=1, rounds=2, steps=2)


def trained(network: Genotype) -> Trained:
    torch.manual_seed(0)
    made_network = build(network, 5).eval()
    for part in made_network.modules():
        if isinstance(part, torch.nn.BatchNorm2d):  # in a fresh network the last ones of residual paths are 0
            torch.nn.init.uniform_(part.weight, 0.8, 1.2)
    return Trained(made_network, network, Labels(tuple("abcde"), default_colours(5)), SIZE)


def without_plugins(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph that ONNX Runtime can compute: plugin nodes as what they stand for."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    for node in copy.graph.node:
        if node.domain == "hyctas":
            fields: dict[str, Any] = {"scale": 1.0, "padding": [0] * 8, "value_padding": [0] * 8, "channels": [1]}
            inputs, outputs = list(node.input), list(node.output)
            node.CopyFrom(onnx.helper.make_node("SelfAttention", inputs, outputs, name=node.name, domain="hyctas", **fields))
    opset = next(item.version for item in copy.opset_import if item.domain == "")
    function = self_attention_function(opset)
    return attach(copy, function) if any(node.domain == "hyctas" for node in copy.graph.node) else copy


class Engine:
    """A session of ONNX Runtime's with what one of TensorRT's has besides."""

    def __init__(self, plan: bytes, folder: Path, ms: float, scaled: float) -> None:
        from export.backends.onnxruntime_session import OnnxRuntime

        model = onnx.ModelProto.FromString(plan)
        file = folder / f"{hashlib.sha256(plan).hexdigest()[:16]}.onnx"
        onnx.save(without_plugins(model), file)
        self.session: Session = OnnxRuntime(Target("onnxruntime-cpu", "fp32")).load_file(file)
        self.inputs, self.outputs = self.session.inputs, self.session.outputs
        self.notes = ["no CUDA graph here"]
        self.ms, self.scaled = ms, scaled
        names = [node.name for node in model.graph.node if node.op_type == "Softmax"]
        self.layers = [{"Name": f"softmax {name}", "Metadata": f"[ONNX Layer: {name}]"} for name in names]

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return [output * np.asarray(self.scaled, output.dtype) for output in self.session.run(feeds)]

    def bind(self, feeds: Mapping[str, np.ndarray]) -> None:
        self.session.bind(feeds)

    def step(self) -> float:
        return self.ms

    def layer_info(self) -> dict[str, Any]:
        return {"Layers": self.layers}

    def close(self) -> None:
        self.session.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


@dataclass
class Shop:
    """Makes a context, and notes what was built in it."""

    folder: Path
    version: str = "11.4.0"
    scaled: float = 1.0
    """Factor on the network engine's output."""
    plugin_ms: float = 1.0
    built: list[tuple[BuildOptions, onnx.ModelProto]] = field(default_factory=list)

    def build(self, graph: bytes, candidate: Candidate, precision: str) -> bytes:
        check_graph(graph, precision)
        return graph

    def open(self, plan: bytes) -> Any:
        ms = self.plugin_ms if b"SelfAttention_d" in plan else 2.0
        return Engine(plan, self.folder, ms, 1.0)

    def broken(self) -> str:
        return ""

    def context(self, gpu: Gpu = GPU, measure: bool = True) -> BuildContext:
        trt = fake_tensorrt(self.version)

        def build(graph: bytes, options: BuildOptions, progress: Any) -> BuildResult:
            self.built.append((options, onnx.ModelProto.FromString(graph)))
            check_graph(graph, options.precision)
            return BuildResult(graph, 1.5, 10, options, hashlib.sha256(graph).hexdigest(), ("a new timing cache",))

        def compile_kernel(case: AttentionCase, gpu: Gpu) -> PluginKernel:
            arch = gpu.capability[0] * 10 + gpu.capability[1]
            ptx = made.PTX.format(symbol=f"attend_{case.dtype}_1_1").replace("sm_80", f"sm_{arch}")
            return made.kernel(case.qk_channels, case.value_channels, case.dtype, architecture=arch, ptx=ptx)

        opened: Any = lambda plan: Engine(plan, self.folder, 10.0, self.scaled)  # noqa: E731
        judge: Any = Benchmarks(self, rounds=QUICK) if measure else take_first  # type: ignore[arg-type]
        return BuildContext(trt, MACHINE, judge, build, gpu, opened, compile_kernel)


@pytest.fixture(scope="module", autouse=True)
def exported_once() -> Iterator[None]:
    """Let a network be exported once in every form that the tests here ask for."""
    real, done = exporter.export_onnx, dict[str, tuple[exporter.OnnxReport, bytes]]()

    def export_onnx(module: torch.nn.Module, size: tuple[int, int], path: Path, *more: Any, **named: Any) -> exporter.OnnxReport:
        form = repr((id(module), size, more, named))
        if form not in done:
            done[form] = (real(module, size, path, *more, **named), path.read_bytes())
        report, data = done[form]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return replace(report, path=path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporter, "export_onnx", export_onnx)
        yield


@pytest.fixture(scope="module")
def attending() -> Trained:
    """Give a network with attention; the exporter's first call, which takes seconds, is here."""
    network = trained(tiny().sample(np.random.default_rng(1237)))
    assert nodes_of(*intermediate(network, SIZE, "native", "fp16"))
    return network


def written(path: Path, network: Trained, shop: Shop, precision: str = "fp16", **settings: Any) -> EngineReport:
    given = EngineSettings(**settings)
    scenes = [np.random.default_rng(1).integers(0, 256, (80, 100, 3), dtype=np.uint8)]
    command = "hyctas-export m.engine --network runs/one"
    return write_engine(network, path, SIZE, "native", precision, command, given, shop.context(), scenes, {"threads": 1})


@pytest.mark.slow
def test_an_engine_with_its_manifest_and_its_onnx_file(attending: Trained, tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    shop, path = Shop(tmp_path / "scratch"), tmp_path / "deep" / "m.engine"
    report = written(path, attending, shop)
    assert sorted(file.name for file in path.parent.iterdir()) == ["m.engine", "m.engine.json", "m.onnx", "m.onnx.manifest.json"]
    ((options, graph),) = shop.built
    assert options == BuildOptions.release("fp16", plugins=True)
    (plugin,) = report.attention.plugins
    assert {node.op_type for node in graph.graph.node if node.domain == "hyctas"} == {plugin}
    manifest = read_manifest(path)
    assert manifest is not None and manifest.machine == MACHINE and manifest.precision == "fp16"
    assert (manifest.onnx, manifest.onnx_sha256) == ("m.onnx", sha256(path.with_suffix(".onnx")))
    assert manifest.engine_sha256 == sha256(path) == manifest.graph_sha256
    attention = manifest.attention
    assert attention["measured"] and attention["fused"] == "unknown" and attention["evidence"] == [], "a plugin has no softmax"
    (chosen,) = attention["choices"]
    assert chosen["implementation"] == "plugin" and chosen["times_ms"]["plugin"] == 1.0
    assert manifest.parity is not None and manifest.parity["passed"] and manifest.parity["inputs"] == 4
    assert manifest.latency is not None and manifest.latency["median_ms"] == 10.0 and "CUDA graph" in manifest.latency["protocol"]
    assert manifest.command == "hyctas-export m.engine --network runs/one"
    assert report.notes == ("a new timing cache", "no CUDA graph here")
    portable = onnx.load(path.with_suffix(".onnx"))
    assert {node.domain for node in portable.graph.node} == {""} and not portable.functions
    check_engine_free(path)
    check_free(path.with_suffix(".onnx"))  # both may be replaced by the same command


def test_attention_where_plugins_are_not(attending: Trained, tmp_path: Path) -> None:
    shop = Shop(tmp_path, version="10.3.0")
    report = written(tmp_path / "m.engine", attending, shop, "fp32", preset="search", tf32=True, workspace_mib=64)
    ((options, graph),) = shop.built
    assert options == BuildOptions.search("fp32", tf32=True, workspace_mib=64) and not options.plugins
    (choice,) = report.attention.choices
    assert (choice.implementation, choice.reason) == ("decomposed", "the only one that works here")
    half = "TensorRT fuses attention in float16 and bfloat16, not in float32"
    assert choice.refused == {
        "plugin": "they need TensorRT 10.16, and here is 10.3.0", "fused": half, "grouped": half,
        "chunked": "all logits fit at once",
    }  # fmt: skip
    assert report.fused.verdict == "no" and {node.domain for node in graph.graph.node} == {""}


def test_an_engine_that_is_wrong_is_not_written(attending: Trained, tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    path = tmp_path / "m.engine"
    with pytest.raises(CheckFailed, match=r"the engine is not written: parity of 'native'.*; set mixed = true in the TOML file"):
        written(path, attending, Shop(tmp_path / "scratch", scaled=1.5))
    assert [file.name for file in tmp_path.iterdir()] == ["scratch"]
    path.write_bytes(b"mine")
    with pytest.raises(InvalidInput, match="was not written by this command"):
        written(path, attending, Shop(tmp_path / "scratch"))
    path.with_name("m.engine.json").write_text("{}")
    with pytest.raises(InvalidInput, match="was not written by this command"):
        check_engine_free(path)
    assert path.read_bytes() == b"mine"


def test_mixed_keeps_what_parity_needs_and_chooses_attention(attending: Trained, tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    report = written(tmp_path / "m.engine", attending, shop, mixed=True)
    assert report.build.options.precision == "mixed"
    (choice,) = report.attention.choices
    assert choice.times_ms and choice.case.dtype in ("float16", "float32")


@pytest.mark.parametrize("keeps", [False, True])
def test_mixed_computes_attention_in_chunks_on_the_cpu(
    attending: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keeps: bool
) -> None:
    """No graph that `mixed` computes holds all logits; the graph for the builder still has its nodes, in fp16 or kept in fp32."""
    (node,) = nodes_of(*intermediate(attending, SIZE, "native", "fp32"))
    bytes_of_logits = AttentionCase.of(node).logits_bytes
    monkeypatch.setattr(attention, "MIXED_LOGITS_BYTES", bytes_of_logits // 4)
    computed: list[int] = []
    real, kept = mixed._run, [node.name] if keeps else []

    def run(model: onnx.ModelProto, feeds: Any, names: Sequence[str]) -> Any:
        flat = onnx.inliner.inline_local_functions(model)
        computed.append(sum(part.op_type == "Softmax" for part in flat.graph.node))
        return real(model, feeds, names)

    monkeypatch.setattr(mixed, "_run", run)
    monkeypatch.setattr(mixed, "faults", lambda *given: kept)
    limit = iter([1.0 if keeps else 0.0, 0.0, 0.0])
    monkeypatch.setattr(mixed, "_off", lambda want, got: next(limit))
    image = np.random.default_rng(2).standard_normal((1, 3, *SIZE), np.float32)
    model, function = intermediate(attending, SIZE, "native", "mixed", [image])
    assert set(computed) == {4}
    (found,) = nodes_of(model, function)
    assert AttentionCase.of(found).dtype == ("float32" if keeps else "float16")
    chosen = choose(model, function, Shop(tmp_path).context(measure=False))
    assert chosen.choices[0].nodes == (node.name,)
    check_graph(chosen.model, "mixed")


CASE = AttentionCase(1, 1, 8, 64, 4096, 4096, "float16", 1.0)


def reasons(case: AttentionCase, context: BuildContext) -> dict[str, str]:
    return {found.name: found.refused or found.body or "kernel" for found in candidates(case, context)}


def test_candidates(tmp_path: Path) -> None:
    context = Shop(tmp_path).context()
    assert reasons(CASE, context) == {
        "fused": "padded", "grouped": "grouped", "decomposed": "plain", "chunked": "all logits fit at once", "plugin": "kernel",
    }  # fmt: skip
    assert reasons(replace(CASE, queries=4095), context)["grouped"] == "grouped_odd"
    assert reasons(replace(CASE, heads=2), context)["grouped"] == "it is for a single head; here are 2"
    small = replace(context, gpu=replace(GPU, memory_bytes=512 << 20))  # an eighth of it holds half of the logits
    assert reasons(CASE, small)["chunked"] == "chunked_4096_2048"
    assert "take 0.12 GiB, above 0.06 GiB" in reasons(CASE, small)["decomposed"]
    tiny_gpu = replace(context, gpu=replace(GPU, memory_bytes=1 << 20))
    assert "a graph has at most 64" in reasons(CASE, tiny_gpu)["chunked"]

    def missing(case: AttentionCase, gpu: Gpu) -> PluginKernel:
        raise Unavailable("the offline compiler", "Triton is not installed", "pip install triton")

    assert "Triton is not installed" in reasons(CASE, replace(context, compile=missing))["plugin"]
    other = replace(context, compile=lambda case, gpu: made.kernel(8, 64), gpu=replace(GPU, capability=(12, 1)))
    assert reasons(CASE, other)["plugin"] == "the kernel is compiled for sm_80, and this GPU is sm_121"
    assert "plugin" not in reasons(CASE, replace(context, gpu=None)), "of an engine for GPUs elsewhere"


def test_the_compiler_is_asked_for_the_shape_and_the_driver_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    from hyctas.attention.triton import plugin_compile as plugin

    asked: list[Any] = []
    monkeypatch.setattr(plugin, "plugin_kernel", lambda *given, **named: asked.append((given, named)))
    compiled(replace(CASE, keys=1024), replace(GPU, capability=(8, 6), driver_cuda=(12, 4)))
    assert asked == [((86, 8, 64, "float16"), {"queries": 4096, "keys": 1024, "driver_cuda": (12, 4), "most_shared_bytes": 49152})]


def test_large_attention_is_chunked(attending: Trained, tmp_path: Path) -> None:
    model, function = intermediate(attending, SIZE, "native", "fp32")
    (node,) = nodes_of(model, function)
    case = AttentionCase.of(node)
    context = replace(Shop(tmp_path, version="10.3.0").context(), gpu=replace(GPU, memory_bytes=8 * case.logits_bytes // 3))
    found = choose(model, function, context)
    assert found.choices[0].implementation == "chunked" and sum(n.op_type == "Softmax" for n in found.model.graph.node) > 2
    onnx.checker.check_model(found.model, **FULL)


@needs_rtx
@pytest.mark.parametrize(("precision", "verdict"), [("fp16", "yes"), ("fp32", "no")])
def test_an_engine_for_gpus_that_are_not_here(attending: Trained, tmp_path: Path, precision: str, verdict: str) -> None:
    path = tmp_path / "m.engine"
    command = "hyctas-export m.engine --gpu sm_86,sm_89"
    report = write_engine(attending, path, SIZE, "native", precision, command, EngineSettings(), named_context((86, 89)))
    assert (report.parity, report.latency, report.fused.verdict) == (None, None, verdict)
    manifest = read_manifest(path)
    assert manifest is not None and manifest.target == f"tensorrt-rtx:{precision}" and manifest.parity == UNPROVEN
    assert manifest.machine.fits == ((8, 6), (8, 9)) and manifest.options["capabilities"] == [86, 89]
    assert manifest.attention["fused"] == verdict and manifest.latency is None
    (choice,) = report.attention.choices
    assert choice.implementation == {"yes": "grouped", "no": "decomposed"}[verdict] and not choice.times_ms
    with pytest.raises(InvalidInput, match="GPUs that the engine is for are not named"):
        named_context(())


def test_settings_and_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert EngineSettings().cache() == tmp_path / "hyctas" / "tensorrt"
    assert EngineSettings(timing_cache=str(tmp_path / "mine")).cache() == tmp_path / "mine"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert EngineSettings().cache() == tmp_path / "home" / ".cache" / "hyctas" / "tensorrt"
    assert json.dumps(BuildOptions.release("fp16").to_json())


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "mixed"])
def test_on_a_gpu(attending: Trained, tmp_path: Path, precision: str) -> None:
    """Build, prove, write and load an engine whose attention is chosen by measurement; the plugin takes part from 10.16 on."""
    if (why := guard.unavailable_reason()) is not None:
        pytest.skip("; ".join(why))
    settings = EngineSettings(preset="search", mixed=precision == "mixed", timing_cache=str(tmp_path / "cache"))
    context, path = open_context(settings), tmp_path / "m.engine"
    scenes = [np.random.default_rng(1).integers(0, 256, (80, 100, 3), dtype=np.uint8)]
    asked = "fp16" if precision == "mixed" else precision
    report = write_engine(attending, path, SIZE, "native", asked, "none", settings, context, scenes)
    assert report.parity is not None and report.parity.passed and report.latency is not None and report.latency.median_ms > 0
    assert any((tmp_path / "cache").iterdir())
    (choice,) = report.attention.choices
    kernels = choice.case.dtype != "float32" and has_plugins(context.trt) and "plugin" not in choice.refused
    assert choice.times_ms and (not kernels or "plugin" in choice.parity)
    with open_engine(path) as session:
        assert session.manifest is not None and session.manifest.attention["choices"][0]["implementation"] == choice.implementation
        image = np.random.default_rng(2).standard_normal((1, 3, *SIZE), np.float32)
        assert np.isfinite(session.run({"image": image})[0]).all()
