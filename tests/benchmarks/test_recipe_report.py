"""The account of hand-made networks: seeds of one case together, finals beside the yardstick as it was trained before."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from benchmarks.recipe_report import against, brief_gains, figure, of_plan, report
from benchmarks.screening import PLANS, Case


def _line(case: Case) -> dict[str, Any]:
    score = 0.5 + 0.1 * (case.init != "none") + 0.01 * case.seed
    found = {"miou": score, "iou": [score, None]}
    return {"case": case.to_json(), "split": case.splits[0], **found, "val": found, "classes": ["road", "sky"], "cpu": "x86"}


def test_report() -> None:
    cases = [case for plan in ("gate", "families", "finals") for case in PLANS[plan]()]
    lines = [_line(case) for case in reversed(cases)]
    finals, families = of_plan(lines, ["finals"]), of_plan(lines, ["widths", "families"])
    assert [len(each.lines) for each in finals] == [3] * 4 and finals[-1].settings == "default, recipe 1"
    assert {line["case"]["all_of_train"] for each in families for line in each.lines} == {False}
    assert finals[0].scores("val") == finals[0].scores("choose") == [60.0, 61.0, 62.0] and finals[0].ious("choose") == [61.0, 0.0]
    assert "+10.0 (+10.0, +10.0, +10.0)" in against(finals) and against(finals).count("+0.0 (") == 2
    times = {"edge:lite0-16": {"1": 9.0, "2": 5.0}, "edge:plain": {"1": 8.0, "2": 4.0}}
    assert not brief_gains(lines), "the yardstick as it was before is missing"
    before = [_line(replace(case, recipe=1)) for case in PLANS["families"]() if case.network == "edge:plain" and not case.settings]
    brief = brief_gains([*lines, *map(_line, PLANS["widths"]()), *before])
    assert "edge:lite0-16 +10.0 (+10.0, +10.0), edge:plain +0.0" in brief
    text = report(families, finals, brief, times, ["x86"])
    assert brief in text
    assert "| edge:plain | none | default | 8.00 | 4.00 | 50.0, 51.0 | 50.5 ± 0.7 |" in text
    assert "| edge:two-branch-w50 | none | default | not timed | not timed |" in text
    assert text.index("| edge:plain |") < text.index("| edge:lite0-16-") and "| road | 61.0 |" in text
    assert "lite0-16</text>" in figure(families, finals, times)
