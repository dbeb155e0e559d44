"""hyctas-doctor: say what can run on this machine, what is missing, and how to get it."""

from __future__ import annotations

from dataclasses import dataclass

from export.ranges import Settings
from hyctas.cli.entry import command


@dataclass(frozen=True, kw_only=True)
class DoctorJob(Settings):
    """How hyctas-doctor answers."""

    json: bool = False
    """Print JSON, to attach to a bug report: no host name, user or path is in it."""


def main() -> None:
    """Run the command line."""
    command(
        _run, DoctorJob, "Say what can run on this machine, what is missing, and how to get it.",
        name="hyctas-doctor", example="--json > doctor.json", resumes=False,
    )  # fmt: skip


def _run(job: DoctorJob) -> None:
    from hyctas.commands.doctor import examine

    examine(job)


if __name__ == "__main__":
    main()
