"""hyctas-doctor: every target with a reason, the machine, and what to change."""

from __future__ import annotations

import copy
import json
import platform
import sys
from pathlib import Path
from typing import Any

import pytest

from export.platform import KINDS, install_line
from export.runtimes import available_targets, default_target
from export.target import RUNTIMES
from hyctas.commands import doctor
from tests.hyctas.cli.conftest import Command, expect
from tests.test_help import ask


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return doctor.findings()


def test_json_covers_every_target(command: Command) -> None:
    code, text = command("doctor", "--json")
    value = json.loads(text)
    assert code == 0
    names = [f"{runtime}:{precision}" for runtime, precisions in RUNTIMES.items() for precision in precisions]
    assert [state["target"] for state in value["targets"]] == names
    assert all(state["ok"] or (state["reason"] and state["install"]) for state in value["targets"])
    assert value["default_target"] == str(default_target())
    assert value["versions"]["torch"] and value["versions"]["numpy"]
    assert {"cpu", "usable_cores", "gpus", "load", "memory_gib", "disk_free_gib", "jetson"} <= set(value["machine"])
    text = json.dumps(value)
    assert sys.prefix not in text and str(Path.home()) + "/" not in text


def test_text(command: Command) -> None:
    out = expect(command("doctor"), 0)
    assert f"Without --target, commands take {default_target()}." in out
    for state in available_targets():
        assert state.target.partition(":")[0] in out
        assert state.ok or f"unavailable because {state.reason}" in out
    for name in ("Machine", "Memory", "Disk", "GPU", "System", "Installed", f"Python {platform.python_version()}"):
        assert name in out


def test_answers_without_torch() -> None:
    """On a CPU nothing asks for torch; where torch cannot be found, that is a finding."""
    done = ask("hyctas-doctor", "--json")
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    states = {state["target"]: state for state in value["targets"]}
    assert states["onnxruntime-cpu:fp32"]["ok"] and value["default_target"].startswith("onnxruntime-")


def test_nothing_can_run(command: Command, found: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    value = copy.deepcopy(found)
    value |= {"default_target": None, "virtual_environment": False}
    value["versions"]["onnx"] = None
    value["machine"] |= {"memory_available_gib": 0.5, "disk_free_gib": 1.0, "load": 99.0}
    lines = doctor.advice(value)
    for text in ("pip install onnx", "no target can run", "python3 -m venv", "memory", "disk", "load average"):
        assert any(text in line for line in lines)
    value["advice"] = lines
    monkeypatch.setattr(doctor, "findings", lambda: value)
    expect(command("doctor"), 0, "No target can run on this machine.")


def test_text_of_files_is_escaped(found: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    value, bad = copy.deepcopy(found), "\x1b]0;x\x07[red]"
    value["machine"] |= {"cpu": bad, "os": bad, "gpus": [{"name": bad, "driver": bad, "memory": bad}]}
    value["targets"] = [{**state, "ok": False, "reason": bad, "install": bad} for state in value["targets"]]
    doctor._show(value | {"versions": {"torch": bad}, "advice": [bad]})
    out = capsys.readouterr().out
    assert "\x1b]0" not in out and "\x07" not in out and "\\x1b]0;x\\x07[red]" in out


def test_quiet_machine_needs_no_advice(found: dict[str, Any]) -> None:
    value = copy.deepcopy(found)
    value |= {"default_target": "onnxruntime-cpu:fp32", "virtual_environment": True}
    value["versions"] = dict.fromkeys(value["versions"], "1.0") | dict.fromkeys(doctor.OPTIONAL)
    value["machine"] |= {"memory_available_gib": None, "disk_free_gib": 50.0, "load": None}
    assert doctor.advice(value) == []


@pytest.mark.parametrize("kind", KINDS)
def test_install_lines_fit_the_machine(command: Command, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from export import platform, runtimes
    from export.backends import onnxruntime_session
    from export.trt.cuda import guard

    for module in (onnxruntime_session, platform, runtimes, guard, doctor):
        monkeypatch.setattr(module, "platform_kind", lambda **known: kind)
    monkeypatch.setattr(onnxruntime_session, "nvidia_driver", lambda: False)
    value = doctor.findings()
    assert value["machine"]["platform"] == kind and value["machine"]["jetson"] == (kind == "jetson")
    states = {state["target"]: state for state in value["targets"]}
    expected = install_line("onnxruntime-cuda", kind)
    assert states["onnxruntime-cuda:fp32"]["install"] == expected
    if kind == "jetson":
        lines = [state["install"] for state in value["targets"] if "-cpu" not in state["target"]]
        assert not any("pip install" in line for line in lines)
    monkeypatch.setattr(doctor, "findings", lambda: value)
    expect(command("doctor"), 0, f"→ {expected}")


def test_memory_is_optional(tmp_path: Path) -> None:
    unknown = {"memory_gib": None, "memory_available_gib": None}
    assert doctor._memory(tmp_path / "missing") == unknown
    (tmp_path / "meminfo").write_text("MemTotal: 2097152 kB\n")
    assert doctor._memory(tmp_path / "meminfo") == unknown
    (tmp_path / "meminfo").write_text("MemTotal: 2097152 kB\nMemAvailable: 1048576 kB\n")
    assert doctor._memory(tmp_path / "meminfo") == {"memory_gib": 2.0, "memory_available_gib": 1.0}
