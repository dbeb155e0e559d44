"""hyctas-search: find the networks that no other beats in mIoU and latency, and choose one by training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from export.ranges import Range, Seed, Settings
from hyctas.cli.entry import command
from hyctas.search.search_settings import SearchSettings


@dataclass(frozen=True, kw_only=True)
class SearchJob(Settings):
    """What hyctas-search looks for: RUN/history.jsonl, finalists, pareto.json, pareto.svg."""

    run: Path = Path("runs/new")
    """Run folder with supernet.safetensors and latency.json."""
    space: str | None = None
    """Your own space file, if the supernet was trained on one: code that only a run folder names is never run."""
    data: str | None = None
    """Data set; default: the one that the supernet was trained on, at the path that it had then."""
    table: tuple[Path, ...] = ()
    """Latency tables, default RUN/latency.json; of a network's latencies on several targets, the longest counts."""
    size: str | None = None
    """Image size that latency is predicted for, HEIGHTxWIDTH; default: the one that the table was calibrated for."""
    limit: tuple[str, ...] = ()
    """Limits that every network must meet, for instance fps=30 ms=33 params=2e6 mib=64."""
    confidence: Annotated[float, Range(50, below=100)] | None = None
    """Apply the latency limit to an upper bound of this confidence in per cent, for instance 95; default: to the prediction."""
    max_error: Annotated[float, Range(0, 1e6)] = 10.0
    """Stop if the hold-out error (MAPE) of the latency table exceeds this many per cent."""
    evaluations: Annotated[int, Range(2, 10**6)] = 200
    """Networks to score; twice as many are screened on a few images first."""
    images: Annotated[int, Range(2, 10**6)] = 60
    """Images of the choosing split that a network is scored on."""
    seed: Seed = 0
    """Seed of all random choices."""
    measure: Annotated[int, Range(0, 1000)] = 8
    """Networks of the Pareto front that are measured on the target; 0: none."""
    finalists: Annotated[int, Range(0, 1000)] = 12
    """Networks trained for a while before one is chosen, the best hand-made ones among them; 0: choose by shared weights."""
    finalist_steps: Annotated[int, Range(1, 10**6)] = 100
    """Training steps of each finalist in the first round; after each round the worse half drops out, and the steps double."""
    several: Path | None = None
    """Do several searches: a TOML file with a table of settings (flags) for each, its results in RUN/searches/NAME."""
    workers: Annotated[int, Range(1, 1024)] | None = None
    """Let so many processes of this machine score and train at once; results are the same whatever their number."""
    ray: str | None = None
    """Let the workers of a Ray cluster do so: HOST:PORT of its head, or auto."""
    restart: bool = False
    """Move the old results aside and start over."""
    settings: tyro.conf.Fixed[SearchSettings] = field(default_factory=SearchSettings)
    """How networks are proposed and scored."""

    GROUPS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "latency": ("table", "size", "limit", "confidence", "max_error"),
        "search": ("evaluations", "images", "seed", "measure", "several"),
        "workers": ("workers", "ray"),
        "finalist": ("finalists", "finalist_steps"),
    }


def main() -> None:
    """Run the command line."""
    command(
        _run, SearchJob, "Search the space of a trained supernet: RUN/pareto.json.",
        name="hyctas-search", example="--run runs/mine --limit fps=30",
    )  # fmt: skip


def _run(job: SearchJob) -> None:
    from hyctas.commands.search import run_search

    run_search(job)


if __name__ == "__main__":
    main()
