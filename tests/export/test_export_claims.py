"""What is written never goes through a planted link, and what a kill leaves is removed by the next write, not before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from export import claims
from export.claims import building_folder, claim, owner, release, sweep
from export.files import write_text, write_together
from export.swap import replaced_folder

WRITE = """
import os, sys, time
from pathlib import Path
from export import claims, files
made = claims.create_file
def create(path):
    found = made(path)
    print(found[0].name, flush=True)
    time.sleep(60)
    return found
files.create_file = create
files.write_text(Path(sys.argv[1]), "new")
"""
BUILD = """
import sys, time
from pathlib import Path
from export.claims import building_folder
with building_folder(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("half")
    print(folder.name, flush=True)
    time.sleep(60)
"""


def started(code: str, path: Path) -> tuple[subprocess.Popen[str], str]:
    """Start a process that stops in the middle of writing; return it with the name of what it writes."""
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


@pytest.mark.parametrize("code", [WRITE, BUILD])
def test_what_a_kill_leaves_is_removed_and_what_a_living_process_writes_is_not(tmp_path: Path, code: str) -> None:
    path = tmp_path / "table.json"
    process, name = started(code, path)
    try:
        write_text(path, "mine")
        assert (tmp_path / name).exists(), "it belongs to a living process"
        process.send_signal(signal.SIGKILL)
        process.wait()
        write_text(tmp_path / "other", "")
        assert (tmp_path / name).exists(), "it is none of this file's"
        write_text(path, "mine again")
        assert sorted(os.listdir(tmp_path)) == ["other", "table.json"]
        assert path.read_text() == "mine again"
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_a_folder_is_listed_once_however_many_files_are_written_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed, scandir = [], os.scandir
    monkeypatch.setattr(claims.os, "scandir", lambda folder: (listed.append(folder), scandir(folder))[1])
    for number in range(20):
        write_text(tmp_path / f"{number}", "")
    assert listed == [str(tmp_path)]


def test_planted_links_are_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even one whose random name was guessed, and one in the place of the file itself."""
    victim, path = tmp_path / "victim", tmp_path / "run" / "table.json"
    victim.write_text("precious")
    path.parent.mkdir()
    guesses = iter(["0" * 12, "1" * 12] * 2)
    monkeypatch.setattr(claims.secrets, "token_hex", lambda _: next(guesses))
    for suffix in ("tmp", "building"):
        path.with_name(f".table.json.{'0' * 12}.{suffix}").symlink_to(victim)
    path.symlink_to(victim)
    write_text(path, "new")
    with building_folder(path) as folder:
        assert folder.name == f".table.json.{'1' * 12}.building"
    sweep(path)
    assert (victim.read_text(), path.read_text(), path.is_symlink()) == ("precious", "new", False)


def test_a_folder_is_not_recovered_from_a_planted_link(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "diary").write_text("precious")
    (tmp_path / ".bundle.previous").symlink_to(tmp_path / "own")
    with replaced_folder(tmp_path / "bundle", lambda folder: list(folder.iterdir())) as building:
        (building / "model.onnx").write_text("model")
    assert os.listdir(tmp_path / "bundle") == ["model.onnx"] and (tmp_path / "own" / "diary").read_text() == "precious"


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    with pytest.raises(IsADirectoryError):
        write_together({tmp_path / "a": b"1", tmp_path / "b": b"2"})
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_a_new_file_has_the_permissions_that_the_user_wants(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a", "")
        with building_folder(tmp_path / "b") as folder:
            assert folder.stat().st_mode & 0o777 == 0o750
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_a_lock_file_has_one_owner(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    first = claim(path)
    assert first is not None and claim(path) is None and owner(path) == os.getpid()
    release(path, first)
    assert not path.exists()
    second = claim(path)
    assert second is not None
    release(path, second)


def test_a_lock_file_is_not_made_through_a_link(tmp_path: Path) -> None:
    (tmp_path / ".lock").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError):
        claim(tmp_path / ".lock")
    assert not (tmp_path / "victim").exists()
