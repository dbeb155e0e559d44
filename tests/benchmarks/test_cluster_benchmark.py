"""What the benchmark of workers computes, and that docs/scale.md says the same."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks.cluster import Figures, Round, account, arithmetic, main, scaled
from export.codec import decode
from export.files import write_json

ROOT = Path(__file__).parents[2]
DOCUMENTED = decode(Figures, ROOT / "benchmarks/results/cpu/cluster.json", 1)
DOCUMENT = ROOT / "docs/scale.md"


def test_more_devices_than_a_generation_has_networks_are_of_no_use() -> None:
    times = [scaled(DOCUMENTED, devices).scoring_s for devices in (1, 2, 8, 16, 64)]
    assert times[:4] == sorted(times[:4], reverse=True) and times[0] / times[1] == pytest.approx(2.0, rel=0.01)
    assert times[4] == pytest.approx(times[3] - DOCUMENTED.screen_s - DOCUMENTED.whole_s), "the first generation alone gains"
    assert scaled(DOCUMENTED, 64, 192).scoring_s < times[4] / 3


def test_the_document_shows_this_arithmetic() -> None:
    assert arithmetic(DOCUMENTED).strip() in DOCUMENT.read_text()


def test_figures_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    write_json(tmp_path / "figures.json", {"format_version": 1, **asdict(DOCUMENTED)})
    monkeypatch.setattr("sys.argv", ["cluster", "--figures", str(tmp_path / "figures.json")])
    main()
    assert capsys.readouterr().out.strip() == arithmetic(DOCUMENTED).strip()
    monkeypatch.setattr("sys.argv", ["cluster", "--run", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2 and "--out" in capsys.readouterr().err


def test_the_account_says_whether_the_goal_is_reached() -> None:
    import argparse

    asked = argparse.Namespace(candidates=16, rounds=2, images=60)
    slow, fast = Round(3.0, 20.0, 12.0), Round(3.5, 10.5, 6.5)
    text = account({1: [slow, slow], 2: [fast, fast]}, 16, DOCUMENTED, asked)
    assert "**1.88** times as many" in text and "reached" in text and "| 2 | 0.94 | 0.94 | 0.94 | 3.5 s |" in text
    assert "missed" in account({1: [fast], 2: [fast]}, 16, DOCUMENTED, asked)
