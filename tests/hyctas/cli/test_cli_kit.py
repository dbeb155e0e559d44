"""Device kits on the command line: written, run with a fake trtexec, ingested; whole, in part, twice, and wrongly."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from hyctas.commands.profile_kit import network_models
from hyctas.cost.workloads import CostModel, draw_networks
from hyctas.space import tiny
from latency.kit.format import OPERATORS, Kit
from latency.table import LatencyTable

pytest.importorskip("onnxruntime")
FAKE = Path(__file__).parents[2] / "latency" / "fake_trtexec.py"
PROFILE = ("--space", "tiny", "--size", "64x64", "--networks", "6", "--target", "tensorrt:fp16")
Command = Callable[..., tuple[int, str]]


def measure(kit: Path, **settings: object) -> subprocess.CompletedProcess[str]:
    """Run a kit's script with a fake trtexec."""
    state = kit.parent / "state"
    state.mkdir(exist_ok=True)
    program = state / "trtexec"
    program.write_text(f"#!{sys.executable}\n{FAKE.read_text()}")
    program.chmod(0o755)
    env = {**os.environ, "TRTEXEC": str(program), "FAKE_STATE": str(state), "FAKE_VERSION": "100300", "MIN_FREE_MB": "1"}
    env |= {name: str(value) for name, value in settings.items()}
    return subprocess.run(["sh", "run.sh"], cwd=kit, env=env, capture_output=True, text=True, timeout=300)


def layer_times(model: onnx.ModelProto) -> dict[str, float]:
    spec = importlib.util.spec_from_file_location("fake_trtexec", FAKE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    times: dict[str, float] = module.layer_times(model)
    return times


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    kit = tmp_path_factory.mktemp("written") / "kit"
    arguments = ["--kit", str(kit), *PROFILE, "--run", str(kit.parent / "run")]
    code = "from hyctas.cli.profile import main; main()"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0 and "sh run.sh" in done.stdout, done.stdout + done.stderr
    return kit


@pytest.fixture(scope="module")
def measured(written: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kit that came back complete."""
    kit = Path(shutil.copytree(written, tmp_path_factory.mktemp("measured") / "kit"))
    done = measure(kit)
    assert done.returncode == 0, done.stdout + done.stderr
    return kit


@pytest.fixture
def kit(measured: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(measured, tmp_path / "kit"))


@pytest.mark.slow
def test_from_kit_to_the_search(command: Command, measured: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    code, text = command("profile", "--run", run, "--ingest", measured)
    assert code == 0 and "193 of 193 operators" in text and "hyctas-search" in text, text
    table = LatencyTable.load(run / "latency.json")
    assert table.identity.target == "tensorrt:fp16" and table.calibrations["tiny@64x64"].n == 6
    model = CostModel(tiny(), table, (64, 64), 19)
    genotypes = draw_networks(tiny(), 3, seed=5, purpose=99)
    with network_models(genotypes, (64, 64), 19) as networks:
        for genotype in genotypes:
            from export.onnx.precision import converted

            true_ms = sum(layer_times(converted(networks[genotype.id](), "fp16", keep_io=True)).values())
            assert model.costs(genotype).latency_ms == pytest.approx(true_ms, rel=0.05)
    record = json.loads((run / "profile.json").read_text())
    assert record["state"] == "done" and record["config"]["size"] == [64, 64] and record["config"]["classes"] == 19
    before = (run / "latency.json").read_text()
    assert command("profile", "--run", run, "--ingest", measured)[0] == 0
    assert (run / "latency.json").read_text() == before, "once more changes nothing"
    code, text = command("profile", "--run", run, "--kit", tmp_path / "more", *PROFILE)
    assert code == 2 and "is complete" in text
    code, text = command("profile", "--run", run, *PROFILE[:-1], "onnxruntime-cpu:fp32")
    assert code == 2 and "another configuration" in text


def test_a_kit_is_written_once(command: Command, written: Path, tmp_path: Path) -> None:
    before = (written / "kit.json").read_bytes()
    code, text = command("profile", "--kit", written, *PROFILE, "--run", tmp_path / "run")
    assert code == 0 and (written / "kit.json").read_bytes() == before, text
    code, text = command("profile", "--kit", written, *PROFILE, "--classes", "7")
    assert code == 2 and "another device kit" in text
    assert not (tmp_path / "run").exists()


def test_part_of_the_results_gives_part_of_the_table(command: Command, kit: Path, tmp_path: Path) -> None:
    description = Kit.load(kit)
    file = next(f for f in description.files if f.kind == OPERATORS and len(f.operators) > 1)
    (kit / "results" / f"{file.name}.status").unlink()
    run = tmp_path / "run"
    code, text = command("profile", "--run", run, "--ingest", kit)
    assert code == 2 and f"{file.name}: not measured" in text and f"lacks {len(file.operators)} of the operators" in text
    assert "on the device: sh run.sh" in text
    table = LatencyTable.load(run / "latency.json")
    assert set(table.missing(description.keys)) == {o.key for o in file.operators} and not table.calibrations
    assert json.loads((run / "profile.json").read_text())["state"] == "running"
    assert measure(kit).returncode == 0
    assert command("profile", "--run", run, "--ingest", kit)[0] == 0
    table = LatencyTable.load(run / "latency.json")
    assert not table.missing(description.keys) and table.calibrations and len(table.provenance) == 1


def test_too_few_networks_leave_a_table_without_calibration(command: Command, kit: Path, tmp_path: Path) -> None:
    for number in (0, 3):
        (kit / "results" / f"net-000{number}.r0.status").unlink()
    run = tmp_path / "run"
    code, text = command("profile", "--run", run, "--ingest", kit)
    assert code == 2 and "4 of 6 calibration networks" in text and "at least 5" in text
    table = LatencyTable.load(run / "latency.json")
    assert len(table) == 193 and not table.calibrations
    (kit / "results" / "net-0003.r0.status").write_bytes((kit / "results" / "net-0002.r0.status").read_bytes())
    code, text = command("profile", "--run", run, "--ingest", kit)
    assert code == 2 and "another ONNX file" in text


@pytest.mark.slow
def test_a_second_kit_measures_what_could_not_be_attributed(command: Command, kit: Path, tmp_path: Path) -> None:
    files = [f for f in Kit.load(kit).files if f.kind == OPERATORS and len(f.operators) > 1]
    file = min(files, key=lambda f: len(f.operators))
    (kit / "results" / f"{file.name}.status").unlink()
    assert measure(kit, FAKE_FAIL="unattributable", FAKE_ONLY=file.name).returncode == 0
    run, second = tmp_path / "run", tmp_path / "second"
    code, text = command("profile", "--run", run, "--ingest", kit)
    assert code == 2 and "names no single operator" in text and f"hyctas-profile --run {run} --kit NEW_DIR --space tiny" in text
    code, text = command("profile", "--run", run, "--kit", second, *PROFILE)
    assert code == 0 and "each in a file of its own" in text, text
    again = Kit.load(second)
    assert set(again.keys) == {o.key for o in file.operators} and not again.networks
    assert all(len(f.operators) == 1 for f in again.files if f.kind == OPERATORS)
    assert measure(second, FAKE_FAIL="unattributable").returncode == 0
    code, text = command("profile", "--run", run, "--ingest", second)
    assert code == 0 and "calibrated on 6 networks" in text, text
    table = LatencyTable.load(run / "latency.json")
    assert len(table) == 193 and len(table.provenance) == 2
    assert measure(second, FAKE_GPU="Other").returncode == 0
    for path in (second / "results").glob("*.status"):
        path.write_text(path.read_text().replace("gpu=Orin", "gpu=Other"))
    code, text = command("profile", "--run", run, "--ingest", second)
    assert code == 2 and "Latencies of different conditions do not mix" in text


def test_what_a_profile_kit_refuses(command: Command, kit: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    for arguments, words in (
        (("--kit", new, "--target", "onnxruntime-cpu:fp32"), "its target is tensorrt:fp16"),
        (("--kit", new, "--ingest", kit), "--kit does not go together with --ingest"),
        (("--kit", new, "--shard", "1/2"), "--shard does not go together with --kit"),
        (("--kit", new, "--networks", "3"), "at least 5"),
        (("--ingest", new), "no device kit"),
        (("--ingest", kit, "--check", new), "--check"),
    ):
        code, text = command("profile", "--run", tmp_path / "run", "--space", "tiny", "--size", "64x64", *arguments)
        assert code == 2 and words in text, text
    (tmp_path / "p.toml").write_text("budget_ms = 100\n")
    code, text = command("profile", "--kit", new, "--config", tmp_path / "p.toml", "--space", "tiny", "--size", "64x64")
    assert code == 2 and "protocol of its own" in text
    code, text = command("profile", "--kit", new, "--space", "tiny", "--size", "64x64", "--target", "tensorrt:bf16")
    assert code == 3 and "bf16" in text
    assert not new.exists() and not (tmp_path / "run").exists()
    code, text = command("bench", "--ingest", kit, "--out", tmp_path / "b.json")
    assert code == 2 and "hyctas-profile --ingest" in text
    value = json.loads((kit / "kit.json").read_text())
    value["about"]["space_hash"] = "0" * 12
    (kit / "kit.json").write_text(json.dumps(value))
    code, text = command("profile", "--run", tmp_path / "run", "--ingest", kit)
    assert code == 2 and "another version of space" in text
    shutil.rmtree(kit / "results")
    code, text = command("profile", "--run", tmp_path / "run", "--ingest", kit)
    assert code == 2 and "holds no results" in text


def network(path: Path, channels: int, dynamic: bool = False) -> Path:
    """Write a small model."""
    helper, rng = onnx.helper, np.random.default_rng(channels)
    weight = onnx.numpy_helper.from_array(rng.standard_normal((channels, 3, 3, 3), dtype=np.float32), "w")
    size: list[str | int] = ["h", "w"] if dynamic else [64, 48]
    shapes = {"image": [1, 3, *size], "y": [1, channels, "a", "b"]}
    ends = [helper.make_tensor_value_info(name, 1, shape) for name, shape in shapes.items()]
    nodes = [helper.make_node("Conv", ["image", "w"], ["y"], name="n0")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_models_give_the_ordinary_report(command: Command, tmp_path: Path, precision: str) -> None:
    first, second = network(tmp_path / "first.onnx", 8), network(tmp_path / "second.onnx", 16, dynamic=True)
    kit, out = tmp_path / "kit", tmp_path / "fps.json"
    flags = ("--size", "64x48", "--target", f"tensorrt:{precision}", "--seconds", "2")
    code, text = command("bench", first, second, "--kit", kit, *flags)
    assert code == 0 and f"hyctas-bench --ingest {kit}" in text, text
    assert command("bench", first, second, "--kit", kit, *flags)[0] == 0
    network(first, 12)
    code, text = command("bench", first, second, "--kit", kit, *flags)
    assert code == 2 and "another device kit" in text
    assert measure(kit, FAKE_VERSION=110000).returncode == 0
    code, text = command("bench", "--ingest", kit, "--out", out)
    assert code == 0 and "time by first" in text, text
    report = json.loads(out.read_text())
    true = [sum(layer_times(onnx.load(kit / "onnx" / f"net-000{n}.onnx")).values()) for n in range(2)]
    for model, ms in zip(report["models"], true, strict=True):
        assert model["median_ms"] == pytest.approx(ms, rel=0.01) and model["rounds"] == 5 and model["size"] == "64x48"
    assert report["models"][1]["ratio_median"] == pytest.approx(true[1] / true[0], rel=0.01)
    assert report["target"] == f"tensorrt:{precision}" and report["versions"] == {"tensorrt": "11.0.0"}
    assert "dynamic input shape" in " ".join(report["models"][1]["notes"]) and "Orin" in out.with_suffix(".md").read_text()
    (kit / "results" / "net-0000.r3.times.json.gz").write_bytes(b"")
    code, text = command("bench", "--ingest", kit, "--out", out)
    assert code == 2 and "the report lacks first.onnx" in text and "net-0000.r3" in text
    assert [model["name"] for model in json.loads(out.read_text())["models"]] == ["second.onnx"]
    (kit / "results" / "net-0001.r0.status").unlink()
    code, text = command("bench", "--ingest", kit, "--out", out)
    assert code == 2 and "no model" in text


def test_what_a_bench_kit_refuses(command: Command, tmp_path: Path) -> None:
    model, kit = network(tmp_path / "m.onnx", 4), tmp_path / "kit"
    (tmp_path / "m.pt2").write_text("")
    for arguments, words in (
        ((tmp_path / "m.pt2",), "does not read .pt2"),
        ((model, "--mode", "labels"), "the network alone"),
        ((model, "--seconds", "0"), "seconds is 0.0; allowed"),
        ((model, "--data", "scenes"), "--data does not go together with --kit"),
        ((), "nothing to time"),
        ((model, "--target", "torch-cpu:fp32"), "its target is tensorrt:fp16"),
        ((model, "--ingest", kit), "--kit does not go together with --ingest"),
    ):
        code, text = command("bench", "--kit", kit, *arguments)
        assert code == 2 and words in text, text
    assert not kit.exists()
    broken = tmp_path / "broken.onnx"
    broken.write_text("no model")
    code, text = command("bench", broken, "--kit", kit)
    assert code == 2 and "broken.onnx" in text and not (kit / "kit.json").exists()
