"""Choose the networks that a supernet is trained for: all of its space, or those near `--limit` by a latency table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from export.errors import Give, InvalidInput
from export.files import sha256
from export.target import format_size
from hyctas.cli.show import say
from hyctas.commands.usable_table import usable_table
from hyctas.cost.workloads import CostModel, calibrated_sizes, only_calibrated_size
from hyctas.search.limits import Limits
from hyctas.spaces.members import members
from hyctas.spaces.search_space import SearchSpace
from hyctas.training.band import Drawer, Trained, TrainedBand, latency_band, macs_band
from hyctas.training.config import SupernetRecipe
from latency import LatencyTable

if TYPE_CHECKING:
    from hyctas.cli.train import TrainSupernetJob


def networks_to_train(
    job: TrainSupernetJob, recipe: SupernetRecipe, space: SearchSpace, num_classes: int, trained: Trained
) -> tuple[Drawer, TrainedBand | None]:  # fmt: skip
    """Return what draws the networks, and with `--limit` what the run's record keeps of it.

    Args:
        job: with the limit.
        recipe: with the seed.
        space: where networks come from.
        num_classes: number of classes.
        trained: layers of the slots that start from trained weights.

    Raises:
        InvalidInput: not a latency, another bound besides, no table, or no size that it is predicted for.
        MissingKeys, TableMismatch: the table is of another space or size.
        Infeasible: no network was found near the limit.
    """
    if not job.limit:
        if job.table is not None:
            raise InvalidInput(f"--table {job.table} is of use with --limit only; give --limit ms=MILLISECONDS too")
        return Drawer(space, recipe, macs_band(recipe, num_classes), list(members().values()), trained), None
    limits = Limits.parse(job.limit)
    if limits.latency_ms is None or (limits.parameters, limits.memory_mib) != (None, None):
        raise InvalidInput(
            f"--limit {' '.join(job.limit)}: a supernet is trained for a latency, ms=MILLISECONDS or fps=FRAMES; keep other "
            "limits for hyctas-search"
        )
    if recipe.max_gmacs is not None:
        raise InvalidInput(f"max_gmacs = {recipe.max_gmacs:g} and --limit both say which networks are trained; give one of them")
    path = job.table or job.run / "latency.json"
    table = usable_table(path)
    size = _latency_size(recipe.size, space, table)
    band = latency_band(CostModel(space, table, size, num_classes), limits.latency_ms)
    drawer = Drawer(space, recipe, band, list(members().values()), trained)
    say(
        f"networks of {band.low:.3g} to {band.high:.3g} ms at {format_size(size)} on {table.identity.target}, predicted by {path}: "
        f"{len(drawer.members)} hand-made ones among them, the largest with {band.cost(drawer.largest):.3g} ms"
    )
    return drawer, TrainedBand(limit_ms=limits.latency_ms, low_ms=band.low, high_ms=band.high, size=size, table_sha256=sha256(path))


def _latency_size(given: tuple[int, int] | None, space: SearchSpace, table: LatencyTable) -> tuple[int, int]:
    """Return the size that latency is predicted for: the one trained at if the table is calibrated for it, else the only one."""
    found = calibrated_sizes(space, table)
    if given is not None and (given in found or not found):
        return given
    return only_calibrated_size(space, table, Give("size", "HEIGHTxWIDTH"), Give("table", "TABLE", "take the table of this space"))
