"""Choose the target: the one asked for, or the best available one."""

from __future__ import annotations

from export.errors import Unavailable
from export.runtimes import PREFERRED, available_targets, default_target
from export.target import Target


def parse_target(text: str | None) -> Target:
    """Return the target asked for, or the best available one."""
    if text is not None:
        return Target.parse(text)

    return default_target()


def best_target(runtimes: tuple[str, ...]) -> Target:
    """Return the best available target among those whose runtime begins with one of `runtimes`.

    Raises:
        Unavailable: none of them can run here; the text is about the humblest.
    """
    states = {state.target: state for state in available_targets()}
    fitting = [states[name] for name in PREFERRED if name.startswith(runtimes)]
    for state in fitting:
        if state.ok:
            return Target.parse(state.target)
    raise Unavailable(fitting[-1].target, fitting[-1].reason, fitting[-1].install)
