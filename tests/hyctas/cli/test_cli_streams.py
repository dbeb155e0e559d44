"""Commands outlive their readers, and show text from files as text."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from hyctas.cli.streams import printable, shortened

WORK = """
import sys
from dataclasses import dataclass
from pathlib import Path
from hyctas.cli.entry import command

@dataclass(frozen=True, kw_only=True)
class Job:
    file: Path = Path("x")
    error: int = 0

def work(job):
    print("started " * 10, flush=True)
    print("to stderr", file=sys.stderr, flush=True)
    if job.error:
        raise OSError(job.error, "it failed", str(job.file))
    job.file.write_text("done")
    print("\\x1b]0;owned\\x07 and \\x1b[2J")

command(work, Job, "")
"""


def run(path: Path, shell: str) -> tuple[int, str]:
    """Run the command in a shell; `$RUN` stands for it."""
    environment = {"CODE": WORK, "PY": sys.executable, "F": str(path), "PYTHONPATH": ":".join(sys.path), "PATH": "/usr/bin:/bin"}
    script = shell.replace("$RUN", '"$PY" -c "$CODE" --file "$F"')
    done = subprocess.run(["bash", "-o", "pipefail", "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("shell", "code"),
    [("$RUN | true", 141), ("$RUN 2>&1 | true", 141), ("$RUN >&-", 0), ("$RUN >&- 2>&-", 0), ("$RUN <&- >&- 2>&-", 0),
     ("$RUN 2>/dev/full", 0), ("$RUN >/dev/full", 2), ("$RUN", 0)],
)  # fmt: skip
def test_the_work_is_done_whoever_listens(tmp_path: Path, shell: str, code: int) -> None:
    found, text = run(tmp_path / "x", shell)
    assert (found, (tmp_path / "x").read_text()) == (code, "done")
    assert "Traceback" not in text and "Exception ignored" not in text and "\x1b" not in text


def test_help_without_a_reader(tmp_path: Path) -> None:
    assert run(tmp_path / "x", "$RUN --help | true")[0] == 141


@pytest.mark.parametrize("name", ["EFBIG", "ELOOP", "EMFILE", "ENOSPC", "EIO"])
def test_what_the_system_refuses_is_said_in_a_sentence(tmp_path: Path, name: str) -> None:
    code, text = run(tmp_path / "n\udcff\x1b[31mx", f"$RUN --error {getattr(errno, name)}")
    assert code == 2 and "it failed" in text and "repeat the command" in text and "Traceback" not in text
    assert "n\\xff\\x1b[31mx" in text


def test_real_limits(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    assert run(tmp_path / "loop", "$RUN")[0] == 2
    code, text = run(tmp_path / "x", "ulimit -f 0; $RUN 2>&1 | cat")
    assert code == 2 and "ulimit -f" in text


def test_printable() -> None:
    assert printable("é 漢 ✓\n\ttext") == "é 漢 ✓\n\ttext"
    assert printable("\x1b[2J\r\x9b\x07 \u202egnp.exe \udcff") == "\\x1b[2J\\x0d\\x9b\\x07 \\u202egnp.exe \\xff"


def test_a_long_value_does_not_flood_the_terminal() -> None:
    text = shortened("learning_rate is '" + "x" * 100_000 + "', not a number")
    assert len(text) < 4100 and text.startswith("learning_rate") and text.endswith("not a number") and "96033 characters" in text
    assert shortened("short") == "short"
