"""Find the weights that a training starts from: trained trunks of others, and runs and bundles of ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.bundle.imaging import Preprocessing
from export.bundle.manifest import NAME as BUNDLE_MARK
from export.errors import InvalidInput
from export.files import real_path, sha256
from hyctas.arch.genotype import Cell, Genotype, final_stride
from hyctas.network import Network
from hyctas.nn.supernet import Supernet
from hyctas.pretrained.sources import read_source
from hyctas.pretrained.staging import sorted_by_importance, trunk_cells, trunk_weights
from hyctas.pretrained.weights import Loaded, Weights, network_weights, start_network, start_supernet, supernet_weights
from hyctas.space import edge
from hyctas.spaces.grid import Space
from hyctas.spaces.search_space import SearchSpace

if TYPE_CHECKING:
    from hyctas.artifacts.inherit import SupernetRecord

NONE = "none"
DEFAULT = "efficientnet-lite0"


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
    if not folder.is_dir():
        trunk = read_source(source)
        record = {"source": source, "sha256": trunk.sha256, "origin": trunk.origin, "licence": trunk.licence}
        preprocessing = Preprocessing(mean=trunk.mean, std=trunk.std)
        return Start(trunk_weights(sorted_by_importance(trunk)), preprocessing, (), record, trunk_cells(trunk))
    if (folder / BUNDLE_MARK).exists() or ((folder / "network.safetensors").exists() and real_path(folder) != real_path(run)):
        return _start_from_network(folder)
    if (folder / "supernet.safetensors").exists():
        return _start_from_supernet(folder, space)
    raise InvalidInput(f"{source} holds neither a bundle nor trained weights (network.safetensors, supernet.safetensors)")


def _start_from_network(folder: Path) -> Start:
    from hyctas.artifacts.bundling import load_trained, weights_file

    trained = load_trained(folder)
    record = {"source": folder.name, "sha256": sha256(weights_file(folder)), "genotype": trained.genotype.id}
    cells = (*trained.genotype.stem, *max(trained.genotype.branches, key=final_stride))
    return Start(network_weights(trained.network), trained.preprocessing, trained.labels.names, record, cells)


def _start_from_supernet(folder: Path, space: str | None) -> Start:
    from hyctas.artifacts.inherit import SupernetRecord

    found = SupernetRecord.read(folder)
    return supernet_start(found, found.load(space), folder.name)


def supernet_start(found: SupernetRecord, supernet: Supernet, name: str) -> Start:
    """Return the weights of a supernet that is loaded already, from the run folder of this name."""
    from hyctas.artifacts.runs import recorded_preprocessing

    record = {"source": name, "sha256": sha256(found.path)}
    preprocessing = recorded_preprocessing(found.path.with_name("train-supernet.json"))
    return Start(supernet_weights(supernet), preprocessing, found.classes, record)


def default_source(genotype: Genotype) -> str:
    """Name the weights that a network starts from where nobody says: trained ones if it is of `edge` and has blocks for them."""
    try:
        edge().encode(genotype)
    except InvalidInput:
        return NONE
    cells = [cell for part in (genotype.stem, *genotype.branches) for cell in part]
    return DEFAULT if any(cell.op == "inverted" and cell.stage != "2" for cell in cells) else NONE


def default_supernet_source(space: SearchSpace) -> str:
    """Name the weights that a supernet starts from where nobody says: trained ones for `edge`."""
    return DEFAULT if isinstance(space, Space) and space.hash == edge().hash else NONE
