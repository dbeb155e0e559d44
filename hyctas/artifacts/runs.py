"""Keep one folder per job. Each command owns `<command>.json` in it: configuration, command line, versions, machine, state.

The same command with an equal configuration continues what it began; with a different one it stops and prints the differing
fields; a restart moves what it had written aside.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
import time
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from export.bundle.imaging import Preprocessing
from export.claims import claim, owner, release
from export.codec import NotNegative, decode, plain
from export.errors import CorruptFile, Give, InvalidInput, Perform, StartOver
from export.files import real_path, sha256, write_json
from export.machine import fingerprint, resident_mib
from hyctas.data import PREPROCESSING

FORMAT_VERSION = 1
PACKAGES = ("torch", "onnx", "onnxruntime", "numpy", "pymoo", "scikit-learn")
PRIVATE = (".checkpoint.pt", "soft_labels")
"""Ends of the names of outputs that a command needs only until it is done."""


class Run:
    """A command's place in a run folder, which has one writer at a time: this process until it ends, or drops the object.

    Args:
        folder: the run folder; made if need be.
        command: for instance "train-supernet".
        config: a dataclass or JSON-able mapping that decides the results.
        outputs: names of the files in the folder that the command writes; moved aside by `restart`.
        restart: start over.
        formerly: the same configuration as an earlier version wrote it; a folder that holds it is continued.

    Raises:
        InvalidInput: another process writes to the folder, or it holds this command's state with another configuration.
    """

    def __init__(
        self, folder: Path, command: str, config: Any, outputs: tuple[str, ...], *, restart: bool = False, formerly: Any = None
    ) -> None:
        self.folder, self.command, self.outputs = folder, command, outputs
        self.path = folder / f"{command}.json"
        if folder.exists() and not folder.is_dir():
            raise InvalidInput(f"the run folder {folder} is a file; give a folder")
        self.config: dict[str, Any] = plain(config)
        self._formerly, self._began, self._continued = plain(formerly), time.monotonic(), self.path.exists() and not restart
        self._hold = _hold(folder)
        if restart:
            self._move_aside()
        self.record = self._claim()

    @property
    def done(self) -> bool:
        """Whether the command has finished here before, with this configuration."""
        return bool(self.record["state"] == "done")

    def file(self, name: str) -> Path:
        """Return the path of a file in the folder."""
        return self.folder / name

    def finish(self, **results: Any) -> None:
        """Mark the command as done, note its results and the sha256 of every output that is there, and remove what is private."""
        lasting = [self.file(name) for name in self.outputs if not name.endswith(PRIVATE)]
        files = {path.name: sha256(path) for path in lasting if path.is_file()}
        cost = Cost(round(time.monotonic() - self._began, 1), resident_mib("VmHWM"), self._continued)
        self.record |= {"state": "done", "finished": _now(), "results": results, "files": files, "cost": plain(cost)}
        write_json(self.path, self.record)
        self._remove_private()

    def _remove_private(self) -> None:
        """Remove what the command needed until it was done; a kill right after may have left it."""
        for path in (self.file(name) for name in self.outputs if name.endswith(PRIVATE)):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.exists() or path.is_symlink():
                path.unlink()

    def _claim(self) -> dict[str, Any]:
        if self.path.exists():
            known = decode(Record, self.path, FORMAT_VERSION)
            differing = _differences(known.config, self.config)
            if differing and (self._formerly is None or known.config != self._formerly):
                raise InvalidInput(
                    f"{self.folder} holds a {self.command} with another configuration:\n  " + "\n  ".join(differing),
                    "repeat it with the old values to continue", Give("run"), StartOver(),
                )  # fmt: skip
            if known.state == "done":
                self._remove_private()
                return {"format_version": FORMAT_VERSION, **plain(known)}
        record = {
            "format_version": FORMAT_VERSION, "command": self.command, "state": "running", "started": _now(),
            "command_line": [Path(sys.argv[0]).name, *sys.argv[1:]], "config": self.config,
            "versions": package_versions(), "machine": fingerprint(),
        }  # fmt: skip
        write_json(self.path, record)
        return record

    def _move_aside(self) -> None:
        old = [self.folder / name for name in (self.path.name, *self.outputs) if (self.folder / name).exists()]
        if not old:
            return
        number = 1
        while (aside := self.folder / f"old-{number}").exists():
            number += 1
        aside.mkdir(parents=True)
        for path in old:
            path.rename(aside / path.name)


class _Hold:
    """Keeps other processes from writing to a run folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / ".lock"
        handle = claim(path)
        if handle is None:
            number = owner(path)
            raise InvalidInput(
                f"another process{f' ({number})' if number else ''} is writing to {folder}, and a run folder has one writer at a "
                "time; wait for it (the same command then continues), or stop it",
                Give("run"),
            )
        weakref.finalize(self, release, path, handle)


_holds: weakref.WeakValueDictionary[Path, _Hold] = weakref.WeakValueDictionary()


def _hold(folder: Path) -> _Hold | None:
    """Hold a folder; jobs of one process share a hold, and of torchrun's processes the first one has it."""
    if int(os.environ.get("RANK", "0")) > 0:
        return None
    key = real_path(folder)
    hold = _holds.get(key)
    if hold is None:
        hold = _holds[key] = _Hold(folder)
    return hold


@dataclass(frozen=True)
class Cost:
    """What the process took that finished a command."""

    wall_s: NotNegative
    """Since it opened the folder."""
    peak_mib: NotNegative | None
    """Its largest memory so far; None where the system does not say."""
    continued: bool
    """Other processes before it did a part."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a command notes of itself in a run folder: `<command>.json`."""

    OPEN: ClassVar = True
    command: str
    state: str
    started: str
    command_line: tuple[str, ...]
    config: dict[str, Any]
    versions: dict[str, str]
    machine: dict[str, Any]
    finished: str | None = None
    results: dict[str, Any] = field(default_factory=dict)
    """Empty until it is done."""
    cost: Cost | None = None
    """None until it is done, and in records from before this was noted."""
    files: dict[str, str] = field(default_factory=dict)
    """sha256 of what it wrote, by name; empty in records from before this was noted."""

    @classmethod
    def read(cls, folder: Path, command: str) -> Record:
        """Read a command's record.

        Raises:
            FileNotFoundError: there is none.
            CorruptFile: it is damaged.
        """
        return decode(cls, folder / f"{command}.json", FORMAT_VERSION)

    @classmethod
    def of_finished(cls, folder: Path, command: str) -> Record:
        """Read the record of a command that must have finished.

        Raises:
            InvalidInput: it has not; the text says how it does.
            CorruptFile: its record is damaged.
        """
        again = Perform(command.replace("-", " ", 1), {"run": folder})
        if not (folder / f"{command}.json").exists():
            raise InvalidInput(f"there is no {command}.json in {folder}", again)
        record = cls.read(folder, command)
        if record.state != "done":
            state = f"{again.step} has not finished in {folder} ({record.state}); repeated as it was, it continues"
            raise InvalidInput(state, again)
        return record

    def check_file(self, path: Path) -> None:
        """Check that a file is what the command wrote.

        Raises:
            CorruptFile: its sha256 is another one.
        """
        noted = self.files.get(path.name)
        if noted is not None and sha256(path) != noted:
            raise CorruptFile(
                path, f"has another sha256 than {self.command}.json noted when it was written: it was damaged or changed since; "
                "take it from where the run was made", None, StartOver(),
            )  # fmt: skip


def check_output(path: Path, command: str) -> None:
    """Check a file of a run folder against the record of the command that wrote it, where there is one that is done.

    Raises:
        CorruptFile: the file or the record is damaged.
    """
    if (path.parent / f"{command}.json").exists():
        record = Record.read(path.parent, command)
        if record.state == "done":
            record.check_file(path)


def newest_run(root: Path = Path("runs")) -> Path:
    """Return the run folder under `root` whose chosen network is the newest.

    Raises:
        InvalidInput: there is none.
    """
    found = sorted(root.glob("*/train-network.json"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise InvalidInput(f"no trained network under {root}/; train one first", Give("network", "RUN, GENOTYPE.json or BUNDLE/"))
    return found[-1].parent


@dataclass(frozen=True)
class _Config:
    OPEN: ClassVar = True
    preprocessing: Preprocessing = PREPROCESSING


@dataclass(frozen=True)
class _Training:
    """What of a training's record is read alone."""

    OPEN: ClassVar = True
    config: _Config


def recorded_preprocessing(path: Path) -> Preprocessing:
    """Read how a training job normalised its images.

    Args:
        path: RUN/train-supernet.json or RUN/train-network.json. Where there is none, and in records from before this was
            noted, it was `PREPROCESSING`.

    Raises:
        CorruptFile: not a record of a job, or its preprocessing is none.
    """
    if not path.exists():
        return PREPROCESSING
    return decode(_Training, path, FORMAT_VERSION).config.preprocessing


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that decide results."""
    versions = {"python": sys.version.split()[0]}
    for name in ("hyctas", *PACKAGES):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    lines = []
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            lines += _differences(before, after, f"{prefix}{name}.")
        elif before != after:
            lines.append(f"{prefix}{name}: was {before!r}, now {after!r}")
    return lines


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
