"""Reading a run folder: everything is checked once, and errors name the file and the place."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from export.errors import CorruptFile, InvalidInput, Perform
from hyctas.report import RunData, collect

Change = Callable[[Path, Callable[[Any], None]], None]
JSON_FILES = (
    "latency.json", "pareto.json", "genotype.json", "labels.json", "scores.json", "fps.json", "bundle/parity.json",
    "bundle/manifest.json", "search.json", "train-supernet.json", "train-network.json",
)  # fmt: skip


def test_whole_run(whole_run: Path) -> None:
    data = collect(whole_run)
    assert data.outcome and data.table and data.bench and data.parity and data.manifest and data.labels and data.plan
    assert data.genotype and data.genotype.id == data.outcome.choice.id == data.scored
    assert data.member == data.outcome.choice
    assert data.result == data.bench.models[0] and data.is_bundled(data.bench.models[0])
    assert (data.size, data.classes) == ((64, 96), 10)
    assert {e.kind for e in data.points} == {"search", "screen"}
    assert [record.command for record in data.records] == ["profile", "train-supernet", "search", "train-network"]
    assert set(data.scores) == {"val", "choose"} and data.scores["val"].iou[2] is None
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.folder = whole_run  # type: ignore[misc]


@pytest.mark.parametrize("name", JSON_FILES)
@pytest.mark.parametrize("text", ['{"format_version": 1, "truncat', "[]", "[" * 100_000, '{"format_version": 99}', "\udcff"])
def test_unusable_json_names_the_file(run: Path, name: str, text: str) -> None:
    (run / name).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(CorruptFile) as caught:
        collect(run)
    assert caught.value.path == run / name


@pytest.mark.parametrize(
    ("name", "edit"),
    [
        ("pareto.json", lambda v: v.update(chosen="0" * 12)),
        ("pareto.json", lambda v: v.pop("front")),
        ("pareto.json", lambda v: v["front"][0].update(miou=1.5)),
        ("pareto.json", lambda v: v["front"][0].update(predicted_ms=True)),
        ("pareto.json", lambda v: v["front"][0].update(miou=v["front"][0]["miou"] + 0.01)),  # history.jsonl says otherwise
        ("pareto.json", lambda v: v["front"][0].update(predicted_ms=10**400)),
        ("pareto.json", lambda v: v.update(reference_ms=10**400)),
        ("scores.json", lambda v: v["val"].update(miou=10**400)),
        ("fps.json", lambda v: v["models"][0].update(cv=10**400)),
        ("fps.json", lambda v: v.update(target=0)),
        ("fps.json", lambda v: v.update(others_share=1.5)),
        ("fps.json", lambda v: v.update(threads=True)),
        ("fps.json", lambda v: v.update(versions={"torch": None})),
        ("fps.json", lambda v: v["models"][0].update(n=20.5)),
        ("fps.json", lambda v: v["models"][0].update(p99_ms=v["models"][0]["median_ms"] / 2)),
        ("fps.json", lambda v: v["models"][0].update(fps=v["models"][0]["fps"] * 2)),
        ("pareto.json", lambda v: v["front"][0].update(measured_ms=0)),
        ("pareto.json", lambda v: v["front"][0].update(measured_ms=float("nan"))),
        ("pareto.json", lambda v: v["limits"].update(latency_ms=-1)),
        ("pareto.json", lambda v: v["hypervolume"].update(search="much")),
        ("pareto.json", lambda v: v["finalists"][0].update(trained_miou=[2.0])),
        ("pareto.json", lambda v: v["finalists"][0].update(end="lost")),
        ("pareto.json", lambda v: v["finalists"][0].pop("handmade")),
        ("pareto.json", lambda v: v.update(size=[0, 96])),
        ("pareto.json", lambda v: v.update(size="wide")),
        ("pareto.json", lambda v: v.update(calibration={})),
        ("scores.json", lambda v: v["val"]["iou"].pop()),
        ("scores.json", lambda v: v["val"].update(iou=[0.5], present=[True])),
        ("scores.json", lambda v: v["val"].update(miou=None)),
        ("scores.json", lambda v: v["val"].update(present=[1] * 10)),
        ("labels.json", lambda v: v["colours"].pop()),
        ("fps.json", lambda v: v.update(models=[])),
        ("fps.json", lambda v: v["models"][0].update(fps=0)),
        ("fps.json", lambda v: v["models"][0].update(size="big")),
        ("fps.json", lambda v: v["models"][0].update(unknown=1)),
        ("bundle/parity.json", lambda v: v.update(passed="yes")),
        ("bundle/parity.json", lambda v: v.pop("inputs")),
        ("search.json", lambda v: v.pop("command_line")),
    ],
)
def test_impossible_values_name_the_file(run: Path, change: Change, name: str, edit: Callable[[Any], None]) -> None:
    change(run / name, edit)
    with pytest.raises(CorruptFile) as caught:
        collect(run)
    assert caught.value.path == run / name


def test_bad_line_of_the_history_is_numbered(run: Path) -> None:
    path = run / "history.jsonl"
    lines = path.read_text().splitlines()
    lines[2] = lines[2].replace('"miou"', '"mIoU"')
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(CorruptFile) as caught:
        collect(run)
    assert (caught.value.path, caught.value.line) == (path, 3)


def test_torn_last_line_is_left_out_and_told(run: Path) -> None:
    path = run / "history.jsonl"
    whole = collect(run)
    text = path.read_bytes() + b'{"kind": "sea'
    path.write_bytes(text)
    data = collect(run)
    assert data.points == whole.points and "torn" in data.notices[0]
    assert path.read_bytes() == text  # reading changes nothing


def test_sizes_and_calibrations_of_both_forms(run: Path, change: Change) -> None:
    change(run / "pareto.json", lambda v: v.update(size="64x96", calibration={"name": "tiny@64x96", "n": 40}))
    outcome = collect(run).outcome
    assert outcome and outcome.calibration and (outcome.size, outcome.calibration.name) == ((64, 96), "tiny@64x96")


@pytest.mark.parametrize("content", [None, "folder"])
def test_nothing_to_report(tmp_path: Path, content: str | None) -> None:
    run = tmp_path / "run"
    if content:
        run.mkdir()
    with pytest.raises(InvalidInput) as found:
        collect(run)
    assert [type(remedy) for remedy in found.value.remedies] == [Perform]


def test_what_is_absent_is_none(run: Path) -> None:
    for name in (*JSON_FILES, "history.jsonl", "profile.json", "bundle/model.onnx"):
        if name != "labels.json":
            (run / name).unlink()
    labels = json.loads((run / "labels.json").read_text())
    data = collect(run)
    assert data == RunData(folder=run, scores={}, sizes=data.sizes, labels=data.labels)
    assert data.labels and list(data.labels.names) == labels["names"]
    assert data.genotype is data.plan is data.size is data.result is data.member is None
