"""The networks, the search space and the checkpoints of the released HyCTAS code, to the last digit (docs/published.md).

| name                | what it gives                                                        |
|---------------------|-----------------------------------------------------------------------|
| `genotype`          | the released networks S, M and L                                        |
| `drawn`             | the 2- and 3-branch networks of the authors' figure, never released     |
| `import_genotype`   | our genotype from the released JSON format                              |
| `export_genotype`   | the released JSON format from our genotype                              |
| `load_checkpoint`   | a network with the released code's weights, which saves back losslessly |
| `ARITHMETIC`        | where the released arithmetic differs from the corrected one            |

The search space is `hyctas.space.published()`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hyctas.arch.genotype import Genotype
from hyctas.published.frame import ARITHMETIC
from hyctas.published.json_format import export_genotype, import_genotype
from hyctas.published.released import DRAWN, NAMES, drawn, genotype, released_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from hyctas.published.checkpoint import PublishedNetwork

__all__ = [
    "ARITHMETIC", "DRAWN", "NAMES", "drawn", "export_genotype", "genotype", "import_genotype", "load_checkpoint", "released_json",
]  # fmt: skip


def load_checkpoint(
    network: str | Genotype, state_dict: Mapping[str, Tensor], head: int | str = 1, *, auxiliary: bool = False
) -> PublishedNetwork:
    """Load weights of the released code (see `hyctas.published.checkpoint.load_checkpoint`)."""
    from hyctas.published import checkpoint

    return checkpoint.load_checkpoint(network, state_dict, head, auxiliary=auxiliary)
