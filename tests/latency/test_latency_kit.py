"""Device kits: writing one, running its script with a fake trtexec of each generation, and reading the results.

No real trtexec runs here; `fake_trtexec.py` speaks its options, messages, files and exit codes as the reference describes them.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest

from export.errors import CorruptFile, InvalidInput, TableMismatch, Unavailable
from export.target import Target
from hyctas.arch.operators import Conv, DownUp, FeatureFusion, Predict, SelfAttention
from hyctas.cost.workloads import workloads
from latency.kit import format as kit_format
from latency.kit.format import CANARY, OPERATORS, Kit, Timing
from latency.kit.ingest import ALONE, Ingested, ingest
from latency.kit.write import MAX_COPIES, grouped, write_kit
from latency.workload import Workload
from tests.latency.kit_device import convolution, environment, layer_times, run_script

pytest.importorskip("onnxruntime")
KEYS = (
    Conv((8,), 16).key([(8, 32, 24)]),
    Conv((16,), 16).key([(16, 32, 24)]),
    Conv((16,), 16, kernel=1).key([(16, 32, 24)]),
    DownUp((16,), 16).key([(16, 32, 24)]),
    DownUp((16, 8), 16, depth=2).key([(16, 16, 12), (8, 32, 24)]),
    SelfAttention((16,), 16, qk_channels=8).key([(16, 8, 6)]),
    FeatureFusion((16, 16), 16).key([(16, 16, 12), (16, 32, 24)]),
    Predict((16,), 10).key([(16, 32, 24)]),
)
SMALL = (*KEYS[:3], KEYS[5])
VERSIONS = {8601: "8.6.1", 100300: "10.3.0", 101600: "10.16.0", 110000: "11.0.0"}
FP16 = Target.parse("tensorrt:fp16")


def write(folder: Path, target: Target = FP16, keys: tuple[str, ...] = KEYS, nets: int = 2, **more: object) -> Kit:
    sources = {f"net{n}": (lambda n=n: convolution(n + 4)) for n in range(nets)}
    arguments = {"about": {"for": "test"}, "cost_ms": dict.fromkeys(keys, 0.05), "alone": ("selfattention",), "rounds": 2}
    return write_kit(folder, workloads(keys), sources, target, **{**arguments, **more})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kit") / "kit"
    write(folder)
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kit with a file of three operators, one of one, and a network."""
    folder = tmp_path_factory.mktemp("small") / "kit"
    write(folder, keys=SMALL, nets=1, rounds=1)
    return folder


@pytest.fixture
def kit(small: Path, tmp_path: Path) -> Path:
    """A copy of it, as on a device."""
    return Path(shutil.copytree(small, tmp_path / "kit"))


@pytest.fixture(scope="module")
def _measured(written: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(written, tmp_path_factory.mktemp("measured") / "kit"))
    run_script(folder)
    return folder


@pytest.fixture
def measured(_measured: Path, tmp_path: Path) -> Path:
    """A copy of a kit whose script ran through."""
    return Path(shutil.copytree(_measured, tmp_path / "kit"))


def calls(kit: Path) -> list[str]:
    return (kit.parent / "state" / "calls.txt").read_text().splitlines()


def truth(kit: Path) -> dict[str, float]:
    """Return the time of every operator as the fake has it, in its file."""
    found = {}
    description = Kit.load(kit)
    for file in description.files:
        if file.kind != OPERATORS:
            continue
        layers = layer_times(onnx.load(kit / "onnx" / f"{file.name}.onnx"))
        for operator in file.operators:
            mine = sum(ms for name, ms in layers.items() if name.startswith(f"{operator.prefix}_"))
            found[operator.key] = mine / operator.copies
    return found


def check_rows(found: Ingested, kit: Path, tolerance: float = 0.01) -> None:
    want = truth(kit)
    assert set(found.table.rows) == set(want) == set(found.kit.keys)
    for key, row in found.table.rows.items():
        assert row.median_ms == pytest.approx(want[key], rel=tolerance), key
        assert row.p10_ms <= row.median_ms <= row.p90_ms and row.n >= 100


@pytest.mark.slow
@pytest.mark.parametrize(("version", "precision"), [(8601, "fp16"), (100300, "fp32"), (101600, "fp16"), (110000, "fp16")])
def test_the_whole_loop_recovers_every_time(tmp_path: Path, version: int, precision: str) -> None:
    folder = tmp_path / "kit"
    keys = KEYS if version in (8601, 110000) else KEYS[:2]
    kit = write(folder, Target.parse(f"tensorrt:{precision}"), keys, nets=1, rounds=1)
    run_script(folder, FAKE_VERSION=version)
    found = ingest(folder)
    assert not found.lost and not found.missing
    check_rows(found, folder)
    identity = found.table.identity
    assert identity.target == f"tensorrt:{precision}" and identity.versions["tensorrt"] == VERSIONS[version]
    assert identity.device["gpus"][0]["name"] == "Orin" and identity.device["compute_capability"] == "8.7"
    assert identity.protocol["typing"] == ("weak" if version < 100000 else "strong") and identity.protocol["cuda_graph"]
    net = layer_times(onnx.load(folder / "onnx" / "net-0000.onnx"))
    assert np.median(found.networks["net0"]) == pytest.approx(sum(net.values()), rel=0.01)
    assert found.table.provenance[0]["floor_ms"] == pytest.approx(0.005 + 2048e-6, rel=0.01)
    used = "\n".join(calls(folder))
    assert ("--fp16" in used) == (version < 100000 and precision == "fp16")
    assert ("--useCudaGraph" in used) == ("--separateProfileRun" in used) == (version < 110000)
    assert ("--noTF32" in used) == (precision == "fp32")
    assert len(kit.steps()) == len(list((folder / "results").glob("*.status")))
    assert not list((folder / "work").glob("*.plan"))


@pytest.mark.parametrize("shell", ["bash --posix", "busybox sh"])
def test_other_shells(tmp_path: Path, shell: str) -> None:
    """Yocto images have busybox; its tools know fewer options and no character classes."""
    program = shutil.which(shell.split()[0])
    if program is None:
        pytest.skip(f"{shell} is not installed")
    folder = tmp_path / "kit"
    write(folder, keys=KEYS[:2], nets=1, rounds=1)
    settings = {}
    if "busybox" in shell:
        applets = tmp_path / "bin"
        applets.mkdir()
        for name in subprocess.run([program, "--list"], capture_output=True, text=True, check=True).stdout.split():
            (applets / name).symlink_to(program)
        settings["PATH"] = str(applets)
    assert not run_script(folder, shell=f"{program} {shell.partition(' ')[2]}", **settings).stderr
    found = ingest(folder)
    assert found.table.identity.device["gpus"][0]["name"] == "Orin" and not found.lost


def test_what_a_kit_holds(written: Path) -> None:
    kit = Kit.load(written)
    assert kit.target == FP16 and kit.about == {"for": "test"} and set(kit.keys) == set(KEYS) and kit.networks == ("net0", "net1")
    steps = kit.steps()
    assert steps[0].name == "floor" and steps[1].file.kind == steps[-1].file.kind == CANARY
    assert [s.name for s in steps if s.file.network] == ["net-0000.r0", "net-0001.r0", "net-0000.r1", "net-0001.r1"]
    assert {s.name: s.keep for s in steps if s.file.network}["net-0000.r1"] is False and steps[1].keep
    for file in kit.files:
        model = onnx.load(written / "onnx" / f"{file.name}.onnx")
        onnx.checker.check_model(model, full_check=True)
        names = [node.name for node in model.graph.node]
        assert len(set(names)) == len(names)
        kinds = {i.type.tensor_type.elem_type for i in (*model.graph.input, *model.graph.output)}
        assert kinds == {onnx.TensorProto.FLOAT if file.network else onnx.TensorProto.FLOAT16}
        if file.kind == OPERATORS:
            prefixes = tuple(f"{o.prefix}_{copy}_" for o in file.operators for copy in range(o.copies))
            assert all(name.startswith(prefixes) for name in names) and len({o.op for o in file.operators}) == 1
            assert len(model.graph.output) == len(prefixes)
    assert not (written / "work").exists()


def test_groups_hold_one_family_of_similar_cost() -> None:
    def made(name: str, op: str = "conv", size: int = 4) -> Workload:
        return Workload(name, op, lambda: None, ((1, 3, size, size),))  # type: ignore[arg-type,return-value]

    many = [made(f"c{n:02d}") for n in range(50)]
    cost = {w.key: 0.02 * 1.05**n for n, w in enumerate(many)} | {"d": 0.02, "a1": 0.001, "a2": 5.0}
    groups = grouped([*many, made("d", "skip"), made("a1", "attention"), made("a2", "attention")], cost, alone=("attention",))
    assert sorted(w.key for members, _ in groups for w in members) == sorted(cost)
    for members, copies in groups:
        costs = [cost[w.key] for w in members]
        assert len({w.op for w in members}) == 1 and len(members) <= 20
        assert max(costs) <= 6 * min(costs) and 1 <= copies <= MAX_COPIES
    by_key = {members[0].key: (len(members), copies) for members, copies in groups}
    assert by_key["a1"] == (1, MAX_COPIES) and by_key["a2"] == (1, 1)
    big = grouped([made("x", size=2000), made("y", size=2000), made("z", size=4000)], {"x": 0.01, "y": 0.01, "z": 0.01})
    assert [(len(members), copies) for members, copies in big] == [(2, 2), (1, 1)]


@pytest.mark.parametrize("wrong", [{"copies": [4]}, {"copies": 0}, {"prefix": {}}, {"op": 1e-320}])
def test_wrong_types_in_a_description_are_refused(kit: Path, wrong: dict[str, object]) -> None:
    description = json.loads((kit / "kit.json").read_text())
    next(file for file in description["files"] if file["operators"])["operators"][0].update(wrong)
    (kit / "kit.json").write_text(json.dumps(description))
    with pytest.raises(CorruptFile, match=r"kit\.json"):
        Kit.load(kit)


@pytest.mark.parametrize(("kind", "other"), [("floor", "operators"), ("operators", "network"), ("canary", "floor")])
def test_a_file_holds_what_its_kind_says(kit: Path, kind: str, other: str) -> None:
    description = json.loads((kit / "kit.json").read_text())
    next(file for file in description["files"] if file["kind"] == kind)["kind"] = other
    (kit / "kit.json").write_text(json.dumps(description))
    with pytest.raises(CorruptFile, match="of another kind than what it holds"):
        Kit.load(kit)


def test_a_folder_holds_one_kit(small: Path, tmp_path: Path) -> None:
    same = {"keys": SMALL, "nets": 1, "rounds": 1}
    before = {path.name: path.stat().st_mtime_ns for path in (small / "onnx").iterdir()}
    assert write(small, **same).id == Kit.load(small).id
    assert {path.name: path.stat().st_mtime_ns for path in (small / "onnx").iterdir()} == before
    with pytest.raises(InvalidInput, match="another device kit"):
        write(small, keys=KEYS[:3])
    again = tmp_path / "again"
    (again / "onnx").mkdir(parents=True)
    (again / "onnx" / "left.onnx").write_text("by a stopped writer")
    assert write(again, **same).id == Kit.load(small).id, "the same kit has the same bytes"
    assert not (again / "onnx" / "left.onnx").exists()
    (again / "onnx" / "net-0000.onnx").write_text("damaged")
    assert write(again, **same).id == Kit.load(small).id
    (again / "onnx" / "net-0000.onnx").write_text("damaged")
    (again / "results").mkdir()
    with pytest.raises(InvalidInput, match="lost or changed net-0000"):
        write(again, **same)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "photo.jpg").write_text("")
    with pytest.raises(InvalidInput, match="not empty"):
        write(foreign)
    with pytest.raises(InvalidInput, match="is a file"):
        write(foreign / "photo.jpg")


def test_targets_that_a_kit_cannot_have(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="tensorrt:fp16"):
        write(tmp_path / "kit", Target.parse("onnxruntime-cpu:fp32"))
    for precision in ("bf16", "int8"):
        with pytest.raises(Unavailable, match=precision):
            write(tmp_path / "kit", Target.parse(f"tensorrt:{precision}"))
    assert not (tmp_path / "kit").exists()
    with pytest.raises(InvalidInput, match="operators or networks"):
        write(tmp_path / "kit", keys=(), nets=0)
    with pytest.raises(InvalidInput, match="no device kit"):
        ingest(tmp_path)
    (tmp_path / "kit.json").write_text('{"format_version": 1, "files": 3}')
    with pytest.raises(CorruptFile):
        ingest(tmp_path)


def test_a_second_call_has_nothing_to_do(measured: Path) -> None:
    run_script(measured)
    assert len(calls(measured)) == 1
    device = (measured / "results" / "device.txt").read_text()
    assert device.count("[before ") == 2 and "tensorrt=10.3.0" in device and os.uname().nodename not in device


def test_no_trtexec(kit: Path) -> None:
    done = run_script(kit, 3, TRTEXEC="", PATH="/usr/bin:/bin")
    assert "libnvinfer-bin" in done.stderr and not (kit / "results").exists()
    assert "is no program" in run_script(kit, 3, TRTEXEC="./nothing").stderr
    assert "lists no options" in run_script(kit, 3, TRTEXEC="/bin/true").stderr


def test_a_relative_trtexec_and_one_in_the_path(kit: Path) -> None:
    env = environment(kit, FAKE_FAIL="no-device", TRTEXEC="state/trtexec")
    done = subprocess.run(["sh", "kit/run.sh"], cwd=kit.parent, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "Cannot find any available devices" in done.stdout, done.stdout + done.stderr
    env |= {"TRTEXEC": "", "PATH": f"{kit.parent / 'state'}:{env['PATH']}"}
    done = subprocess.run(["sh", "kit/run.sh"], cwd=kit.parent, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and str(kit.parent / "state" / "trtexec") in done.stdout


def test_killed_in_the_middle_it_continues(kit: Path) -> None:
    env = environment(kit, FAKE_SECONDS=0.3)
    first = subprocess.Popen(["sh", "run.sh"], cwd=kit, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    results = kit / "results"
    while len(list(results.glob("*.status"))) < 2:
        time.sleep(0.02)
        assert first.poll() is None
    assert f"process {first.pid}" in run_script(kit, 2, FAKE_SECONDS=0.3).stderr
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert first.stdout is not None
    first.stdout.close()
    kept = {path.name: path.stat().st_mtime_ns for path in results.glob("*.status")}
    run_script(kit)
    now = {path.name: path.stat().st_mtime_ns for path in results.glob("*.status")}
    assert kept.items() <= now.items() and len(now) > len(kept)
    check_rows(ingest(kit), kit)
    assert not (kit / "work" / "lock").exists()


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_it_and_its_trtexec(kit: Path, usual_signals: None, sent: signal.Signals, code: int) -> None:
    env = environment(kit, FAKE_FAIL="hang")
    process = subprocess.Popen(["sh", "run.sh"], cwd=kit, env=env, stdout=subprocess.PIPE, text=True)
    while not (kit / "work" / "floor.plan").exists() or not (kit / "work" / "run.log").exists():
        time.sleep(0.02)
        assert process.poll() is None
    time.sleep(0.1)
    child = int((kit / "work" / "lock" / "child").read_text().split()[0])
    process.send_signal(sent)
    out, _ = process.communicate(timeout=15)
    assert process.returncode == code and "sh run.sh continues" in out
    assert not Path(f"/proc/{child}").exists() and not (kit / "work" / "lock").exists()
    assert not list((kit / "results").glob("*.status")) and not list((kit / "work").glob("*.tmp"))


@pytest.mark.parametrize(
    ("fail", "status", "reason"),
    [
        ("oom", "oom", "workspace of 256 MiB at level 2"),
        ("unsupported", "unsupported", "No importer registered"),
        ("no-passed", "failed", "code 0"),
        ("nan", "failed", "torn or not numbers"),
        ("empty", "failed", "missing, torn"),
        ("kill", "oom", "out of memory while timing"),
        ("no-profile", "failed", "no layer profile"),
    ],
)
def test_a_broken_file_is_reported_and_the_rest_goes_on(kit: Path, fail: str, status: str, reason: str) -> None:
    broken = next(f for f in Kit.load(kit).files if f.kind == OPERATORS and len(f.operators) > 1)
    done = run_script(kit, 1, FAKE_FAIL=fail, FAKE_ONLY=broken.name)
    assert f"1 {status}" in done.stdout and "Not timed:" in done.stdout and reason in done.stdout
    found = ingest(kit)
    assert [lost.name for lost in found.lost] == [broken.name] and reason in found.lost[0].reason
    assert found.missing == [o.key for o in broken.operators] and len(found.table) == len(SMALL) - len(found.missing)
    assert found.table.provenance[0]["lost"][0]["name"] == broken.name
    if fail in ("oom", "unsupported"):
        before = len(calls(kit))
        run_script(kit, 1 if fail == "unsupported" else 0)
        assert (len(calls(kit)) - before == 1) == (fail == "unsupported"), "only what cannot work is not tried again"
        assert len(ingest(kit).lost) == (fail == "unsupported")


def test_what_helps_against_failures_that_pass(kit: Path) -> None:
    run_script(kit, FAKE_FAIL="oom-once,plan-once")
    check_rows(ingest(kit), kit)
    state = next((kit / "results").glob("ops-*.status")).read_text()
    assert "workspace=256\n" in state and "tries=2\n" in state


def test_a_bad_timing_cache_is_moved_aside(kit: Path) -> None:
    (kit / "work").mkdir()
    run_script(kit, None, FAKE_FAIL="no-device")
    cache = kit / "work" / f"cache-10.3.0-{slug(kit)}.bin"
    cache.write_text("bad")
    run_script(kit, FAKE_FAIL="crash-cache")
    assert cache.read_text() == "cache" and Path(f"{cache}.bad").read_text() == "bad"


def slug(kit: Path) -> str:
    board = next(line for line in (kit / "results" / "device.id").read_text().splitlines() if line.startswith("board="))
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in board.removeprefix("board="))


def test_builds_that_take_too_long_try_a_lower_level(kit: Path) -> None:
    name = next(f.name for f in Kit.load(kit).files if f.kind == OPERATORS)
    run_script(kit, FAKE_FAIL="slow-build", FAKE_ONLY=name, BUILD_LIMIT=2)
    assert "level=1\n" in (kit / "results" / f"{name}.status").read_text()


def edit(path: Path, values: Mapping[str, str]) -> None:
    lines = [line.partition("=") for line in path.read_text().splitlines()]
    path.write_text("".join(f"{name}={values.get(name, value)}\n" for name, _, value in lines))


def test_results_of_two_devices_are_refused(measured: Path) -> None:
    kit = measured
    states = sorted((kit / "results").glob("*.status"))
    for values in ({"gpu": "Other"}, {"trt": "10.7.0"}, {"power": "15W"}):
        original = states[-1].read_text()
        edit(states[-1], values)
        with pytest.raises(TableMismatch, match=next(iter(values))):
            ingest(kit)
        states[-1].write_text(original)
    edit(states[0], {"kit": "0123456789ab"})
    with pytest.raises(InvalidInput, match="belongs to device kit 0123456789ab"):
        ingest(kit)


def test_the_script_refuses_to_continue_elsewhere(measured: Path) -> None:
    done = run_script(measured, 2, FAKE_VERSION=101600)
    assert "trt=10.16.0" in done.stdout and "move results/ away" in done.stderr


def test_damage_after_the_fact_is_reported(measured: Path) -> None:
    kit = measured
    files = [f for f in Kit.load(kit).files if f.kind == OPERATORS]
    results = kit / "results"
    edit(results / f"{files[0].name}.status", {"sha256": "0" * 64})
    torn = results / f"{files[1].name}.times.json.gz"
    torn.write_bytes(torn.read_bytes()[:-20])
    (results / f"{files[2].name}.status").unlink()
    (results / "net-0001.r1.status").unlink()
    found = ingest(kit)
    reasons = {lost.name: lost.reason for lost in found.lost}
    assert set(reasons) == {files[0].name, files[1].name, files[2].name, "net-0001.r1"}
    assert "another ONNX file" in reasons[files[0].name] and "torn" in reasons[files[1].name]
    assert reasons[files[2].name] == "not measured" and list(found.networks) == ["net0"]
    lost = [o.key for file in files[:3] for o in file.operators]
    assert sorted(found.missing) == sorted(lost) and len(found.table) == len(KEYS) - len(lost)
    shutil.rmtree(results)
    with pytest.raises(InvalidInput, match="holds no results"):
        ingest(kit)


def test_a_changed_onnx_file_is_not_measured(kit: Path) -> None:
    file = next(f for f in Kit.load(kit).files if f.kind == OPERATORS)
    (kit / "onnx" / f"{file.name}.onnx").write_bytes(b"something else")
    assert "missing or damaged" in run_script(kit, 1).stdout
    assert [lost.name for lost in ingest(kit).lost] == [file.name]


def test_layers_that_cannot_be_attributed(kit: Path) -> None:
    """Shared layers are spread and noted; a file that is mostly shared is lost, unless it holds one operator only."""
    several = [f for f in Kit.load(kit).files if f.kind == OPERATORS and len(f.operators) > 1]
    single = [f for f in Kit.load(kit).files if f.kind == OPERATORS and len(f.operators) == 1]
    run_script(kit, FAKE_FAIL="shared", FAKE_ONLY=several[0].name)
    found = ingest(kit)
    assert found.table.provenance[0]["shared"] == {several[0].name: pytest.approx(0.1 / 1.1, rel=0.01)}
    check_rows(found, kit, tolerance=0.06)
    shutil.rmtree(kit / "results")
    run_script(kit, FAKE_FAIL="unattributable")
    found = ingest(kit)
    assert {lost.name for lost in found.lost} == {file.name for file in several}
    assert set(found.table.rows) == {o.key for file in single for o in file.operators}
    assert all("second kit" in lost.remedy and "50%" in lost.reason for lost in found.lost)


def test_fused_kernels_are_attributed_by_the_nodes_they_come_from(kit: Path) -> None:
    run_script(kit, FAKE_FAIL="myelin")
    found = ingest(kit)
    assert not found.lost and not found.table.provenance[0]["shared"]
    check_rows(found, kit)
    for path in (kit / "results").glob("*.layers.json.gz"):
        path.unlink()
    assert {lost.remedy for lost in ingest(kit).lost} == {ALONE}


def test_conversions_at_the_ends_are_left_out(kit: Path) -> None:
    run_script(kit, FAKE_FAIL="conversions")
    found = ingest(kit)
    want = truth(kit)
    assert all(share == pytest.approx(0.2 / 1.2, rel=0.01) for share in found.table.provenance[0]["conversions"].values())
    for key, row in found.table.rows.items():  # the fake's timing run has no conversions in it, so their share is missing
        assert row.median_ms == pytest.approx(want[key] / 1.2, rel=0.01)


@pytest.mark.slow
def test_drift_marks_the_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kit_format, "CANARY_EVERY", 4)
    folder = tmp_path / "kit"
    kit = write(folder, keys=KEYS[:3], nets=1, rounds=6, alone=("conv",))
    steps = [step for step in kit.steps() if step.file.kind == CANARY]
    assert len(steps) == 4
    run_script(folder, FAKE_DRIFT=f"{len(kit.steps()) - 2}:1.10")
    found = ingest(folder)
    assert found.table.provenance[0]["drift"] == {"4": pytest.approx(0.1, abs=0.01), "3": pytest.approx(0.1, abs=0.01)}
    assert not any(row.busy for row in found.table.rows.values()) and all(found.notes.values())
    other = tmp_path / "other" / "kit"
    write(other, keys=KEYS[:3], nets=1, rounds=1)
    run_script(other, FAKE_DRIFT="2:0.9")
    assert all(row.busy for row in ingest(other).table.rows.values())


def test_a_board_that_goes_down_is_not_asked_three_times(kit: Path) -> None:
    name = next(f.name for f in Kit.load(kit).files if f.kind == OPERATORS)
    (kit / "work").mkdir()
    (kit / "work" / f"{name}.begun").write_text("begun\nbegun\n")
    assert "went down twice" in run_script(kit, 1).stdout
    run_script(kit, 0)
    assert not ingest(kit).lost


def test_without_a_graph_rows_are_marked(kit: Path) -> None:
    file = next(f for f in Kit.load(kit).files if f.kind == OPERATORS)
    run_script(kit, FAKE_FAIL="no-graph", FAKE_ONLY=file.name)
    found = ingest(kit)
    assert found.table.provenance[0]["no_graph"] == [file.name]
    assert {key for key, row in found.table.rows.items() if row.busy} == {o.key for o in file.operators}


def test_timing_is_part_of_the_request(written: Path) -> None:
    with pytest.raises(InvalidInput, match="another device kit"):
        write(written, timing=Timing(duration_s=1))
    with pytest.raises(InvalidInput, match="iterations is 0; allowed"):
        Timing(iterations=0)
    text = (written / "run.sh").read_text()
    assert "@" not in text.replace("$@", "") and subprocess.run(["sh", "-n", str(written / "run.sh")]).returncode == 0
    assert json.loads((written / "kit.json").read_text())["format_version"] == 1
