"""Put a hand-made network of equal latency beside the one that a demo found, trained for as many steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from export.codec import decode, plain
from export.files import read_json, write_json
from export.target import Target
from hyctas.artifacts.choice import HANDMADE, read_outcome
from hyctas.artifacts.runs import Record
from hyctas.cli.show import bar
from hyctas.cost.calibrate import measure_networks
from hyctas.engine.table_attention import open_target
from hyctas.spaces.members import family, member, members
from latency.table import LatencyTable

RANDOM, PRETRAINED = ("plain", "two-branch", "hyctas"), ("lite0-16", "lite0-16-attention")
"""Families that start from random weights, and from trained ones: with the chosen network they are one batch to be measured."""
FEW_STEPS = 100
"""With fewer, a supernet's scores say little."""
FORMAT_VERSION, ROUNDS = 1, 5


@dataclass(frozen=True)
class _Handmade:
    """Which hand-made network stands beside the one that a search chose."""

    beside: str
    """Id of the chosen network."""
    network: str


def nearest_in_latency(run: Path, families: Sequence[str], num_classes: int) -> str:
    """Return the hand-made network whose latency is nearest to that of the network that a run chose: `edge:NAME`.

    All are measured in turns, so that what slows the machine slows them alike. The answer is noted in RUN/handmade.json, so that a
    demo that was killed goes on with the same one.
    """
    outcome, path = read_outcome(run), run / "handmade.json"
    if path.exists() and (noted := decode(_Handmade, path, FORMAT_VERSION)).beside == outcome.chosen:
        return noted.network
    names = [name for name in members() if family(name) in families]
    runtime = open_target(Target.parse(outcome.target), outcome.threads or 1)
    with bar(f"measure {len(names)} hand-made networks") as shown:
        times = measure_networks(
            [outcome.choice.evaluation.genotype, *(member(name) for name in names)], runtime, outcome.size, num_classes,
            rounds=ROUNDS, progress=lambda done, total: shown.update(done / total),
        )[0].tolist()  # fmt: skip
    ratios = dict(zip(names, (ms / times[0] for ms in times[1:]), strict=True))
    name = HANDMADE + min(names, key=lambda name: abs(math.log(ratios[name])))
    write_json(path, {"format_version": FORMAT_VERSION, **plain(_Handmade(outcome.chosen, name))})
    return name


def comparison(run: Path, handmade: Path, name: str) -> str:
    """Say which of the two networks is more accurate, and how fast both are (RUN/fps.json); the search may have chosen this one."""
    models = read_json(run / "fps.json", 1)["models"]
    scores = [read_json(folder / "scores.json", 1) for folder in (run, handmade)]
    found, other = ((100 * score["val"]["miou"], model["median_ms"]) for score, model in zip(scores, models, strict=True))
    start = "trained" if Record.read(handmade, "train-network").results["start"] else "random"
    same, ahead = scores[0]["genotype"] == scores[1]["genotype"], found[0] - other[0]
    text = (
        f"{'chosen:  ' if same else 'searched:'}  {found[0]:.1f} % mIoU on val at {found[1]:.2f} ms, trained on from its weights "
        "as a finalist\n"
        f"hand-made: {other[0]:.1f} % mIoU on val at {other[1]:.2f} ms ({name}), as many steps from {start} weights\n"
    )
    if same:
        return f"{text}the search chose the hand-made network; what it learnt in supernet and search is worth {ahead:+.1f} points"
    wins = ahead > 0
    text += f"the {'searched' if wins else 'hand-made'} network is more accurate by {abs(ahead):.1f} points"
    return text if wins else f"{text}; it lies in {handmade}"


def steps_of(run: Path, command: str) -> int:
    """Return for how many steps a finished training ran."""
    return int(Record.read(run, command).results["steps"])


def work_done(run: Path) -> str:
    """Say how much was trained and how good predictions are: on a slow or busy machine, both are less."""
    steps = [steps_of(run, command) for command in ("train-supernet", "train-network")]
    used = read_outcome(run).calibration
    assert used is not None, "a demo calibrates its table"
    error = LatencyTable.load(run / "latency.json").calibrations[used.name].holdout.mape
    text = (
        f"supernet: {steps[0]} steps; network: {steps[1]} steps; latency predictions of unseen networks are off by {error:.0%} on "
        "average"
    )
    if steps[0] >= FEW_STEPS:
        return text
    return f"{text}\nthat is little training: this machine is slow or busy, and the networks are poor; --minutes gives it more time"
