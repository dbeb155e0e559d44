"""Find the weights that a training starts from: trained trunks of others, and runs and bundles of ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.bundle.imaging import Preprocessing
from export.bundle.manifest import NAME as BUNDLE_MARK
from export.errors import CorruptFile, InvalidInput, StartOver
from export.files import real_path, sha256
from hyctas.arch.genotype import Cell, Genotype, final_stride
from hyctas.network import Network
from hyctas.nn.supernet import Supernet
from hyctas.pretrained.sources import WHEELS, read_source
from hyctas.pretrained.staging import sorted_by_importance, trunk_cells, trunk_weights
from hyctas.pretrained.state_file import WITHOUT
from hyctas.pretrained.weights import (
    Loaded,
    Weights,
    check_fit,
    network_weights,
    slots_of,
    start_network,
    start_supernet,
    supernet_weights,
)
from hyctas.space import edge
from hyctas.spaces.grid import Space
from hyctas.spaces.members import member
from hyctas.spaces.search_space import SearchSpace

if TYPE_CHECKING:
    from hyctas.artifacts.inherit import SupernetRecord

NONE = "none"
DEFAULT, DEFAULT_MEMBER = "efficientnet-lite0", "lite0"
"""The weights, and the hand-made network that is their trunk."""


@dataclass(frozen=True)
class Start:
    """Weights to start from."""

    weights: Weights
    preprocessing: Preprocessing
    """What they expect of images."""
    classes: tuple[str, ...]
    """Names of the classes that they predict; empty for a trunk."""
    record: Mapping[str, Any]
    """For the run's record: what was asked for, its hash, origin and licence."""
    cells: tuple[Cell, ...] = ()
    """The trained trunk, stem first: what operators without weights can be fitted to. Empty for a supernet, which has many."""

    def network(self, network: Network, classes: Sequence[str]) -> Loaded:
        """Load what fits into a network, in place; with other classes the prediction stays random.

        Raises:
            InvalidInput: nothing of the trunk behind its stem fits.
        """
        return start_network(network, self.weights, same_classes=self.classes == tuple(classes))

    def check_network(self, genotype: Genotype) -> None:
        """Check that something of a network fits, before anything is built or written.

        Raises:
            InvalidInput: nothing of the trunk behind its stem fits.
        """
        check_fit(slots_of(genotype), self.weights)

    def check_supernet(self, space: SearchSpace) -> None:
        """Check that something of a supernet fits (see `check_network`)."""
        check_fit((name for name, _ in space.cells()), self.weights)

    def supernet(self, supernet: Supernet, classes: Sequence[str]) -> Loaded:
        """Load what fits into a supernet, in place (see `network`)."""
        return start_supernet(supernet, self.weights, same_classes=self.classes == tuple(classes))


def find_start(source: str, run: Path, space: str | None = None) -> Start | None:
    """Read the weights that a user names.

    Args:
        source: "none", a run folder, a bundle, or what `hyctas.pretrained.read_source` takes.
        run: the job's own run folder: as a source it stands for its supernet.
        space: the user's own space file, where the source is a supernet that was trained on one.

    Returns:
        None for "none".

    Raises:
        InvalidInput, CorruptFile, Unavailable: the source is unknown, damaged, or not installed.
    """
    if source == NONE:
        return None
    folder = Path(source)
    if source in WHEELS or not folder.is_dir():
        trunk = read_source(source)
        name = folder.name if folder.is_file() else source
        record = {"source": name, "sha256": trunk.sha256, "origin": trunk.origin, "licence": trunk.licence}
        preprocessing = Preprocessing(mean=trunk.mean, std=trunk.std)
        return Start(trunk_weights(sorted_by_importance(trunk)), preprocessing, (), record, trunk_cells(trunk))
    try:
        return _start_from_folder(folder, run, space)
    except (CorruptFile, InvalidInput) as error:  # starting over would be for the run that the weights are from
        error.remedies = (*(remedy for remedy in error.remedies if not isinstance(remedy, StartOver)), WITHOUT)
        raise


def _start_from_folder(folder: Path, run: Path, space: str | None) -> Start:
    if (folder / BUNDLE_MARK).exists() or ((folder / "network.safetensors").exists() and real_path(folder) != real_path(run)):
        return _start_from_network(folder)
    if (folder / "supernet.safetensors").exists():
        return _start_from_supernet(folder, space)
    raise InvalidInput(f"{folder} holds neither a bundle nor trained weights (network.safetensors, supernet.safetensors)")


def _start_from_network(folder: Path) -> Start:
    from hyctas.artifacts.bundling import load_trained, weights_file

    trained = load_trained(folder)
    record = {"source": folder.name, "sha256": sha256(weights_file(folder)), "genotype": trained.genotype.id}
    record |= _source_of_source(trained.facts.get("init"))
    cells = (*trained.genotype.stem, *max(trained.genotype.branches, key=final_stride))
    return Start(network_weights(trained.network), trained.preprocessing, trained.labels.names, record, cells)


def _start_from_supernet(folder: Path, space: str | None) -> Start:
    from hyctas.artifacts.inherit import SupernetRecord

    found = SupernetRecord.read(folder)
    return supernet_start(found, found.load(space), folder.name)


def supernet_start(found: SupernetRecord, supernet: Supernet, name: str) -> Start:
    """Return the weights of a supernet that is loaded already, from the run folder of this name."""
    from hyctas.artifacts.runs import recorded_preprocessing

    record = {"source": name, "sha256": sha256(found.path), **_source_of_source(found.init)}
    preprocessing = recorded_preprocessing(found.path.with_name("train-supernet.json"))
    return Start(supernet_weights(supernet), preprocessing, found.classes, record)


def _source_of_source(record: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what the record of weights says of those that they started from, whose licence may bind them."""
    return {"from": dict(record)} if record else {}


def default_source(genotype: Genotype) -> str:
    """Name the weights that a network starts from where nobody says: trained ones if it is of `edge` and has blocks for them."""
    try:
        edge().encode(genotype)
        check_fit(slots_of(genotype), slots_of(member(DEFAULT_MEMBER)))
    except InvalidInput:
        return NONE
    return DEFAULT


def default_supernet_source(space: SearchSpace) -> str:
    """Name the weights that a supernet starts from where nobody says: trained ones for `edge`."""
    return DEFAULT if isinstance(space, Space) and space.hash == edge().hash else NONE
