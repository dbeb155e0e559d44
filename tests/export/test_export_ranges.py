"""Every setting of every configuration states its range, and no instance outside of it is ever made."""

from __future__ import annotations

import dataclasses
import importlib
import math
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import pytest

from export.errors import InvalidInput, InvalidSetting
from export.ranges import Bound, Range, Settings, describe, fits, hints, limits
from export.trt.options import BuildOptions
from hyctas import cli
from hyctas.artifacts.int8_settings import Int8Settings
from hyctas.cli.bench import BenchJob
from hyctas.cli.demo import DemoJob
from hyctas.cli.doctor import DoctorJob
from hyctas.cli.entry import command
from hyctas.cli.export import ExportJob
from hyctas.cli.predict import PredictJob
from hyctas.cli.profile import ProfileJob
from hyctas.cli.search import SearchJob
from hyctas.cli.train import TrainJob, TrainNetworkJob, TrainSupernetJob
from hyctas.cli.values import bare
from hyctas.data.scenes import Scenes
from hyctas.data.transforms import Augment
from hyctas.engine.settings import EngineSettings, LoadSettings
from hyctas.search.search_settings import SearchSettings
from hyctas.training.config import NetworkRecipe, Recipe, SupernetRecipe
from latency.kit.format import Timing
from latency.protocol import Protocol

KINDS = [
    Recipe, NetworkRecipe, SupernetRecipe, ProfileJob, TrainJob, TrainNetworkJob, TrainSupernetJob, SearchJob, DemoJob, ExportJob,
    BenchJob, PredictJob, DoctorJob, SearchSettings, Protocol, Int8Settings, EngineSettings, LoadSettings, BuildOptions, Timing,
    Scenes, Augment,
]  # fmt: skip
NEEDED: dict[type, dict[str, Any]] = {
    BuildOptions: {"precision": "fp16"}, ExportJob: {"file": "x.onnx"}, PredictJob: {"sources": ("x.png",)},
    Augment: {"crop": (64, 64)},
    Recipe: {"steps": 1}, NetworkRecipe: {"steps": 1}, SupernetRecipe: {"steps": 1},
}  # fmt: skip


def unbounded(hint: Any, bounded: bool = False) -> bool:
    """Say whether a number in an annotation has no bound."""
    if hint in (int, float):
        return not bounded
    items = get_args(hint)
    marked = bounded or any(isinstance(item, Bound) for item in items)
    return any(unbounded(item, marked) for item in items)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_number_states_its_range_and_is_held_to_it(kind: type) -> None:
    assert issubclass(kind, Settings)
    needed = NEEDED.get(kind, {})
    assert dataclasses.asdict(kind(**needed))  # type: ignore[call-overload]  # defaults are inside
    for name, hint in hints(kind).items():
        assert not unbounded(hint), f"{kind.__name__}.{name} states no range"
        if not limits(hint):
            continue
        for wrong in (math.nan, math.inf, -1, -0.5, True, "1e9", b"", (), (-1, -1), (math.nan,) * 3):
            if wrong == () and fits(wrong, hint):  # any number of values, none included
                continue
            with pytest.raises(InvalidInput) as found:
                kind(**{**needed, name: wrong})
            assert isinstance(found.value, InvalidSetting) and found.value.name == name and found.value.allowed == describe(hint)


def test_settings_that_work_by_commands_are_all_here() -> None:
    for name in (path.stem for path in (Path(cli.__file__).parent).glob("*.py")):
        found = {value for value in vars(importlib.import_module(f"hyctas.cli.{name}")).values() if isinstance(value, type)}
        jobs = {kind for kind in found if kind.__name__.endswith("Job")}
        assert jobs <= set(KINDS)
        assert {kind for job in jobs for hint in hints(job).values() if dataclasses.is_dataclass(kind := bare(hint))} <= set(KINDS)


def test_an_annotation_is_read_as_it_is_written() -> None:
    share = Annotated[float, Range(0, below=1)]
    cases = [
        (0, share, True), (0.99, share, True), (1, share, False), (True, share, False), (None, share, False),
        (None, share | None, True), ((1, 2), tuple[int, int], True), ((1,), tuple[int, int], False),
        ([1, 2], tuple[int, int], False), ((Path("a"),), tuple[Path, ...], True), (("a",), tuple[Path, ...], False),
        ("poly", Literal["poly"], True), ("x", Literal["poly"], False), (1.5, int, False), (1, float, True), (False, bool, True),
        (0, bool, False),
    ]  # fmt: skip
    assert [fits(value, hint) for value, hint, _ in cases] == [expected for *_, expected in cases]
    assert describe(share | None) == "a number, at least 0, below 1" and limits(tuple[share, share]) == "at least 0, below 1"


@pytest.mark.parametrize(
    ("text", "name"),
    [("clip = -1", "clip"), ("distillation = -5", "distillation"), ("weight_decay = -1", "weight_decay"),
     ("threads = 0", "threads"), ("random_networks = -1", "random_networks"), ("learning_rate = nan", "learning_rate"),
     (f"warmup_steps = {'9' * 400}", "warmup_steps"), ("clip = inf", "clip"),
     ("seed = -1", "seed"), ("steps = false", "steps"), ('steps = "10"', "steps"), ("run = 5", "run"),
     ("restart = 1", "restart"), ("size = 360", "size"), ("minutes = 0", "minutes"), ("scale = [0.5]", "scale"),
     ('schedule = "cubic"', "schedule")],
)  # fmt: skip
def test_a_toml_file_is_held_to_the_ranges(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, name: str) -> None:
    (tmp_path / "a.toml").write_text(f"{text}\n")
    with pytest.raises(SystemExit) as end:
        command(lambda job: job.recipe(), TrainSupernetJob, "", ["--config", str(tmp_path / "a.toml")])
    shown = capsys.readouterr().err
    assert end.value.code == 2 and shown.startswith(f"error: {name} is ") and "; allowed: " in shown


@pytest.mark.parametrize(
    ("job", "flags"),
    [(SearchJob, ("--measure", "-1")), (SearchJob, ("--seed", "-1")), (SearchJob, ("--confidence", "nan")),
     (ProfileJob, ("--classes", "0")), (ProfileJob, ("--threads", "0")), (ExportJob, ("x.onnx", "--classes", "0")),
     (BenchJob, ("--seconds", "inf")), (DemoJob, ("--fps", "-1")), (TrainNetworkJob, ("--batch", "0"))],
)  # fmt: skip
def test_flags_are_held_to_the_ranges(capsys: pytest.CaptureFixture[str], job: type, flags: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as end:
        command(lambda _: pytest.fail("started"), job, "", flags)
    assert end.value.code == 2 and "; allowed: " in capsys.readouterr().err


def test_a_toml_file_writes_what_the_command_line_does(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('run = "x"\nlimit = "fps=30"\nrestart = true\nmax_error = 5\nconfidence = 95\n')
    jobs: list[SearchJob] = []
    command(jobs.append, SearchJob, "", ["--config", str(tmp_path / "a.toml")])
    assert jobs == [SearchJob(run=Path("x"), limit=("fps=30",), restart=True, max_error=5, confidence=95)]


def test_the_command_line_wins_over_the_toml_file(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('limit = ["ms=9", "mib=3"]\nrestart = true\nseed = 5\npopulation = 9\n')
    jobs: list[SearchJob] = []
    for given in ((), ("--limit", "fps=30", "--no-restart", "--seed", "0"), ("--restart",)):
        command(jobs.append, SearchJob, "", ["--config", str(tmp_path / "a.toml"), *given])
    in_file = SearchJob(limit=("ms=9", "mib=3"), restart=True, seed=5, settings=SearchSettings(population=9))
    assert jobs == [in_file, dataclasses.replace(in_file, limit=("fps=30",), restart=False, seed=0), in_file]


def test_a_budget_on_the_command_line_replaces_that_of_the_toml_file(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("minutes = 5\n")
    jobs: list[TrainSupernetJob] = []
    command(jobs.append, TrainSupernetJob, "", ["--config", str(tmp_path / "a.toml"), "--steps", "7"])
    assert (jobs[0].recipe().minutes, jobs[0].recipe().steps) == (None, 7)
