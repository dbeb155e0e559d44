"""Configure a search beyond what its command's flags say. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from export.ranges import Range, Settings, Side, Threads


@dataclass(frozen=True, kw_only=True)
class SearchSettings(Settings):
    """How networks are proposed and scored."""

    population: Annotated[int, Range(2, 10**4)] = 24
    """Networks of the first generation; each further one scores a third as many."""
    candidates: Annotated[int, Range(1, 10**6)] = 500
    """Networks that the surrogate looks at in each generation."""
    screen_images: Annotated[int, Range(0, 10**6)] = 15
    """Images that a network is screened on; the better half of a generation is scored on all. 0: no screening."""
    eval_size: tuple[Side, Side] | None = None
    """Resize the images that networks are scored on to this height and width; none: as the supernet was trained."""
    threads: Threads = 2
    """Threads that score a network, and cores that each worker of a cluster takes; scores depend on it in the last digits."""
