"""Part 5: the tests that carry the mark `gpu`, where pytest is installed."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks.gpu_suite.records import LeftOut
from benchmarks.gpu_suite.session import Session

ROOT = Path(__file__).parents[2]
MARK = "mark.gpu"


def run(session: Session) -> None:
    """Run each file's marked tests; a rehearsal runs one file's, which skip."""
    files = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if MARK in path.read_text()]
    for path in files[:1] if session.place.rehearsal else files:
        name = path.relative_to(ROOT).as_posix()
        session.records.attempt(name, lambda path=path: marked(path, session.records.seconds_left), needs=2.0)  # type: ignore[misc]


def marked(path: Path, seconds: float) -> Mapping[str, Any]:
    """Run the marked tests of one file in a process of its own.

    Raises:
        LeftOut: pytest is not installed, the time is over, or all of them skip (with their first reason).
    """
    missing = [name for name in ("pytest", "hypothesis") if importlib.util.find_spec(name) is None]
    if missing:
        raise LeftOut(f"not installed: {', '.join(missing)}")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", f"--junitxml={report}", str(path)]
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=max(1.0, seconds))
        except subprocess.TimeoutExpired:
            raise LeftOut("the part's time is over") from None
        if not report.exists():
            return {"state": "failed", "why": [f"pytest ended with code {done.returncode}: {done.stdout[-400:]}"]}
        return judged(report)


def judged(report: Path) -> Mapping[str, Any]:
    """Read pytest's XML report.

    Raises:
        LeftOut: nothing ran.
    """
    cases = list(ElementTree.parse(report).iter("testcase"))
    skipped = [found.get("message", "") for case in cases if (found := case.find("skipped")) is not None]
    wrong = [f"{case.get('name')}: {found.get('message', '')[:300]}" for case in cases
             for kind in ("failure", "error") if (found := case.find(kind)) is not None]  # fmt: skip
    if len(skipped) == len(cases):
        raise LeftOut(f"all {len(cases)} skip: {skipped[0] if skipped else 'there are none'}")
    return {"state": "failed" if wrong else "ok", "why": wrong, "tests": len(cases), "skipped": len(skipped)}
