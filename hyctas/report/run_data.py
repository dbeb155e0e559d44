"""Hold what a report knows of a run: plain frozen data, as `collect` found it in the run folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from export.bench_report import BenchReport, BenchResult
from export.bundle.manifest import Manifest
from export.parity import ParityReport
from export.target import parse_size
from hyctas.arch.genotype import Genotype
from hyctas.artifacts.choice import Member, Outcome
from hyctas.artifacts.runs import Record
from hyctas.data.labels import Labels
from hyctas.data.metric import Score
from hyctas.plan import Plan, lower
from hyctas.search.history import Evaluation
from latency.table import LatencyTable

SPLITS = ("val", "choose")
FILES: dict[str, str] = {
    "latency.json": "measured latency of every operator of the space",
    "supernet.safetensors": "weights that all networks of the space share",
    "history.jsonl": "every evaluated network",
    "pareto.json": "the front, the finalists and the chosen network",
    "genotype.json": "the trained network as plain data",
    "network.safetensors": "its weights",
    "scores.json": "its accuracy",
    "labels.json": "names and colours of the classes",
    "bundle/model.onnx": "the network as ONNX, to run anywhere",
    "bundle/parity.json": "proof that the exported file computes the same",
    "bundle/manifest.json": "hashes of all files of the bundle",
    "fps.json": "the measured frame rate",
    "bench.json": "the measured frame rate",
}
"""What a run folder may hold, and what it is."""


@dataclass(frozen=True, kw_only=True)
class RunData:
    """All that a report says, as found in the run folder. What a folder lacks is None or empty."""

    folder: Path
    table: LatencyTable | None = None
    records: tuple[Record, ...] = ()
    points: tuple[Evaluation, ...] = ()
    """Every evaluated network, in order."""
    outcome: Outcome | None = None
    trained: Genotype | None = None
    """The network that was trained alone (genotype.json)."""
    scores: Mapping[str, Score]
    """By split, of `SPLITS`."""
    scored: str | None = None
    """Id of the network that the scores belong to."""
    labels: Labels | None = None
    bench: BenchReport | None = None
    """fps.json, or where that is absent bench.json."""
    parity: ParityReport | None = None
    """How far the exported file agrees with the PyTorch network (bundle/parity.json)."""
    manifest: Manifest | None = None
    sizes: Mapping[str, int]
    """Size in bytes of every file of `FILES` that is there."""
    notices: tuple[str, ...] = ()
    step_name: Callable[[str], str] = str
    """Gives the name under which the reader knows a step of the job (`search`, `train network`): a command's, for instance."""

    @property
    def genotype(self) -> Genotype | None:
        """The network that the report is about: the trained one, else the one that the search chose."""
        if self.trained is not None or self.outcome is None:
            return self.trained
        return self.outcome.choice.evaluation.genotype

    @property
    def member(self) -> Member | None:
        """What the search says of `genotype`, where it is a finalist or on the front."""
        members, genotype = (self.outcome.members if self.outcome else ()), self.genotype
        return next((member for member in members if genotype is not None and member.id == genotype.id), None)

    @property
    def result(self) -> BenchResult | None:
        """The bench's line for the network: the file of the bundle where its hash is there, else the first."""
        if self.bench is None:
            return None
        return next((model for model in self.bench.models if self.is_bundled(model)), self.bench.models[0])

    def is_bundled(self, model: BenchResult) -> bool:
        """Say whether a timed file is one of the bundle."""
        hashes = {entry["sha256"] for entry in self.manifest.files.values()} if self.manifest else set()
        return model.sha256 in hashes

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width that the network was searched, exported or timed for."""
        if self.outcome is not None:
            return self.outcome.size
        if self.manifest is not None:
            return self.manifest.size
        timed = self.bench.models[0].size if self.bench else None
        return parse_size(timed) if timed else None

    @property
    def classes(self) -> int | None:
        """Number of classes."""
        if self.labels is not None:
            return self.labels.num_classes
        if self.scores:
            return len(next(iter(self.scores.values())).iou)
        if self.outcome is not None and self.outcome.num_classes is not None:
            return self.outcome.num_classes
        counts = [record.config.get("classes") for record in self.records if record.command == "profile"]
        return next((count for count in counts if isinstance(count, int) and count > 0), None)

    @property
    def data(self) -> dict[str, Any]:
        """How the data set that the networks were trained on identifies itself; empty where that is unknown."""
        found = [record.config.get("data") for record in self.records if record.command.startswith("train-")]
        return next((dict(value) for value in reversed(found) if isinstance(value, dict)), {})

    @cached_property
    def plan(self) -> Plan | None:
        """The network's plan; None where network, size or number of classes are unknown."""
        if self.genotype is None or self.size is None or self.classes is None:
            return None
        return lower(self.genotype, self.size, self.classes)
