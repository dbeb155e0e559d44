"""hyctas-export model.engine: what it says where there is no GPU, what it refuses, and what it writes with a stand-in for a GPU."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from export import runtimes
from export.bundle.bundle import read_bundle
from export.bundle.bundle_engine import engine_replaced
from export.bundle.manifest import read_manifest as read_bundle_manifest
from export.bundle.manifest import verify, write_manifest
from export.errors import Unavailable
from export.target import Target
from export.trt import from_onnx
from export.trt.choose import take_first
from export.trt.cuda import guard
from export.trt.engine_file import read_manifest, save_engine
from export.trt.from_onnx import BuildHost
from hyctas.cli.bench import BenchJob
from hyctas.cli.export import ExportJob
from hyctas.commands import model_files
from hyctas.engine import context as engine
from hyctas.engine.settings import EngineSettings, LoadSettings
from latency.measure import measure
from tests.export.trt.fakes_gpu import FakeGpu
from tests.export.trt.fakes_run import FakeTensorRT, install, plan, save
from tests.export.trt.rtx_builds import needs_rtx
from tests.export.trt.test_trt_engine_file import ONNX, PLAN, manifest_of
from tests.hyctas.cli.conftest import Command, expect, small_genotype
from tests.hyctas.test_engine import MACHINE, Shop

NO_GPU = Unavailable("tensorrt", "NVIDIA's driver is not there (libcuda.so.1)", "a machine with an NVIDIA GPU")


@pytest.fixture
def genotype(tmp_path: Path) -> Path:
    """Write the genotype of a small network with attention."""
    path = tmp_path / "g.json"
    path.write_text(small_genotype(333).to_json())
    return path


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give an empty folder, and stand in it."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def no_gpu(**kind: str) -> None:
    raise NO_GPU


def test_without_a_gpu_it_says_what_to_do_before_any_work(command: Command, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "import_tensorrt", no_gpu)
    told = expect(command("export", "m.engine", "--network", "no-such-network"), 3)
    assert "m.engine (tensorrt:fp16) is unavailable: NVIDIA's driver is not there" in told
    assert "To make it available: a machine with an NVIDIA GPU" in told and "hyctas-export m.onnx" in told
    assert "trtexec --onnx=m.onnx --saveEngine=m.engine" in told
    assert "hyctas-bench m.onnx --target tensorrt:fp16 --kit FOLDER" in told and os.listdir(work) == []


@pytest.mark.skipif(guard.unavailable_reason() is None, reason="TensorRT works here")
def test_this_machine_says_the_same(command: Command, work: Path) -> None:
    code, text = command("export", "m.engine", "--network", "no-such-network", "--target", "tensorrt:fp32")
    reason = guard.unavailable_reason()
    assert code == 3 and reason is not None and reason[0] in text and os.listdir(work) == []


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """Let the command find a TensorRT whose engines are ONNX Runtime's."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    made = Shop(scratch)
    opened: list[EngineSettings] = []

    def context(settings: EngineSettings) -> engine.BuildContext:
        opened.append(settings)
        return made.context()

    monkeypatch.setattr("hyctas.commands.export_engine.open_context", context)
    real = runtimes.open_runtime

    def open_runtime(target: Target, threads: int, **tensorrt: Any) -> Any:
        return None if target.runtime == "tensorrt" else real(target, threads)

    for module in ("export", "export_engine"):
        monkeypatch.setattr(f"hyctas.commands.{module}.open_runtime", open_runtime)
    made.opened = opened  # type: ignore[attr-defined]
    return made


@pytest.mark.usefixtures("shop")
@pytest.mark.parametrize(
    ("arguments", "toml", "reason"),
    [
        (("--target", "onnxruntime-cpu:fp32"), "", "does not run engines; take tensorrt:fp16, or write m.onnx"),
        (("--target", "tensorrt:fp8"), "", "needs a graph that was quantised"),
        (("--target", "tensorrt:fp32"), "mixed = true", "does not go with fp32"),
        ((), 'preset = "fast"', "allowed: release, search"),
        ((), "workspace_mib = 0", "workspace_mib is 0"),
        ((), "level = 5", "unknown keys ['level']"),
        ((), 'tf32 = "yes"', "allowed: true or false"),
    ],
)
def test_refused(command: Command, genotype: Path, work: Path, arguments: tuple[str, ...], toml: str, reason: str) -> None:
    (work.parent / "build.toml").write_text(toml)
    source = ("--network", genotype, "--random-weights", "--size", "64x64", "--config", work.parent / "build.toml")
    expect(command("export", "m.engine", *source, *arguments), 2, reason)
    assert os.listdir(work) == []


@pytest.mark.usefixtures("shop")
@pytest.mark.parametrize("name", ["m.engine", "m.onnx"])
def test_files_of_the_users_are_not_replaced(command: Command, genotype: Path, work: Path, name: str) -> None:
    (work / name).write_text("mine")
    ended = command("export", "m.engine", "--network", genotype, "--random-weights", "--size", "64x64")
    expect(ended, 2, f"{name} exists and was not written by this command")
    assert os.listdir(work) == [name] and (work / name).read_text() == "mine"


def moved(path: Path, **facts: Any) -> None:
    """Let an engine's manifest say that it was built elsewhere."""
    beside = path.with_name(path.name + ".json")
    value = json.loads(beside.read_text())
    value["machine"] |= facts
    beside.write_text(json.dumps(value))


@pytest.fixture
def host(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """Let `--rebuild` find the machine of the shop, and engines that are ONNX Runtime's where it builds from an ONNX file."""
    fake = BuildHost(None, MACHINE, object(), shop.folder)  # type: ignore[arg-type]
    monkeypatch.setattr("hyctas.commands.export_engine.open_host", lambda backend, cache, capabilities: fake)
    context: Any = shop.context()
    monkeypatch.setattr(from_onnx, "build_engine", lambda graph, options, **named: context.build(graph, options, None))
    monkeypatch.setattr(from_onnx, "EngineSession", lambda plan, **named: context.open(plan))
    monkeypatch.setattr(from_onnx, "SECONDS", 0.01)
    monkeypatch.setitem(measure.__kwdefaults__, "load", lambda: None)  # times in manifests are compared, whatever else runs
    return shop


@pytest.mark.slow
def test_a_bundle_with_an_engine_rebuilds_it_on_another_machine(
    command: Command, genotype: Path, work: Path, host: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    (work.parent / "build.toml").write_text('preset = "search"\nworkspace_mib = 256\n')
    source = ("--network", genotype, "--random-weights", "--size", "64x64", "--config", work.parent / "build.toml")
    assert command("export", "b/", *source, "--target", "tensorrt:fp16", "--output", "labels")[0] == 0
    bundle = read_bundle(work / "b")
    assert bundle.engine == work / "b/model.engine" and bundle.manifest.target == "tensorrt:fp16"
    built = read_manifest(bundle.engine)
    assert built is not None and built.command == "hyctas-export b/model.engine --target tensorrt:fp16"
    assert built.onnx_sha256 == bundle.manifest.files["model.onnx"]["sha256"]
    assert not (work / "b/model.onnx.manifest.json").exists(), "the bundle's own file is the one that it can be rebuilt from"

    for reason, target in ((("no GPU", "a GPU"), "onnxruntime-cpu:fp32"), (None, "tensorrt:fp16")):
        monkeypatch.setattr(model_files, "unavailable_reason", lambda runtime="tensorrt", reason=reason: reason)
        assert str(model_files.choose_target(None, [(work / "b", "bundle")])) == target, "its engine, where TensorRT is"

    expect(command("export", "b/model.engine", "--rebuild"), 0, "b/model.engine fits this machine; nothing to do")
    assert len(host.built) == 1

    moved(bundle.engine, tensorrt="10.3.0")
    told = expect(command("export", "b/model.engine", "--rebuild"), 0)
    assert "model.engine: it was built for TensorRT 10.3.0, and here is TensorRT 11.4.0" in told
    assert "wrote b/model.engine" in told and "plugin, 50.0% faster" in told, "attention is chosen anew"
    assert host.built[0][0] == host.built[1][0], "with the options that the manifest names"
    again = read_bundle(work / "b")
    assert again.engine is not None and read_manifest(again.engine) == built

    other = ("--network", genotype, "--random-weights")
    expect(command("export", "b/model.engine", *other), 2, "is part of the bundle b, and is built from it; leave --network out")
    expect(command("export", "b/model.engine", "--size", "32x64"), 2, "is part of a bundle made for 64x64, output labels")
    assert command("export", "b/model.engine", "--target", "tensorrt:fp32")[0] == 0
    fp32 = read_manifest(work / "b/model.engine")
    assert fp32 is not None and fp32.precision == "fp32" and read_bundle(work / "b").engine is not None
    ended, text = command("export", "b/", "--network", "b")
    assert ended == 0 and read_bundle(work / "b").engine is None
    assert "is gone with it; a new one: hyctas-export b/model.engine" in text


def test_a_failure_leaves_a_bundle_whole(work: Path) -> None:
    (work / "model.onnx").write_bytes(b"onnx")
    write_manifest(work, target="tensorrt:fp16", size=(64, 64), output="native", extra={})

    def listed() -> set[str]:
        manifest = read_bundle_manifest(work)
        verify(work, manifest)
        return set(manifest.files)

    with engine_replaced(work):
        assert listed() == {"model.onnx"}
        (work / "model.engine").write_bytes(b"one")
        (work / "model.engine.json").write_bytes(b"{}")
    whole = {"model.onnx", "model.engine", "model.engine.json"}
    assert listed() == whole
    with pytest.raises(OSError, match="full"), engine_replaced(work):
        assert listed() == {"model.onnx"}, "what a kill leaves"
        raise OSError("full")
    assert listed() == whole


@pytest.mark.usefixtures("host")
def test_an_engine_that_a_bundle_lost_in_a_kill_is_listed_again(command: Command, work: Path) -> None:
    (work / "model.onnx").write_bytes(ONNX)
    write_manifest(work, target="tensorrt:fp16", size=(64, 64), output="native", extra={})
    killed = (work / "manifest.json").read_bytes()
    save_engine(work / "model.engine", PLAN, manifest_of(machine=MACHINE))
    whole = (work / "manifest.json").read_bytes()
    expect(command("export", "model.engine", "--rebuild"), 0, "model.engine fits this machine; nothing to do")
    (work / "manifest.json").write_bytes(killed)
    expect(command("export", "model.engine", "--rebuild"), 0, "model.engine fits this machine; its bundle lists it again")
    assert (work / "manifest.json").read_bytes() == whole != killed


@pytest.mark.slow
def test_an_engine_is_written_with_what_rebuilds_it(command: Command, genotype: Path, work: Path, host: Shop) -> None:
    (work.parent / "build.toml").write_text('preset = "search"\nworkspace_mib = 256\nclasses = 5\n')
    source = ("--network", genotype, "--random-weights", "--size", "64x64", "--config", work.parent / "build.toml")
    told = expect(command("export", "m.engine", *source), 0)
    assert sorted(os.listdir(work)) == ["m.engine", "m.engine.json", "m.onnx", "m.onnx.manifest.json"]
    assert host.opened == [EngineSettings(preset="search", workspace_mib=256)]  # type: ignore[attr-defined]
    assert "fp16, built in 2 s; m.engine.json; and m.onnx" in told and "parity of 'native' over 5 inputs" in told
    assert "plugin, 50.0% faster than" in told and "  no chunked: all logits fit at once" in told
    assert "latency: median 10.000 ms" in told and "note: no CUDA graph here" in told
    assert "next: hyctas-bench m.engine --target tensorrt:fp16 --threads 1" in told
    manifest = read_manifest(work / "m.engine")
    assert manifest is not None and manifest.options["level"] == 2 and manifest.options["workspace_mib"] == 256
    asked = "--target tensorrt:fp16 --output native --size 64x64 --classes 5 --random-weights"
    assert manifest.command == f"hyctas-export m.engine --network {genotype} {asked}"
    noted = json.loads((work / "m.onnx.manifest.json").read_text())
    assert noted["target"] == "tensorrt:fp16" and noted["extra"]["threads"] == 1

    genotype.unlink()  # all that is left are the engine's files
    moved(work / "m.engine", gpu="NVIDIA Orin")
    told = expect(command("export", "m.engine", "--rebuild"), 0)
    assert told.count("m.engine: it was built for GPU NVIDIA Orin, and here is GPU Fake A100") == 1
    assert "wrote m.engine and m.engine.json" in told
    assert "attention is built as it stands in the file" in told
    manifest = read_manifest(work / "m.engine")
    assert manifest is not None and manifest.machine == MACHINE and manifest.attention["reason"].startswith("attention is built as")
    assert manifest.parity is not None and manifest.parity["against"] == "m.onnx"
    (options, graph) = host.built[-1]
    assert not options.plugins and {node.domain for node in graph.graph.node} == {""}

    moved(work / "m.engine", gpu="NVIDIA Orin")
    (work / "m.onnx").write_bytes(b"another file")
    expect(command("export", "m.engine", "--rebuild"), 2, "is not the file that m.engine was built from")


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("m.onnx", "--rebuild"), "--rebuild is for engines; m.onnx is none"),
        (("m.engine", "--rebuild", "--network", "runs/one"), "leave out --network"),
        (("m.engine", "--rebuild", "--target", "tensorrt:fp32"), "leave out --target"),
        (("m.engine", "--rebuild", "--random-weights"), "leave out --random-weights"),
        (("m.engine", "--rebuild"), "no such engine: m.engine"),
    ],
)
def test_what_a_rebuild_refuses(command: Command, work: Path, arguments: tuple[str, ...], reason: str) -> None:
    expect(command("export", *arguments), 2, reason)
    assert os.listdir(work) == []


@pytest.mark.parametrize("version", ["10.16.1", "11.4.0"])
def test_bench_names_the_first_mismatch_of_an_engine(
    command: Command, work: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    trt = FakeTensorRT(FakeGpu(), version)
    install(monkeypatch, trt)
    save(work / "m.engine", trt, plan(version=version), tensorrt="10.3.0")
    for module in ("tensorrt_runtime", "cuda.device"):
        monkeypatch.setattr(f"export.trt.{module}.open_backend", lambda name: object())
    monkeypatch.setattr(guard, "import_tensorrt", lambda index=0, runtime="tensorrt": trt.module)
    monkeypatch.setattr("export.trt.tensorrt_runtime.unavailable_reason", lambda runtime: None)
    told = expect(command("bench", "m.engine"), 2)
    assert f"m.engine is refused: it was built for TensorRT 10.3.0, and here is TensorRT {version}" in told
    assert "To get one that fits: hyctas-export model.engine" in told
    ended = command("bench", "m.engine", "--target", "torch-cpu:fp32")
    expect(ended, 2, "does not run m.engine; take tensorrt:fp32, or time m.onnx")
    save(work / "m.engine", trt, plan(version=version), precision="mixed")
    ended = command("bench", "m.engine", "--target", "torch-cpu:fp32")
    expect(ended, 2, "does not run m.engine; take tensorrt:fp16, or time m.onnx")
    (work / "m.pt2").write_text("")
    expect(command("bench", "m.engine", "m.pt2"), 2, "no target runs both")


def test_settings_come_from_the_toml_file() -> None:
    job = ExportJob(file="m.engine", build=EngineSettings(tf32=True), cuda_backend="pycuda")
    assert job.engine() == EngineSettings(tf32=True, cuda_backend="pycuda")
    assert BenchJob(trust=True).loading() == LoadSettings(trust=True)
    assert BenchJob(cuda_backend="pycuda").loading() == LoadSettings(cuda_backend="pycuda")
    assert LoadSettings(trust=True, cuda_backend="pycuda").arguments() == {"trust": True, "backend": "pycuda"}


def test_the_context_of_a_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trt = FakeTensorRT(FakeGpu())
    install(monkeypatch, trt)
    monkeypatch.setattr("export.trt.cuda.device.open_backend", lambda name: ("backend", name))
    built: list[Any] = []
    monkeypatch.setattr("export.trt.build.build_engine", lambda *given, **named: built.append((given, named)))
    settings = EngineSettings(workspace_mib=64, cuda_backend="pycuda", timing_cache=str(tmp_path), preset="search")
    context: Any = engine.open_context(settings)
    assert context.machine.gpu == context.gpu.name and context.trt is trt.module
    options = settings.options("fp16")
    context.build(b"graph", options, None)
    ((given, named),) = built
    assert given == (b"graph", options) and named["timing_cache"] == tmp_path and named["machine"] == context.machine
    engines = context.judge.engines
    assert engines.backend == ("backend", "pycuda") and engines.settings == {"workspace_mib": 64, "tf32": False, "level": 2}
    built_small = lambda graph, options, **named: SimpleNamespace(plan=options.to_json(), seconds=1.5)  # noqa: E731
    monkeypatch.setattr("export.trt.build.build_engine", built_small)
    small = engines.build(b"graph", SimpleNamespace(kernel=object()), "bf16")
    assert (small["precision"], small["plugins"], small["level"], small["workspace_mib"]) == ("bf16", True, 2, 64)
    assert engine.open_context(EngineSettings(measure_attention=False)).judge is take_first


@needs_rtx
@pytest.mark.slow
def test_an_engine_of_a_bundle_for_gpus_that_are_not_here(command: Command, genotype: Path, work: Path) -> None:
    """The whole way, with NVIDIA's builder: bundle, engine, manifests, damage, rebuilding, and why hyctas-bench does not run it."""
    source = ("--network", genotype, "--random-weights", "--size", "64x64")
    told = expect(command("export", "b/", *source, "--target", "tensorrt-rtx:fp16", "--gpu", "sm_86,sm_120"), 0)
    assert "parity not proven: not run on a GPU" in told and "fused attention: yes" in told
    assert "grouped, fused into one kernel, as TensorRT-RTX's builder tells" in told
    assert "on a machine with such a GPU: it proves parity first" in told
    bundle, built = read_bundle(work / "b"), read_manifest(work / "b/model.engine")
    assert bundle.engine == work / "b/model.engine" and bundle.manifest.target == "tensorrt-rtx:fp16"
    assert built is not None and built.target == "tensorrt-rtx:fp16" and built.options["capabilities"] == [86, 120]
    assert built.command == "hyctas-export b/model.engine --target tensorrt-rtx:fp16 --gpu sm_86,sm_120"
    expect(command("export", "b/model.engine", "--rebuild"), 0, "fits this machine; nothing to do")
    (work / "b/model.engine").write_bytes(b"damaged")
    assert command("export", "b/model.engine", "--rebuild")[0] == 0
    again = read_manifest(work / "b/model.engine")
    assert again is not None and again.options == built.options and (work / "b/model.engine").stat().st_size > 1000
    if guard.unavailable_reason("tensorrt-rtx") is not None:
        expect(command("bench", "b", "--target", "tensorrt-rtx:fp16"), 3, "tensorrt-rtx:fp16 is unavailable")


@needs_rtx
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--target", "tensorrt-rtx:fp16"), "the GPUs that the engine is for are not named; give --gpu sm_86,sm_89,sm_120"),
        (("--target", "tensorrt-rtx:fp16", "--gpu", "sm_90"), "'sm_90' is no compute capability that TensorRT-RTX builds for"),
        (("--target", "tensorrt-rtx:bf16", "--gpu", "sm_75"), "sm_75 has no bf16"),
        (("--target", "tensorrt:fp16", "--gpu", "sm_89"), "--gpu is for tensorrt-rtx"),
    ],
)
def test_gpus_that_are_refused_before_any_work(command: Command, work: Path, arguments: tuple[str, ...], reason: str) -> None:
    expect(command("export", "m.engine", "--network", "no-such-network", *arguments), 2, reason)
    assert os.listdir(work) == []
