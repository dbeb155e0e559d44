"""Hold several networks for one task in one bundle, a ladder: the bundle is the most accurate one's, faster ones are its members.

    BUNDLE/             model.onnx, manifest.json ...: a bundle, with `members` in its manifest
    BUNDLE/member-2/    a bundle of the next faster network; member-3/, member-4/ likewise

Whatever reads bundles reads the most accurate network alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from export.bundle.bundle import Bundle, read_bundle
from export.bundle.manifest import NAME, Member, read_manifest
from export.errors import CorruptFile, InvalidInput
from export.files import sha256, write_json
from export.target import format_size

MOST = 4
"""Networks of a ladder."""


@dataclass(frozen=True)
class Rung:
    """One network of a ladder."""

    folder: Path
    miou: float | None
    """As its manifest notes it; None where it does not."""


def member_folder(bundle: Path, number: int) -> Path:
    """Return where the network of a number, 2 or more, lies in a bundle."""
    return bundle / f"member-{number}"


def list_members(bundle: Path, count: int) -> None:
    """Note in a bundle's manifest that networks 2 to `count`, which are written already, are its members."""
    folders = [member_folder(bundle, number) for number in range(2, count + 1)]
    members = tuple(Member(folder.name, sha256(folder / "model.onnx")) for folder in folders)
    write_json(bundle / NAME, replace(read_manifest(bundle), members=members).to_json())


def has_members(bundle: Path) -> bool:
    """Say whether a bundle is a ladder."""
    return bool(read_manifest(bundle).members)


def read_ladder(bundle: Path, *, with_engine: bool = True) -> list[Rung]:
    """Read a bundle and its members, every file compared with its hash; the most accurate first.

    Raises:
        CorruptFile: a file is missing or changed, a member is another than the manifest lists, or does another task.
    """
    first = read_bundle(bundle, with_engine=with_engine)
    rungs = [Rung(bundle, miou_of(first.manifest.extra))]
    for member in first.manifest.members:
        folder = bundle / member.folder
        if not folder.is_dir():
            raise CorruptFile(folder, "is listed in the manifest as a member, but missing")
        found = read_bundle(folder, with_engine=with_engine)
        if found.manifest.files["model.onnx"]["sha256"] != member.model_sha256:
            raise CorruptFile(folder / "model.onnx", f"is another network than {bundle / NAME} lists as its member")
        if (why := differs(first, found)) is not None:
            raise CorruptFile(folder, why)
        rungs.append(Rung(folder, miou_of(found.manifest.extra)))
    return rungs


def differs(first: Bundle, other: Bundle) -> str | None:
    """Say why two bundles are not for the same task; None where they are."""
    for what, ours, theirs in (
        ("labels", first.labels["names"], other.labels["names"]), ("output", first.manifest.output, other.manifest.output),
        ("image size", format_size(first.manifest.size), format_size(other.manifest.size)),
    ):  # fmt: skip
        if ours != theirs:
            return f"has another {what} than the network that it is a member of: {theirs}, not {ours}"
    return None


def check_order(names: Sequence[str], macs: Sequence[int], mious: Sequence[float | None]) -> None:
    """Refuse networks that make no ladder: each has to compute less than the one before, and be less accurate where that is known.

    Raises:
        InvalidInput: names the two networks.
    """
    if len(names) > MOST:
        raise InvalidInput(f"a ladder has 2 to {MOST} networks; {len(names)} were given")
    for index in range(len(names) - 1):
        pair = f"{names[index + 1]} after {names[index]}"
        if macs[index + 1] >= macs[index]:
            found = f"{macs[index + 1] / 1e9:.2f} GMAC are not less than {macs[index] / 1e9:.2f}"
            raise InvalidInput(f"{pair}: {found}; name the networks of a ladder from the most accurate to the fastest")
        before, after = mious[index], mious[index + 1]
        if before is not None and after is not None and after >= before:
            raise InvalidInput(f"{pair}: it computes less, and its mIoU of {after:.1%} is not below {before:.1%}; leave that out")


def miou_of(facts: dict[str, Any]) -> float | None:
    """Return the mIoU that a network's facts note, of val where they have it."""
    found = facts.get("miou")
    if not isinstance(found, dict) or not found:
        return None
    value = found.get("val", next(iter(found.values())))
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1 else None


