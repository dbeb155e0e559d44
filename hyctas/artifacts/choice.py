"""Read what a search found, and find the network that a run folder has chosen. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from export.codec import Count, Number, Positive, Share, Size, decode
from export.errors import CorruptFile, Give, InvalidInput, Perform
from export.target import parse_size
from hyctas.arch.genotype import Genotype
from hyctas.published.spec import is_source, read_source
from hyctas.search.history import Evaluation
from hyctas.search.limits import Limits
from hyctas.spaces.members import member

FORMAT_VERSION = 2
READ_VERSIONS = (FORMAT_VERSION, 1)
"""Version 1 also held a baseline of random networks."""
HANDMADE = "edge:"


@dataclass(frozen=True)
class Ended:
    """What became of a finalist."""

    handmade: str | None
    """Its name, where it is a hand-made network."""
    trained_miou: tuple[Share, ...]
    """On the choosing split, after each round that it was trained in."""
    end: Literal["won", "worse", "slow", "failed"]
    failure: str | None


@dataclass(frozen=True)
class Member:
    """A network of the front, or a finalist."""

    evaluation: Evaluation
    measured_ms: Positive | None
    ended: Ended | None = None
    """Of a finalist."""

    @classmethod
    def before_decoding(cls, value: dict[str, Any]) -> dict[str, Any]:
        """Put together what stands side by side in the file."""
        ended = {name: item for name, item in value.items() if name in Ended.__dataclass_fields__}
        own = {name: value[name] for name in value if name == "measured_ms"}
        evaluation = {name: item for name, item in value.items() if name not in {*ended, *own, "branches"}}
        return {**own, "evaluation": evaluation, "ended": ended or None}

    @property
    def id(self) -> str:
        return self.evaluation.id

    @property
    def branches(self) -> int:
        return len(self.evaluation.genotype.branches)

    @property
    def latency_ms(self) -> float:
        """Measured where it was measured, else predicted."""
        return self.evaluation.predicted_ms if self.measured_ms is None else self.measured_ms

    @property
    def error(self) -> float | None:
        """Predicted / measured - 1."""
        return None if self.measured_ms is None else self.evaluation.predicted_ms / self.measured_ms - 1


@dataclass(frozen=True)
class Evaluations:
    """How many networks were scored on all images, and screened on a few."""

    search: Number
    screen: Number = 0
    random: Number = 0


@dataclass(frozen=True)
class Hypervolumes:
    """Of the front, and in files of version 1 of a baseline's."""

    search: Share
    random: Share = 0.0


@dataclass(frozen=True)
class Named:
    """What of a calibration counts here."""

    OPEN: ClassVar = True
    name: str


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a search found (pareto.json)."""

    OPEN: ClassVar = True
    target: str
    size: Size
    num_classes: Count | None = None
    threads: Count | None = None
    limits: Limits
    reference_ms: Positive
    evaluations: Evaluations
    hypervolume: Hypervolumes
    chosen: str
    """Id of a finalist, or of a network of the front."""
    front: tuple[Member, ...]
    finalists: tuple[Member, ...] = ()
    weights: str | None = None
    """Folder of the chosen finalist's last training, inside the run folder."""
    confidence: Share | None = None
    """Of the bound that the limits apply to; None: they apply to the prediction."""
    calibration: Named | None = None
    """What predictions used; None: plain sums."""
    beside: tuple[str, ...] = ()
    """Further targets that were searched for: of a network's latencies, the longest is given."""

    @classmethod
    def before_decoding(cls, value: dict[str, Any]) -> dict[str, Any]:
        """Take sizes and calibrations that are text, too."""
        size, calibration = value.get("size"), value.get("calibration")
        return {
            **value, **({"size": list(parse_size(size))} if isinstance(size, str) else {}),
            "calibration": {"name": calibration} if isinstance(calibration, str) else calibration,
        }  # fmt: skip

    def __post_init__(self) -> None:
        if not any(member.id == self.chosen for member in self.members):
            raise ValueError(f"the chosen network {self.chosen!r} is neither a finalist nor on the front")

    @property
    def targets(self) -> str:
        """Name what was searched for."""
        return " and ".join([self.target, *self.beside])

    @property
    def members(self) -> tuple[Member, ...]:
        """Finalists, and the front."""
        return (*self.finalists, *self.front)

    @property
    def choice(self) -> Member:
        """The chosen network."""
        return next(member for member in self.members if member.id == self.chosen)


def read_genotype(path: Path) -> Genotype:
    """Read a genotype file, or give a hand-made (`edge:NAME`) or a released network (`published:S`).

    Raises:
        InvalidInput: no such file, or it describes no network.
    """
    if str(path).startswith(HANDMADE):
        return member(str(path).removeprefix(HANDMADE))
    if is_source(str(path)):
        return read_source(str(path))
    try:
        return decode(Genotype, path)
    except CorruptFile as error:
        raise InvalidInput(f"{path} is no genotype: {error.reason}") from None


def chosen_genotype(run: Path) -> Genotype:
    """Return the network that a search chose (RUN/pareto.json).

    Raises:
        InvalidInput: no search has finished there.
        CorruptFile: the file is damaged.
    """
    path = run / "pareto.json"
    if not path.exists():
        raise InvalidInput(f"there is no {path}", Perform("search", {"run": run}), Give("network", "GENOTYPE.json"))
    return read_outcome(run).choice.evaluation.genotype


def read_outcome(run: Path) -> Outcome:
    """Read RUN/pareto.json.

    Raises:
        FileNotFoundError: there is none.
        CorruptFile: it is damaged.
    """
    return decode(Outcome, run / "pareto.json", *READ_VERSIONS)


def chosen_weights(run: Path) -> Path:
    """Return the folder with the chosen network's weights: of its training as a finalist, without one the supernet's.

    Raises:
        CorruptFile: RUN/pareto.json is damaged.
    """
    weights = read_outcome(run).weights
    return run if weights is None else run / weights
