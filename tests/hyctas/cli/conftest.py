"""Run commands in this process, and what several files' tests start from: a trained supernet, a network, a bundle, a table."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export.bundle.imaging import Preprocessing
from hyctas.arch.genotype import Genotype
from hyctas.arch.operators import from_key
from hyctas.artifacts.bundling import bundle_network, load_trained
from hyctas.cost import calibrate
from hyctas.cost.workloads import family
from hyctas.data import Labels, default_colours
from hyctas.network import build, save_weights
from hyctas.space import SPACES, Space, tiny
from latency.accuracy import Fidelity
from latency.calibration import Calibration
from latency.identity import Identity
from latency.table import LatencyTable, Row

Command = Callable[..., tuple[int, str]]
SIZE = (64, 64)
DATA, CLASSES = "scenes:train=16,val=4,size=48x64", 10
SMALL = ("--data", DATA, "--crop", "48x64", "--batch", 2)
TRAIN = ("supernet", *SMALL, "--space", "tiny", "--steps", 2)
SEARCH = ("--evaluations", 4, "--images", 4, "--config", Path(__file__).with_name("search.toml"), "--finalists", 0)
LITE = Preprocessing(mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
"""What EfficientNet-Lite was trained with."""
LABELS = Labels(tuple("abcde"), default_colours(5))


@pytest.fixture(autouse=True)
def _brief_witness(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for no quiet machine: other tests run beside."""
    monkeypatch.setattr("latency.witness.PATIENCE_S", 0.0)
    monkeypatch.setattr("latency.witness.READING_MS", 5.0)


@pytest.fixture(scope="session", autouse=True)
def brief_networks() -> Iterator[None]:
    """Time whole networks briefly: what commands do with the times is tested here, not how exact they are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibrate, "NETWORK_PROTOCOL", replace(calibrate.NETWORK_PROTOCOL, warmup_ms=10, budget_ms=50))
        yield


def run_command(name: str, *arguments: object) -> int:
    """Run a command in this process; return its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"/x/hyctas-{name}", *map(str, arguments)])
        try:
            importlib.import_module(f"hyctas.cli.{name}").main()
        except SystemExit as end:
            return int(end.code or 0)
    return 0


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command in this process; return its exit code and everything it printed."""

    def run(name: str, *arguments: object) -> tuple[int, str]:
        code, captured = run_command(name, *arguments), capsys.readouterr()
        return code, captured.out + captured.err

    return run


def expect(ended: tuple[int, str], code: int, *said: str) -> str:
    """Hold how a command ended against the exit code and what it must say; return all that it said."""
    assert ended[0] == code and ("Traceback" in ended[1]) == (code == 70), ended[1]
    assert [words for words in said if words not in ended[1]] == [], ended[1]
    return ended[1]


def made_table(mape: float = 0.01, ratios: tuple[float, ...] = ()) -> LatencyTable:
    """Make a table in which latency follows MACs, calibrated for 64x64."""
    identity = Identity(target="onnxruntime-cpu:fp32", device={"cpu": "another"}, versions={}, threads=1, protocol={})
    rows = {}
    for key in tiny().keys(SIZE, CLASSES):
        operator, shapes = from_key(key)
        ms = 0.01 + 30 * operator.macs(shapes) / 1e9
        rows[key] = Row(op=family(key), median_ms=ms, p10_ms=ms, p90_ms=ms, n=20, builds=1, busy=False)
    calibration = Calibration(
        name="tiny@64x64", constant=0.0, scale=1.0, n=20,
        holdout=Fidelity(mape, 1.0, 1.0, 1.0, 1.0, 20), space_hash=tiny().hash, residual_sd=0.0, ratios=ratios,
    )  # fmt: skip
    return LatencyTable(identity, rows, {calibration.name: calibration})


def nano() -> Space:
    """A space of few operators."""
    plain: dict[str, Any] = {"first": ("conv",), "attention": False}
    stages = [replace(s, widths=s.widths[-1:], operators=("skip", *plain["first"][: s.depth - 1]), **plain) for s in tiny().stages]
    few: dict[str, Any] = {"stems": ("conv",), "attention": (), "branch_sets": ((16,), (8, 16)), "heads": ("plain",)}
    return replace(tiny(), name="nano", stages=tuple(stages), **few)


@pytest.fixture(scope="module")
def nano_known() -> Iterator[None]:
    """Let commands know that space."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SPACES, "nano", nano)
        yield


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a trained supernet and a latency table."""
    return trained_run(tmp_path_factory.mktemp("trained"))


def trained_run(run: Path) -> Path:
    """Train a supernet into a folder, and put a table beside it; return the folder."""
    assert run_command("train", *TRAIN, "--run", run) == 0
    made_table().save(run / "latency.json")
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of it, to break."""
    return Path(shutil.copytree(trained, tmp_path, dirs_exist_ok=True))


@pytest.fixture(scope="session")
def _searched(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = Path(shutil.copytree(trained, tmp_path_factory.mktemp("searched") / "run"))
    assert run_command("search", "--run", run, *SEARCH, "--limit", "ms=5") == 0
    return run


@pytest.fixture
def searched(_searched: Path, tmp_path: Path) -> Path:
    """A copy of the run after a search for at most 5 ms."""
    return Path(shutil.copytree(_searched, tmp_path, dirs_exist_ok=True))


def small_genotype(seed: int = 468) -> Genotype:
    """Draw a network of the tiny space; 468 gives one of its smallest, which export quickly."""
    return tiny().sample(np.random.default_rng(seed))


RECORD = {
    "format_version": 1, "command": "train-network", "state": "running", "started": "", "command_line": [], "config": {},
    "versions": {}, "machine": {},
}  # fmt: skip
"""What every run's record holds."""


def write_run(folder: Path, labels: Labels = LABELS) -> Path:
    """Write what hyctas-train network leaves of the network itself, without the training."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    save_weights(build(small_genotype(), labels.num_classes), folder / "network.safetensors", {"genotype": small_genotype().id})
    (folder / "genotype.json").write_text(small_genotype().to_json())
    (folder / "labels.json").write_text(json.dumps(labels.to_json()))
    return folder


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What hyctas-train network leaves, without the training."""
    folder = write_run(tmp_path_factory.mktemp("work") / "runs" / "one")
    config = {"recipe": {"size": list(SIZE)}, "data": {}, "preprocessing": LITE.to_json()}
    (folder / "train-network.json").write_text(json.dumps(RECORD | {"config": config}))
    choose, val = ({"miou": miou, "iou": [miou] * 5, "pixel_accuracy": 0.5} for miou in (0.5, 0.25))
    scores = {"format_version": 1, "choose": choose, "val": val}
    (folder / "scores.json").write_text(json.dumps(scores))
    return folder


@pytest.fixture(scope="session")
def bundle(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of that network."""
    folder = tmp_path_factory.mktemp("bundles") / "b"
    bundle_network(load_trained(run_folder), folder, SIZE)
    return folder
