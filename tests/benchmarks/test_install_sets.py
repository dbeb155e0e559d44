"""Reading the document's table and uv's answers, on canned text; the network is asked by the command alone."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from benchmarks import check_install_sets as sets

PAGE = """
## Install

| CUDA | packages | Python | machines | attention plugin |
|---|---|---|---|---|
| 13, beside ONNX Runtime | `pip install tensorrt-cu13==10.16.1.11 'cuda-bindings==13.4.*'` | 3.12 to 3.13 | x86-64, aarch64 | yes |
| 12 | `pip install tensorrt-cu12==10.16.1.11` | 3.11 to 3.11 | x86-64 | yes |
| 12, on a Jetson | of the system | | | no |

### Jetson

| 12 | `pip install other` | 3.11 to 3.11 | x86-64 |
"""
ANSWER = "numpy==2.4.6\nnvidia-cuda-runtime==13.0.96\ntensorrt-cu13==11.4.0.106\ntensorrt-cu13-libs==11.4.0.106\ntorch==2.13.0\n"


def test_the_documents_rows() -> None:
    both, old = sets.install_sets(PAGE)
    assert (both.cuda, both.requirements) == ("13", ("tensorrt-cu13==10.16.1.11", "cuda-bindings==13.4.*"))
    assert (both.pythons, both.machines) == (("3.12", "3.13"), ("x86-64", "aarch64"))
    assert (old.cuda, old.pythons, old.machines) == ("12", ("3.11",), ("x86-64",))
    real = sets.install_sets(sets.DOCUMENT.read_text())
    assert [row.cuda for row in real] == ["13", "13", "12", "12"]
    assert all(machine in sets.PLATFORMS for row in real for machine in row.machines)


def test_what_is_resolved() -> None:
    both, old = sets.install_sets(PAGE)
    base = sets.base_requirements()
    assert any(line.startswith("onnx>=") for line in base) and not any(line.startswith("torch") for line in base)
    new = list(sets.cases(both, base))
    assert len(new) == 2 * 2 * 2 * 2 and all("onnxruntime-gpu[cuda,cudnn]" in case.requirements for case in new)
    assert {case.libs for case in new} == {"tensorrt-cu13-libs"} and all(case.resolves for case in new)
    *fitting, wrong = sets.cases(old, base)
    assert len(fitting) == 2 * 2 and all("cuda-bindings>=12.9.4,<13" in case.requirements for case in fitting)
    assert not wrong.resolves and "torch>=2.11" in wrong.requirements


def test_verdicts(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[str] = []
    refused = "warning: no Python 3.9\nerror: No solution found when resolving\n  cause: torch wants 13"
    answers = [(0, ANSWER, ""), (1, "", refused), (0, ANSWER, ""), (1, "", refused), (2, "", "error: no network")]

    def run(command: list[str], input: str, **_named: Any) -> subprocess.CompletedProcess[str]:
        with open(command[command.index("--config-file") + 1]) as file:
            asked.append(file.read() + input)
        return subprocess.CompletedProcess(command, *answers[len(asked) - 1])

    monkeypatch.setattr(subprocess, "run", run)
    fitting = sets.Case("a set", ("tensorrt-cu13", "torch"), "3.11", "x86-64", "tensorrt-cu13-libs", "cuda")
    wrong = sets.Case("a warning", ("tensorrt-cu12",), "3.11", "x86-64", "tensorrt-cu12-libs", "cuda", resolves=False)
    assert [sets.checked(case) for case in (fitting, fitting, wrong, wrong, wrong)] == [True, False, False, True, False]
    said = capsys.readouterr().out
    assert "ok: a set; Python 3.11, x86-64, libraries ask for cuda\n    numpy 2.4.6, nvidia-cuda-runtime 13.0.96, " in said
    assert "tensorrt-cu13 11.4.0.106, torch 2.13.0\n" in said and "libs 11" not in said
    assert "FAILED: a set" in said and "    error: No solution found when resolving cause: torch wants 13" in said
    assert "FAILED: a warning" in said and "ok: a warning" in said
    assert asked[0] == '[[dependency-metadata]]\nname = "tensorrt-cu13-libs"\nrequires-dist = ["cuda"]\ntensorrt-cu13\ntorch'
