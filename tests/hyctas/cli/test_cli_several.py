"""Several searches over one supernet: each as it would be alone, no network scored twice, one report; kills and bad input.

Whether their limits hold, measured; and one by an optimiser of the user's own.
"""

from __future__ import annotations

import json
import runpy
import shutil
from pathlib import Path

import pytest

from benchmarks import limits_kept
from export.errors import CheckFailed
from hyctas.arch.genotype import Genotype
from hyctas.cli.search import SearchJob
from hyctas.commands import measured_networks
from hyctas.commands import search as search_command
from hyctas.search.history import Evaluation, History, read_history
from hyctas.search.score import Scorer
from hyctas.search.search_settings import SearchSettings
from tests.hyctas.cli.conftest import SEARCH, Command, expect, made_table, run_command

SEARCHES = '[fast]\nlimit = "ms=0.42"\n\n[small]\nlimit = ["ms=5", "params=3e5"]\ntable = "TABLE"\n'
FOLDERS = ("fast", "small")


@pytest.fixture(scope="module")
def searches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of two searches, the second one on a device of its own."""
    folder = tmp_path_factory.mktemp("searches")
    made_table(mape=0.02).save(folder / "slow.json")
    (folder / "several.toml").write_text(SEARCHES.replace("TABLE", str(folder / "slow.json")))
    return folder / "several.toml"


@pytest.fixture(scope="module")
def done(trained: Path, searches: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The run after both, and what was computed for them."""
    run = Path(shutil.copytree(trained, tmp_path_factory.mktemp("several") / "run"))
    computed: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("__call__", "screen"):
            real = getattr(Scorer, name)

            def scored(self: Scorer, genotype: Genotype, name: str = name, real: object = real) -> float:
                computed.append(f"{name} {genotype.id}")
                return float(real(self, genotype))  # type: ignore[operator]

            patch.setattr(Scorer, name, scored)
        assert run_command("search", "--run", run, *SEARCH, "--several", searches) == 0
    return run, computed


def test_each_is_as_it_would_be_alone(command: Command, done: tuple[Path, list[str]], run: Path, searches: Path) -> None:
    table = searches.with_name("slow.json")
    expect(command("search", "--run", run, *SEARCH, "--limit", "ms=5", "params=3e5", "--table", table), 0)
    for name in ("history.jsonl", "pareto.json"):
        assert (run / name).read_bytes() == (done[0] / "searches/small" / name).read_bytes()


def test_no_network_is_scored_twice(done: tuple[Path, list[str]]) -> None:
    run, computed = done
    lines = sum(len((run / "searches" / name / "history.jsonl").read_text().splitlines()) - 1 for name in FOLDERS)
    assert len(computed) == len(set(computed)) < lines, "the hand-made networks at least are in both"
    weights = [run / "searches" / name / "supernet.safetensors" for name in FOLDERS]
    assert all(path.samefile(run / "supernet.safetensors") for path in weights), "linked, not copied"


def test_one_report_on_all(command: Command, done: tuple[Path, list[str]], searches: Path) -> None:
    run = done[0]
    text, page = (run / "searches.md").read_text(), (run / "searches.html").read_text()
    for name in FOLDERS:
        assert f"| {name} | onnxruntime-cpu:fp32 | 64x64 |" in text and f">{name}<" in page
    assert "0.420 ms" in text and "300 thousand parameters" in text and "2 searches" in text
    assert (run / "searches.svg").read_text().count("latency in ms (onnxruntime-cpu:fp32)") == 2 and "<svg" in page
    said = expect(command("search", "--run", run, *SEARCH, "--several", searches), 0, "search 2 of 2: small", "wrote")
    assert said.count("already there") == 2 and said.count("onnxruntime-cpu:fp32  64x64") == 2


def test_limits_measured(
    done: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(done[0], tmp_path / "run"))
    arguments = ["--run", str(run), "--networks", "2", "--out", str(tmp_path / "kept")]

    def refused(*more: str) -> str:
        with pytest.raises(SystemExit):
            limits_kept.main([*arguments, *more])
        return capsys.readouterr().err

    assert "run this where the latency table was measured" in refused()
    monkeypatch.setattr(measured_networks, "hardware", lambda: {"cpu": "another"})
    assert "searches/small followed another latency table" in refused()
    shutil.rmtree(run / "searches/small")
    limits_kept.main(arguments)
    found = json.loads((tmp_path / "kept.json").read_text())["searches"][0]
    evaluations = read_history(run / "searches/fast/history.jsonl")[1]
    predicted = sorted(e.predicted_ms for e in evaluations if e.kind == "search" and e.predicted_ms <= 0.42)
    assert found["predicted_ms"] == predicted[: -3 : -1] and all(ms > 0 for ms in found["measured_ms"])
    share = sum(ms <= 0.42 for ms in found["measured_ms"]) / 2
    assert f"| fast | 0.42 | prediction | 2 | {share:.0%} |" in (tmp_path / "kept.md").read_text()
    assert "networks below 0.42 ms; give --networks" in refused("--networks", "9")


@pytest.mark.parametrize("stop", [4, 12])
def test_a_killed_command_continues(
    command: Command, done: tuple[Path, list[str]], run: Path, searches: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    several, real, added = ("search", "--run", run, *SEARCH, "--several", searches), History.add, list[Evaluation]()

    def killed(self: History, evaluation: Evaluation) -> None:
        if len(added) == stop:
            raise KeyboardInterrupt
        added.append(evaluation)
        real(self, evaluation)

    with monkeypatch.context() as patch:
        patch.setattr(History, "add", killed)
        expect(command(*several), 130)
    expect(command(*several), 0, "continuing")
    for name in FOLDERS:
        for file in ("history.jsonl", "pareto.json"):
            assert (run / "searches" / name / file).read_bytes() == (done[0] / "searches" / name / file).read_bytes()


def test_one_that_fails_does_not_stop_the_others(
    command: Command, done: tuple[Path, list[str]], searches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, real = Path(shutil.copytree(done[0], tmp_path / "run")), search_command.search_run

    def failing(case: search_command.Case, *more: object) -> None:
        if case.job.run.name == "fast":
            raise CheckFailed("the trainings of all finalists failed")
        real(case, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(search_command, "search_run", failing)
    several = ("search", "--run", run, *SEARCH, "--several", searches)
    expect(command(*several), 1, "1 of 2 searches failed: fast: the trainings", "small   onnxruntime-cpu:fp32")


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("", 2, "holds no table"),
        ("limit = 'ms=5'", 2, "limit stands outside of a table"),
        ("[a]\nlimits = 'ms=5'", 2, "[a] has unknown keys ['limits']"),
        ("[a]\nrun = 'b'", 2, "[a] has unknown keys ['run']"),
        ("[a]\nimages = 'few'", 2, "images is 'few'"),
        ("[a]\npopulation = 0", 2, "population is 0"),
        ("['../a']\nseed = 1", 2, "names a folder"),
        ("[a]\nseed = ", 2, "not valid TOML"),
        ("[a]\nlimit = 'ms=5'\n[b]\nlimit = 'ms=1e-9'", 1, "search b: no network of space tiny meets the limits"),
        ("[a]\n[b]\ntable = 'nowhere.json'", 2, "search b: there is no latency table at nowhere.json"),
    ],
)
def test_bad_input(command: Command, run: Path, tmp_path: Path, text: str, code: int, said: str) -> None:
    """Nothing is computed before all searches are known to be possible."""
    (tmp_path / "bad.toml").write_text(text)
    expect(command("search", "--run", run, *SEARCH, "--several", tmp_path / "bad.toml"), code, said)
    assert not list(run.rglob("history.jsonl"))


def test_a_file_that_is_not_there(command: Command, run: Path) -> None:
    expect(command("search", "--run", run, *SEARCH, "--several", "nowhere.toml"), 2, "no such file: nowhere.toml")


def test_an_optimiser_of_ones_own(command: Command, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = Path(__file__).parents[3] / "docs/own_optimiser.py"
    assert len([line for line in own.read_text().splitlines() if line.strip()]) <= 20
    mutants = runpy.run_path(str(own))["Mutants"]
    settings = SearchSettings(population=4, candidates=6, screen_images=2)
    job = SearchJob(run=run, evaluations=5, images=4, finalists=0, measure=0, settings=settings)
    search_command.run_search(job, mutants)
    assert "after 5 networks" in capsys.readouterr().out and (run / "pareto.svg").exists()
    search_command.run_search(job, mutants)
    assert "is already there with this configuration" in capsys.readouterr().out
    expect(command("search", "--run", run, "--evaluations", 5), 2, "another configuration", "optimiser")
