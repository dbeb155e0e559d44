"""The whole report: one self-contained page, the same numbers in Markdown, honest about what is missing or went wrong."""

from __future__ import annotations

import html
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.errors import CorruptFile, InvalidInput
from hyctas.report import collect, write_report

Change = Callable[[Path, Callable[[Any], None]], None]
VOID = {"meta", "img", "br", "link", "input"}


class Page(HTMLParser):
    """Checks nesting, and keeps what a page refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "srcset", "poster", "action", "data"):
                self.links.append(value or "")
            if name == "id":
                self.ids.append(value or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def examples(number: int) -> tuple[list[tuple[np.ndarray, np.ndarray]], list[np.ndarray]]:
    rng = np.random.default_rng(0)
    shape = (60, 80)
    pairs = [(rng.integers(0, 256, (*shape, 3), dtype=np.uint8), rng.integers(0, 11, shape, dtype=np.uint8)) for _ in range(number)]
    return pairs, [label for _, label in pairs]


def test_page_is_self_contained(run: Path) -> None:
    path = write_report(run, *examples(6))
    text = path.read_text()
    page = Page(text)
    assert path == run / "report.html" and path.stat().st_size <= 5 * 2**20
    assert len(page.ids) == len(set(page.ids))
    for link in page.links:
        assert link.startswith(("#", "data:image/jpeg;base64,"))
        assert not link.startswith("#") or link[1:] in page.ids
    assert sum(link.startswith("data:") for link in page.links) == 6
    assert not page.tags & {"script", "link", "iframe", "object"}
    assert not re.search(r"url\((?!#)|@import|https?://(?!www\.w3\.org/(2000/svg|1999/xlink)\")", text)
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text


def test_both_formats_say_the_same(run: Path) -> None:
    text = write_report(run).read_text()
    markdown = (run / "report.md").read_text()
    data = collect(run)
    assert data.outcome and data.result
    for member in data.outcome.front:
        assert member.id in text and member.id in markdown
    plain = html.unescape(" ".join(re.sub(r"<[^>]*>", " ", text).split()))
    lines = [line for line in markdown.splitlines() if line.startswith("| ") and "---" not in line]
    cells = [cell.strip() for line in lines for cell in re.split(r"(?<!\\)\|", line)]
    assert len(cells) > 150
    for cell in cells:
        assert html.unescape(re.sub(r"\\(.)", r"\1", cell)) in plain
    assert f"{data.result.fps:,.0f} FPS" in markdown
    assert f"{100 * data.scores['val'].miou:.1f} %" in markdown
    assert "hyctas-train supernet --run runs/demo --data 'my data'" in markdown


def test_output_is_deterministic(run: Path) -> None:
    names = ("report.html", "report.md", "pareto.svg")
    written = []
    for _ in range(2):
        write_report(run, *examples(2))
        written.append([(run / name).read_bytes() for name in names])
    assert written[0] == written[1]
    ET.fromstring(written[0][2])


def test_hostile_names_are_escaped(run: Path, change: Change) -> None:
    hostile = '<script>alert("1")</script>|`*'
    change(run / "labels.json", lambda v: v["names"].__setitem__(0, hostile))
    change(run / "fps.json", lambda v: v["models"][0].update(name=hostile))
    change(run / "fps.json", lambda v: v.update(warnings=[hostile]))
    change(run / "search.json", lambda v: v.update(command_line=["hyctas-search", hostile, "````"], state=hostile))
    change(run / "search.json", lambda v: v["machine"].update(cpu=hostile))
    change(run / "search.json", lambda v: v["versions"].update({hostile: hostile}))
    change(run / "pareto.json", lambda v: v.update(target=hostile + "$x$"))
    page = Page(write_report(run, *examples(1)).read_text())
    assert "script" not in page.tags
    fenced = re.sub(r"(?s)^(`{3,})sh\n.*?^\1$", "", (run / "report.md").read_text(), flags=re.MULTILINE)
    assert "<script>" not in fenced


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("fps.json",), "there is no fps.json and no bench.json"),
        (("scores.json",), "there is no scores.json"),
        (("pareto.json",), "there is no pareto.json"),
        (("latency.json",), "there is no latency.json"),
        (("bundle/parity.json",), "there is no bundle/parity.json"),
        (("profile.json", "train-supernet.json", "search.json", "train-network.json"), "holds no record of a command"),
        (("labels.json", "scores.json", "profile.json"), "The network's diagram"),
        (("genotype.json", "pareto.json"), "The network's diagram"),
        (("history.jsonl",), "no images were given"),
        (("genotype.json",), "no images were given"),
        (("bundle/manifest.json", "pareto.json", "fps.json"), "The network's diagram"),
    ],
)
def test_a_missing_part_is_left_out_and_told(run: Path, names: tuple[str, ...], told: str) -> None:
    for name in names:
        (run / name).unlink()
    Page(write_report(run).read_text())
    assert told in html.unescape((run / "report.html").read_text()) and told in (run / "report.md").read_text()


def test_only_a_table(run: Path) -> None:
    for path in run.rglob("*.json*"):
        if path.name != "latency.json":
            path.unlink()
    text = write_report(run).read_text()
    assert "No network chosen yet" in text and "Can the predictions be trusted?" in text
    assert not (run / "pareto.svg").exists()


def test_a_broken_file_stops_before_anything_is_written(run: Path) -> None:
    (run / "scores.json").write_text("{")
    with pytest.raises(CorruptFile, match=r"scores\.json"):
        write_report(run)
    assert not (run / "report.html").exists()


def test_examples_need_predictions(run: Path) -> None:
    pairs, predictions = examples(3)
    with pytest.raises(InvalidInput, match="3 examples and 2 predictions"):
        write_report(run, pairs, predictions[:2])


def report_of(run: Path) -> str:
    write_report(run)
    return (run / "report.md").read_text()


def test_finalists(run: Path, change: Change) -> None:
    def end(index: int, **values: object) -> Callable[[Any], None]:
        return lambda v: v["finalists"][index].update(values)

    text = report_of(run)
    for words in ("A network that the search found won", "its training failed: the loss is not finite", "above the limit"):
        assert words in text
    change(run / "pareto.json", end(0, handmade="edge:lite0"))
    assert report_of(run).count("edge:lite0, which beat all that the search found") == 1
    assert "The hand-made network edge:lite0 beat all that the search found, so it is the answer" in report_of(run)
    change(run / "pareto.json", end(0, end="slow"))
    assert "No finalist meets the limit when measured" in report_of(run)
    change(run / "pareto.json", lambda v: v.pop("finalists"))
    assert "none were trained, the network was chosen by shared weights" in report_of(run)


def test_an_older_run_with_a_random_baseline_is_reported(run: Path, change: Change) -> None:
    def older(v: Any) -> None:
        del v["finalists"], v["weights"]
        v["hypervolume"]["random"] = 0.3
        v.update(format_version=1, evaluations={"search": 12, "random": 12}, random_front=v["front"])

    change(run / "pareto.json", older)
    history = (run / "history.jsonl").read_text().replace('"format_version": 2', '"format_version": 1')
    (run / "history.jsonl").write_text(history.replace('"kind": "screen"', '"kind": "random"'))
    assert "12 networks were scored" in report_of(run)


def test_bench_json_stands_in_and_shows_its_command(run: Path, change: Change) -> None:
    (run / "fps.json").rename(run / "bench.json")
    change(run / "bench.json", lambda v: v.update(command_line=["hyctas-bench", "--run", "runs/demo"]))
    assert "hyctas-bench --run runs/demo" in report_of(run) and collect(run).bench is not None


def test_one_command_that_did_all_stands_there_once(run: Path, change: Change) -> None:
    for name in ("profile", "train-supernet", "search", "train-network"):
        change(run / f"{name}.json", lambda v: v.update(command_line=["hyctas-demo", "--minutes", "8"]))
    change(run / "train-network.json", lambda v: v.update(state="running", finished=None))
    text = report_of(run)
    assert text.count("hyctas-demo --minutes 8") == 1 and "# train-network: started 2026-11-22T13:00:00Z, running" in text


def test_a_noisy_timing_is_marked_in_the_answer(run: Path, change: Change) -> None:
    assert "take it with care" not in report_of(run)
    change(run / "fps.json", lambda v: v.update(warnings=["other processes were running"]))
    text = report_of(run)
    assert "take it with care, see Measured speed" in text and "Other processes were running" in text


def test_data_is_named_and_camvid_is_warned_of(run: Path, change: Change) -> None:
    found = {"kind": "camvid", "counts": {"val": 101}, "train": 300, "choose": 67, "method": "clips"}
    change(run / "train-network.json", lambda v: v["config"].update(data=found))
    text = report_of(run)
    assert "300 images to train on, 67 images to choose by, 101 images to report (val). Training and choosing" in text
    assert "so its score flatters" in text


def test_limits_kept_and_broken(run: Path, change: Change) -> None:
    for limits, words in (
        ({"latency_ms": 1e3, "parameters": None, "memory_mib": None}, "✓ yes"),
        ({"latency_ms": 1e-3, "parameters": None, "memory_mib": None}, "✗ no"),
        ({"latency_ms": None, "parameters": 10.0, "memory_mib": None}, "✗ no"),
        ({"latency_ms": None, "parameters": None, "memory_mib": 1.0}, "12.5 MiB, limit 1 MiB"),
        ({"latency_ms": None, "parameters": None, "memory_mib": None}, "no limit"),
    ):
        change(run / "pareto.json", lambda v, limits=limits: v.update(limits=limits))
        assert words in report_of(run)


def test_a_prediction_is_called_one(run: Path, change: Change) -> None:
    (run / "fps.json").unlink()
    change(run / "pareto.json", lambda v: [m.update(measured_ms=None) for m in (*v["front"], *v["finalists"])])
    text = report_of(run)
    assert "It is predicted to take" in text and "by prediction only" in text and "was measured whole" in text


def test_parts_that_do_not_fit_together_are_told(run: Path, change: Change) -> None:
    other = next(m for m in json.loads((run / "pareto.json").read_text())["finalists"] if m["end"] == "worse")
    change(run / "pareto.json", lambda v: v.update(calibration=None))
    (run / "genotype.json").write_text(json.dumps(other["genotype"]))
    change(run / "fps.json", lambda v: v.update(target="openvino-cpu:fp32"))
    change(run / "fps.json", lambda v: [model.update(sha256="0" * 64, size="32x32") for model in v["models"]])
    change(run / "bundle" / "parity.json", lambda v: v.update(passed=False))
    change(run / "bundle" / "manifest.json", lambda v: v["extra"].update(genotype="abc"))
    text = report_of(run)
    for words in (
        f"The trained network {other['id']} is not the one that the search chose",
        "Scores.json belongs to network",
        "timed on openvino-cpu:fp32",
        "timed at 32x32",
        "is none of the bundle's",
        "The bundle holds another network, abc",
        "✗ failed",
        "No calibration: predictions are plain sums",
    ):
        assert words in text


def test_only_the_figure_needs_matplotlib_and_nothing_needs_the_rest() -> None:
    code = (
        "import sys\n"
        "for name in ('rich', 'tyro', 'pymoo', 'matplotlib', 'torch'): sys.modules[name] = None\n"
        "import hyctas.report, hyctas.report.collect, hyctas.report.report_files, hyctas.report.diagram, hyctas.report.overlays\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])
