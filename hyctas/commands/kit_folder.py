"""Write and read device kits' folders: what kits for operators and for models share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.errors import InvalidInput
from export.target import Target
from hyctas.cli.show import say
from latency.kit.format import Kit
from latency.kit.ingest import Ingested

if TYPE_CHECKING:
    from hyctas.cli.bench import BenchJob
    from hyctas.cli.profile import ProfileJob

DEFAULT_TARGET = "tensorrt:fp16"


def kit_target(text: str | None) -> Target:
    """Return the target of a kit; the device is not here, so that nothing can be probed."""
    if text is None:
        say(f"target: {DEFAULT_TARGET} (give --target for another)")
    return Target.parse(text or DEFAULT_TARGET)


def purpose(kit: Kit, wanted: str, folder: Path) -> dict[str, Any]:
    """Return what a kit is for.

    Raises:
        InvalidInput: it is for another command.
    """
    other = kit.about.get("purpose")
    if other != wanted:
        raise InvalidInput(f"{folder} is a kit of hyctas-{other}, not of hyctas-{wanted}; take hyctas-{other} --ingest {folder}")
    return dict(kit.about)


def advise(folder: Path, kit: Kit, then: str) -> None:
    """Print what to do with a kit."""
    size = sum(path.stat().st_size for path in (folder / "onnx").iterdir()) / 2**20
    say(f"wrote {folder}: {len(kit.files)} ONNX files ({size:.0f} MiB) for {kit.target}, {len(kit.steps())} timings")
    say("next:")
    say(f"  1. copy {folder} to the device (it needs trtexec, and no Python)")
    say("  2. there: sh run.sh        (a minute or so per file; continues when interrupted)")
    say(f"  3. copy its results/ back into {folder}")
    say(f"  4. here: {then}")


def report_lost(found: Ingested) -> None:
    """Print every file without a usable result."""
    for lost in found.lost:
        say(f"  {lost.name}: {lost.reason}; {lost.remedy}")


def refuse(job: ProfileJob | BenchJob, *names: str) -> None:
    """Refuse flags that have no meaning beside --kit or --ingest."""
    for name in names:
        if getattr(job, name):
            raise InvalidInput(f"--{name} does not go together with --{'ingest' if job.ingest is not None else 'kit'}")
