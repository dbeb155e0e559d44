"""Device kits on the command line: written, run with a fake trtexec, ingested; whole, in part, twice, and wrongly."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnx
import pytest

from hyctas.commands.profile_kit import network_models
from hyctas.cost.workloads import CostModel, draw_networks
from latency.kit.format import OPERATORS, Kit
from latency.table import LatencyTable
from tests.hyctas.cli.conftest import Command, expect, nano, run_command
from tests.latency.kit_device import convolution, layer_times, run_script

pytest.importorskip("onnxruntime")
PROFILE = ("--space", "nano", "--size", "64x64", "--networks", "6", "--target", "tensorrt:fp16")
OPERATORS_OF_NANO = len(nano().keys((64, 64), 19))


@pytest.fixture(scope="module")
def written(nano_known: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    kit = tmp_path_factory.mktemp("written") / "kit"
    arguments = ["--kit", str(kit), *PROFILE, "--run", str(kit.parent / "run")]
    assert run_command("profile", *arguments) == 0
    return kit


@pytest.fixture(scope="module")
def measured(written: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kit that came back complete."""
    kit = Path(shutil.copytree(written, tmp_path_factory.mktemp("measured") / "kit"))
    run_script(kit)
    return kit


@pytest.fixture
def kit(measured: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(measured, tmp_path / "kit"))


@pytest.mark.slow
def test_from_kit_to_the_search(command: Command, measured: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ended = command("profile", "--run", run, "--ingest", measured)
    expect(ended, 0, f"{OPERATORS_OF_NANO} of {OPERATORS_OF_NANO} operators", "hyctas-search")
    table = LatencyTable.load(run / "latency.json")
    assert table.identity.target == "tensorrt:fp16" and table.calibrations["nano@64x64"].n == 6
    model = CostModel(nano(), table, (64, 64), 19)
    genotypes = draw_networks(nano(), 1, seed=5, purpose=99)
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
    expect(command("profile", "--run", run, "--kit", tmp_path / "more", *PROFILE), 2, "is complete")
    expect(command("profile", "--run", run, *PROFILE[:-1], "onnxruntime-cpu:fp32"), 2, "another configuration")


def test_a_kit_is_written_once(command: Command, written: Path, tmp_path: Path) -> None:
    before = (written / "kit.json").read_bytes()
    code, text = command("profile", "--kit", written, *PROFILE, "--run", tmp_path / "run")
    assert code == 0 and (written / "kit.json").read_bytes() == before, text
    expect(command("profile", "--kit", written, *PROFILE, "--classes", "7"), 2, "another device kit")
    assert not (tmp_path / "run").exists()


def test_part_of_the_results_gives_part_of_the_table(command: Command, kit: Path, tmp_path: Path) -> None:
    description = Kit.load(kit)
    file = next(f for f in description.files if f.kind == OPERATORS and len(f.operators) > 1)
    (kit / "results" / f"{file.name}.status").unlink()
    run = tmp_path / "run"
    ended = command("profile", "--run", run, "--ingest", kit)
    text = expect(ended, 2, f"{file.name}: not measured", f"lacks {len(file.operators)} of the operators")
    assert "on the device: sh run.sh" in text
    table = LatencyTable.load(run / "latency.json")
    assert set(table.missing(description.keys)) == {o.key for o in file.operators} and not table.calibrations
    assert json.loads((run / "profile.json").read_text())["state"] == "running"
    run_script(kit)
    assert command("profile", "--run", run, "--ingest", kit)[0] == 0
    table = LatencyTable.load(run / "latency.json")
    assert not table.missing(description.keys) and table.calibrations and len(table.provenance) == 1


def test_too_few_networks_leave_a_table_without_calibration(command: Command, kit: Path, tmp_path: Path) -> None:
    for number in (0, 3):
        (kit / "results" / f"net-000{number}.r0.status").unlink()
    run = tmp_path / "run"
    expect(command("profile", "--run", run, "--ingest", kit), 2, "4 of 6 calibration networks", "at least 5")
    table = LatencyTable.load(run / "latency.json")
    assert len(table) == OPERATORS_OF_NANO and not table.calibrations
    (kit / "results" / "net-0003.r0.status").write_bytes((kit / "results" / "net-0002.r0.status").read_bytes())
    expect(command("profile", "--run", run, "--ingest", kit), 2, "another ONNX file")


@pytest.mark.slow
def test_a_second_kit_measures_what_could_not_be_attributed(command: Command, kit: Path, tmp_path: Path) -> None:
    files = [f for f in Kit.load(kit).files if f.kind == OPERATORS and len(f.operators) > 1]
    file = min(files, key=lambda f: len(f.operators))
    (kit / "results" / f"{file.name}.status").unlink()
    run_script(kit, FAKE_FAIL="unattributable", FAKE_ONLY=file.name)
    run, second = tmp_path / "run", tmp_path / "second"
    ended = command("profile", "--run", run, "--ingest", kit)
    expect(ended, 2, "names no single operator", f"hyctas-profile --run {run} --kit NEW_DIR --space nano")
    expect(command("profile", "--run", run, "--kit", second, *PROFILE), 0, "each in a file of its own")
    again = Kit.load(second)
    assert set(again.keys) == {o.key for o in file.operators} and not again.networks
    assert all(len(f.operators) == 1 for f in again.files if f.kind == OPERATORS)
    run_script(second, FAKE_FAIL="unattributable")
    expect(command("profile", "--run", run, "--ingest", second), 0, "calibrated on 6 networks")
    table = LatencyTable.load(run / "latency.json")
    assert len(table) == OPERATORS_OF_NANO and len(table.provenance) == 2
    run_script(second, FAKE_GPU="Other")
    for path in (second / "results").glob("*.status"):
        path.write_text(path.read_text().replace("gpu=Orin", "gpu=Other"))
    expect(command("profile", "--run", run, "--ingest", second), 2, "Latencies of different conditions do not mix")


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
        expect(command("profile", "--run", tmp_path / "run", "--space", "tiny", "--size", "64x64", *arguments), 2, words)
    (tmp_path / "p.toml").write_text("budget_ms = 100\n")
    ended = command("profile", "--kit", new, "--config", tmp_path / "p.toml", "--space", "tiny", "--size", "64x64")
    expect(ended, 2, "protocol of its own")
    expect(command("profile", "--kit", new, "--space", "tiny", "--size", "64x64", "--target", "tensorrt:bf16"), 3, "bf16")
    assert not new.exists() and not (tmp_path / "run").exists()
    expect(command("bench", "--ingest", kit, "--out", tmp_path / "b.json"), 2, "hyctas-profile --ingest")
    value = json.loads((kit / "kit.json").read_text())
    value["about"]["space_hash"] = "0" * 12
    (kit / "kit.json").write_text(json.dumps(value))
    expect(command("profile", "--run", tmp_path / "run", "--ingest", kit), 2, "another version of space")
    shutil.rmtree(kit / "results")
    expect(command("profile", "--run", tmp_path / "run", "--ingest", kit), 2, "holds no results")


def network(path: Path, channels: int, size: tuple[int | str, int | str] = (64, 48)) -> Path:
    onnx.save(convolution(channels, size), path)
    return path


def test_models_give_the_ordinary_report(command: Command, tmp_path: Path) -> None:
    first, second = network(tmp_path / "first.onnx", 8), network(tmp_path / "second.onnx", 16, ("h", "w"))
    kit, out = tmp_path / "kit", tmp_path / "fps.json"
    flags = ("--size", "64x48", "--target", "tensorrt:fp16", "--seconds", "2")
    expect(command("bench", first, second, "--kit", kit, *flags), 0, f"hyctas-bench --ingest {kit}")
    assert command("bench", first, second, "--kit", kit, *flags)[0] == 0
    network(first, 12)
    expect(command("bench", first, second, "--kit", kit, *flags), 2, "another device kit")
    run_script(kit, FAKE_VERSION=110000)
    expect(command("bench", "--ingest", kit, "--out", out), 0, "time by first")
    report = json.loads(out.read_text())
    true = [sum(layer_times(onnx.load(kit / "onnx" / f"net-000{n}.onnx")).values()) for n in range(2)]
    for model, ms in zip(report["models"], true, strict=True):
        assert model["median_ms"] == pytest.approx(ms, rel=0.01) and model["rounds"] == 5 and model["size"] == "64x48"
    assert report["models"][1]["ratio_median"] == pytest.approx(true[1] / true[0], rel=0.01)
    assert report["target"] == "tensorrt:fp16" and report["versions"] == {"tensorrt": "11.0.0"}
    assert "dynamic input shape" in " ".join(report["models"][1]["notes"]) and "Orin" in out.with_suffix(".md").read_text()
    (kit / "results" / "net-0000.r3.times.json.gz").write_bytes(b"")
    expect(command("bench", "--ingest", kit, "--out", out), 2, "the report lacks first.onnx", "net-0000.r3")
    assert [model["name"] for model in json.loads(out.read_text())["models"]] == ["second.onnx"]
    (kit / "results" / "net-0001.r0.status").unlink()
    expect(command("bench", "--ingest", kit, "--out", out), 2, "no model")


def test_what_a_bench_kit_refuses(command: Command, tmp_path: Path) -> None:
    model, kit = network(tmp_path / "m.onnx", 4), tmp_path / "kit"
    (tmp_path / "m.pt2").write_text("")
    for arguments, words in (
        ((tmp_path / "m.pt2",), "does not read .pt2"),
        ((model, "--mode", "labels"), "the network alone"),
        ((model, "--seconds", "0"), "seconds is 0.0; allowed"),
        ((model, "--data", "scenes"), "--data does not go together with --kit"),
        ((), "no model is named"),
        ((model, "--target", "torch-cpu:fp32"), "its target is tensorrt:fp16"),
        ((model, "--ingest", kit), "--kit does not go together with --ingest"),
    ):
        expect(command("bench", "--kit", kit, *arguments), 2, words)
    assert not kit.exists()
    broken = tmp_path / "broken.onnx"
    broken.write_text("no model")
    expect(command("bench", broken, "--kit", kit), 2, "broken.onnx")
    assert not (kit / "kit.json").exists()
