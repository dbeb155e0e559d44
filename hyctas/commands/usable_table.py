"""Open a latency table to predict by it."""

from __future__ import annotations

from pathlib import Path

from export.errors import Perform, TableMismatch, Unavailable
from export.machine import hardware
from export.target import Target
from hyctas.cli.show import say
from hyctas.engine.table_attention import open_target
from latency import LatencyTable
from latency.identity import versions_of


def usable_table(path: Path) -> LatencyTable:
    """Read a latency table; where it was made on this machine, the runtime must still be the one of then.

    Raises:
        InvalidInput: there is no such file.
        CorruptFile: it cannot be read.
        TableMismatch: the runtime's version is another one now.
    """
    table = LatencyTable.load(path)
    if table.busy:
        say(f"warning: {table.busy} of {len(table)} operators of {path} were timed while other processes were running, so "
            "predictions may be far off; measure again on a quiet machine")  # fmt: skip
    identity = table.identity
    if dict(identity.device) != hardware():
        return table
    try:
        now = versions_of(open_target(Target.parse(identity.target), identity.threads))
    except Unavailable:
        return table
    for name in sorted({*now, *identity.versions}):
        then, found = identity.versions.get(name, "absent"), now.get(name, "absent")
        if then != found:
            said = f"{path} was measured with {name} {then}, and here it is {found}: its latencies do not hold any more"
            raise TableMismatch(said, Perform("profile", {"restart": True}))
    return table
