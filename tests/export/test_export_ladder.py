"""Ladders: bundles with several networks, of which the one that keeps the deadline runs; scripted times, and a real runtime."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from export import contestant as contestant_module
from export.arrivals import Output, by_the_clock, play
from export.bench_models import BenchModel, OpenModel
from export.bundle.bundle import read_bundle
from export.bundle.bundle_ladder import check_order, has_members, list_members, member_folder, miou_of, read_ladder
from export.bundle.imaging import Preprocessing
from export.contestant import Contestant, Running, open_contestant, weighted_miou
from export.errors import CorruptFile, InvalidInput
from export.governor import Governor
from export.paced import pace, summarise, with_ladder
from export.paced_report import PacedResult
from export.prediction.frame_source import Frame
from export.prediction.ladder_segmenter import LadderSegmenter
from export.runtimes import open_runtime
from export.target import Target
from tests.export.test_export_bundle import Net, write
from tests.export.test_export_paced import FakeClock, Idle

ORT = Target("onnxruntime-cpu", "fp32")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ladder of two networks of one size."""
    folder = tmp_path_factory.mktemp("ladder") / "bundle"
    write(folder, extra={"miou": {"choose": 0.7, "val": 0.6}})
    write(member_folder(folder, 2), module=Net(2.0), extra={"miou": {"val": 0.5}})
    list_members(folder, 2)
    return folder


@pytest.fixture
def ladder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "bundle"))


def test_a_ladder_is_a_bundle_too(ladder: Path) -> None:
    assert has_members(ladder) and not has_members(member_folder(ladder, 2))
    assert [(rung.folder.name, rung.miou) for rung in read_ladder(ladder)] == [("bundle", 0.6), ("member-2", 0.5)]
    assert read_bundle(ladder).manifest.extra["miou"]["val"] == 0.6
    assert [rung.folder for rung in read_ladder(member_folder(ladder, 2))] == [member_folder(ladder, 2)]


def test_a_new_bundle_in_its_place_has_no_members(ladder: Path) -> None:
    (ladder / "mine.txt").write_text("kept")
    write(ladder)
    assert not has_members(ladder) and not member_folder(ladder, 2).exists() and (ladder / "mine.txt").exists()


def test_damage_is_named(ladder: Path) -> None:
    member = member_folder(ladder, 2)
    write(member, module=Net(3.0))
    with pytest.raises(CorruptFile, match=r"is another network than .* lists as its member"):
        read_ladder(ladder)
    write(member, module=Net(2.0), size=(19, 25))
    list_members(ladder, 2)
    with pytest.raises(CorruptFile, match="has another image size than the network that it is a member of: 19x25, not 17x25"):
        read_ladder(ladder)
    shutil.rmtree(member)
    with pytest.raises(CorruptFile, match="is listed in the manifest as a member, but missing"):
        read_ladder(ladder)
    manifest = json.loads((ladder / "manifest.json").read_text())
    for members in ([{"folder": "../elsewhere", "model_sha256": "0" * 64}], [{"folder": "member-2"}], {"member-2": 1}, [7]):
        (ladder / "manifest.json").write_text(json.dumps(manifest | {"members": members}))
        with pytest.raises(CorruptFile, match="manifest"):
            read_ladder(ladder)


def test_what_makes_no_ladder() -> None:
    check_order(["a", "b", "c"], [3, 2, 1], [0.7, None, 0.5])
    for names, macs, mious, reason in (
        ("ab", [1, 2], [0.7, 0.6], "b after a: .*from the most accurate to the fastest"),
        ("ab", [2, 1], [0.6, 0.6], r"b after a: it computes less, and its mIoU of 60\.0% is not below 60\.0%"),
        ("abcde", [5, 4, 3, 2, 1], [None] * 5, "2 to 4 networks; 5 were given"),
    ):  # fmt: skip
        with pytest.raises(InvalidInput, match=reason):
            check_order(list(names), macs, mious)  # type: ignore[arg-type]
    notes = [({}, None), ({"miou": {"choose": 0.25}}, 0.25), ({"miou": 7}, None), ({"miou": {"val": "x"}}, None)]
    assert all(miou_of(facts) == found for facts, found in notes)  # type: ignore[arg-type]


def played(times_ms: Sequence[float], fps: float, seconds: float, load: Sequence[tuple[float, float]]) -> PacedResult:
    """Run a ladder whose networks take so long, times the load from each moment on."""
    clock, model = FakeClock(), OpenModel("m", Idle(), None, Preprocessing(), np.zeros((1, 3)))  # type: ignore[arg-type]
    governor = Governor([ms / 1000 for ms in times_ms], 1 / fps)
    start, outputs, levels = clock.time, list[Output](), list[int]()

    def once(picture: object) -> None:
        factor = [factor for moment, factor in load if clock.time - start >= moment - 1e-9][-1]
        clock.time += factor * governor.times_s[governor.level]

    for output in play(once, by_the_clock(clock, fps, seconds), clock):
        outputs.append(output)
        levels.append(governor.level)
        governor.observe(output.age, output.run)
    models = tuple(replace(model, name=f"m{index}") for index in range(len(times_ms)))
    contestant = Contestant("m", models, tuple(0.7 - 0.1 * index for index in range(len(times_ms))))
    return with_ladder(summarise(model, outputs, fps), contestant, outputs, levels, governor)


def test_under_load_it_misses_next_to_nothing_where_one_network_misses_a_lot() -> None:
    load = [(0.0, 1.0), (10.0, 1.6), (30.0, 1.0)]
    alone, result = played([28.0], 30, 60, load), played([28.0, 16.0, 8.0], 30, 60, load)
    assert alone.missed_share > 0.3 and result.missed_share < 0.005
    assert result.ladder is not None and result.ladder.miou is not None
    assert result.ladder.switches == 1, "28 of 33 ms leave too little room to climb"
    shares = [rung.share for rung in result.ladder.rungs]
    assert sum(shares) == pytest.approx(1) and shares[0] == pytest.approx(1 / 6, abs=0.01) and shares[2] == 0
    assert result.ladder.miou == pytest.approx(0.7 * shares[0] + 0.6 * shares[1])
    assert (result.seconds[5].rung, result.seconds[20].rung) == (1, 2)


def test_it_climbs_back_where_there_is_room() -> None:
    result = played([24.0, 16.0, 8.0], 30, 60, [(0.0, 1.0), (10.0, 1.6), (30.0, 1.0)])
    assert result.missed_share < 0.005 and result.ladder is not None and result.ladder.switches == 2
    assert [result.seconds[second].rung for second in (5, 20, 50)] == [1, 2, 1]


def test_miou_is_not_made_up() -> None:
    assert weighted_miou([0.7, None], [1.0, 0.0]) == 0.7 and weighted_miou([0.7, None], [0.5, 0.5]) is None


def test_a_real_ladder(ladder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.002, 0.001])
    monkeypatch.setattr(contestant_module, "warm_up", lambda process, first: next(times))
    report = pace([BenchModel("b", ladder)], open_runtime(ORT, 1), 50, 0.4)
    (result,) = report.models
    assert result.ladder is not None and [rung.name for rung in result.ladder.rungs] == ["b", "b/member-2"]
    head, row = report.rows()
    assert head[-2:] == ["mIoU over time", "switches"] and row[-1] == str(result.ladder.switches)
    assert "network in charge" in report.to_html() and "of the time: b " in report.to_markdown()
    json.dumps(report.to_json(), allow_nan=False)


def test_a_ladder_whose_networks_are_equally_fast_is_refused(ladder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contestant_module, "warm_up", lambda process, first: 0.001)
    with open_contestant(BenchModel("b", ladder), open_runtime(ORT, 1), tmp_path) as opened:
        with pytest.raises(InvalidInput, match="b: network 2 of the ladder takes 1"):
            Running(opened, lambda model: lambda picture: None, None, 0.1)


def test_a_camera_sets_the_deadline() -> None:
    segmenters = [SimpleNamespace(model=SimpleNamespace(name=name)) for name in "ab"]
    ladder = LadderSegmenter(segmenters, [0.04, 0.01])  # type: ignore[arg-type]
    picture = Image.new("RGB", (4, 4))
    for number in range(30):
        ladder.observe(Frame(picture, Path("c"), 0.0, 5 + number / 25, number), 0.05, 0.045, None)
    assert ladder.governor.deadline_s == pytest.approx(1 / 25) and ladder.governor.level == 1
    assert ladder.summary() == "networks of the ladder, share of the frames: a 40%, b 60%; 1 switch"
    still = LadderSegmenter(segmenters, [0.04, 0.01])  # type: ignore[arg-type]
    for _ in range(30):
        still.observe(Frame(picture, Path("i"), 0.0), 9.0, 9.0, None)
    assert still.governor.level == 0, "images have no deadline"
