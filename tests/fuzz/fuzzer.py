"""Feed mutated files to the code that reads them, in one process, and to the commands; judge what comes of it."""

from __future__ import annotations

import filecmp
import json
import math
import multiprocessing
import os
import re
import resource
import shutil
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.fuzz.fuzz_launch import kill, run_command, start, wait
from tests.fuzz.kinds import Kind
from tests.fuzz.mutations import generator, misplace, mutate
from tests.fuzz.oracles import Wrong, check, check_text, plain

READ, COMMAND = "read", "command"
MISPLACED_EVERY = 25
MEMORY_BYTES = 3 << 30
"""What reading a file of a few MB may need beyond what the process has."""
MOST_PRINTED = 30_000
NOT_A_NUMBER = re.compile(r"(?<![\w.-])(nan|inf)(?![\w-])")


@dataclass(frozen=True)
class Fault:
    """A case that did not end as it must."""

    kind: str
    way: str
    case: int
    mutation: str
    what: str

    @property
    def signature(self) -> str:
        """Equal for what is probably the same fault."""
        return f"{self.way}: {re.sub(r'[0-9]+', 'N', self.what)[:160]}"


@dataclass
class Tally:
    """What came of the cases of a kind, by way: refused, same (as without the mutation), other (and consistent)."""

    kind: str
    counts: dict[str, Counter[str]] = field(default_factory=lambda: {READ: Counter(), COMMAND: Counter()})
    faults: list[Fault] = field(default_factory=list)

    def add(self, way: str, outcome: str | Fault) -> None:
        self.counts[way]["fault" if isinstance(outcome, Fault) else outcome] += 1
        if isinstance(outcome, Fault):
            self.faults.append(outcome)

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, **{way: dict(c) for way, c in self.counts.items()}, "faults": [asdict(f) for f in self.faults]}


def apply(kind: Kind, root: Path, seed: int, way: str, case: int) -> str:
    """Put the file of a case in place, and say what was done to it."""
    rng, path = generator(seed, f"{kind.name}/{way}", case), root / kind.file
    if case % MISPLACED_EVERY == MISPLACED_EVERY - 1:
        return misplace(path, rng)
    sample = path.read_bytes()
    what, changed = mutate(kind.part(sample) if kind.part else sample, kind.form, rng)
    path.write_bytes(kind.whole(sample, changed) if kind.whole else changed)
    if kind.after is not None:
        kind.after(path)
    return what


def read_cases(kind: Kind, samples: Path, root: Path, seed: int, cases: Iterable[int], timeout_s: float) -> Generator[str | Fault]:
    """Read one mutated file after the other in one process; where that dies or hangs, the next one goes on."""
    waiting = list(cases)
    while waiting:
        here, there = multiprocessing.Pipe()
        pid = start(partial(_reader, kind, samples, root, seed, tuple(waiting), there), root.with_suffix(".log"))
        there.close()
        what, alive = "", True
        try:
            while waiting:
                if not here.poll(timeout_s):
                    yield Fault(kind.name, READ, waiting.pop(0), what, f"hangs: no answer in {timeout_s:g} s")
                    break
                message = here.recv()
                if isinstance(message, str):
                    what = message
                else:
                    waiting.pop(0)
                    yield message[0]
        except EOFError:
            code, alive = wait(pid, 10), False
            end = root.with_suffix(".log").read_text(errors="replace")[-600:]
            yield Fault(kind.name, READ, waiting.pop(0), what, f"the process died (exit {code}): {end}")
        finally:
            here.close()
            if alive:
                kill(pid)


def run_cases(kind: Kind, samples: Path, root: Path, seed: int, cases: Iterable[int], timeout_s: float) -> Generator[str | Fault]:
    """Run the kind's command on one mutated file after the other, each in a copy of the samples of its own."""
    name, *arguments = kind.command
    used = {part for text in (*map(str, arguments), "{}/" + kind.file) for part in re.findall(r"\{\}/(\w+)", text)}
    for case in cases:
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        for part in used:
            if (samples / part).is_dir():
                shutil.copytree(samples / part, root / part)
        what, log = apply(kind, root, seed, COMMAND, case), root / "log.txt"
        filled = [str(argument).replace("{}", str(root)) for argument in arguments]
        code = run_command(str(name), *filled, log=log, timeout_s=timeout_s, prepare=_limit_memory)
        text = log.read_text(errors="replace") if log.exists() else ""
        wrong = _wrong_with(code, text, timeout_s)
        yield Fault(kind.name, COMMAND, case, what, wrong) if wrong else "refused" if code else "accepted"


def _wrong_with(code: int | None, text: str, timeout_s: float) -> str:
    """Say what is wrong with how a command ended; empty where nothing is."""
    if code is None:
        return f"hangs: still running after {timeout_s:g} s"
    if code not in (0, 1, 2, 3) or "Traceback (most recent call last)" in text:
        return f"exit {code}: {' | '.join(text.strip().splitlines()[-4:])[-500:]}"
    if code and "error: " not in text and "╭" not in text:
        return f"exit {code} without a sentence: {text[-200:]}"
    found = NOT_A_NUMBER.search(text) if code == 0 else None
    if found:
        return f"{found[0]} is shown: {text[max(0, found.start() - 80) : found.end() + 40]}"
    try:
        check_text(text, MOST_PRINTED)
    except Wrong as wrong:
        return f"exit {code}: {wrong}"
    return ""


def _reader(kind: Kind, samples: Path, root: Path, seed: int, cases: Sequence[int], pipe: Connection) -> int:
    """Read the files of cases; for each send what is done to the file, and what came of it."""
    warnings.simplefilter("ignore")
    top = kind.file.partition("/")[0]
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(samples / top, root / top)
    baseline = _baseline(kind, root)
    _limit_memory()
    for case in cases:
        _restore(root / top, samples / top)
        what = apply(kind, root, seed, READ, case)
        pipe.send(what)
        outcome = _outcome(kind, root, baseline)
        pipe.send((outcome if outcome in ("refused", "same", "other") else Fault(kind.name, READ, case, what, outcome),))
    return 0


def _baseline(kind: Kind, root: Path) -> Any:
    """Return what the file is read as without a mutation; None where it is refused for what it is not, such as foreign weights."""
    from export.errors import InvalidInput

    try:
        return plain(kind.read(root))
    except InvalidInput:
        return None


def _outcome(kind: Kind, root: Path, baseline: Any) -> str:
    """Read the file: "refused", "same", "other", or what is wrong."""
    from export.errors import HyctasError
    from hyctas.cli.entry import USERS_ERRORS

    try:
        value = kind.read(root)
        if plain(value) == baseline:
            return "same"
        if kind.exact:
            return "accepted, though it is not what was written, and a hash would tell"
        check(value)
        kind.consistent(value)
        return "other"
    except HyctasError as error:  # what of it reaches a terminal is checked with the command
        return "refused" if str(error).strip() else f"{type(error).__name__} without a sentence"
    except Wrong as wrong:
        return f"silently wrong: {wrong}"
    except OSError as error:
        if isinstance(error, FileNotFoundError) or error.errno in USERS_ERRORS:
            return "refused"
        return _last(error)
    except BaseException as error:
        return _last(error)


def _last(error: BaseException) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/tests/" not in f.filename]
    ours = [f for f in frames if re.search(r"/(hyctas|latency|export)/", f.filename) and "site-packages" not in f.filename]
    at = next(reversed(ours or frames), None)
    place = f" at {'/'.join(Path(at.filename).parts[-2:])}:{at.lineno}" if at is not None else ""
    return f"{type(error).__name__}{place}: {str(error)[:200]}"


def _limit_memory() -> None:
    """Let this process take no more than `MEMORY_BYTES` beyond what it has: a small file has no claim to more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _restore(folder: Path, original: Path) -> None:
    """Undo every change below a folder."""
    for path in sorted(folder.rglob("*"), reverse=True):
        source = original / path.relative_to(folder)
        if path.is_symlink() or not source.exists() or path.is_dir() != source.is_dir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    for source in original.rglob("*"):
        path = folder / source.relative_to(original)
        if source.is_dir():
            path.mkdir(exist_ok=True)
        elif not path.exists() or not filecmp.cmp(source, path, shallow=True):
            shutil.copy2(source, path)


def keep(fault: Fault, kind: Kind, samples: Path, folder: Path, seed: int) -> None:
    """Keep the mutated file of a fault, since samples made again differ in times and the like."""
    home = folder / re.sub(r"\W+", "-", f"{kind.name} {fault.way} {fault.case}")
    shutil.rmtree(home, ignore_errors=True)
    (home / "samples" / kind.file).parent.mkdir(parents=True)
    top = kind.file.partition("/")[0]
    shutil.copytree(samples / top, home / "samples" / top, dirs_exist_ok=True)
    apply(kind, home / "samples", seed, fault.way, fault.case)
    kept, path = home / Path(kind.file).name, home / "samples" / kind.file
    if path.is_file() and not path.is_symlink():
        shutil.copy(path, kept)
    shutil.rmtree(home / "samples")
    (home / "fault.json").write_text(json.dumps(asdict(fault), indent=1))


def fuzz_kind(kind: Kind, samples: Path, work: Path, seed: int, reads: Iterable[int], commands: Iterable[int], *,
              timeout_s: float, deadline: float | None) -> Tally:  # fmt: skip
    """Try the cases of a kind, until the deadline (of `time.monotonic`) at most; commands get at least a third of the time."""
    tally, begun = Tally(kind.name), time.monotonic()
    ways = ((READ, read_cases, reads), *(((COMMAND, run_cases, commands),) if kind.command else ()))
    for way, tried, cases in ways:
        end = math.inf if deadline is None else begun + (deadline - begun) * (0.67 if way == READ and len(ways) > 1 else 1)
        with closing(tried(kind, samples, work, seed, cases, timeout_s)) as outcomes:
            for outcome in outcomes:
                tally.add(way, outcome)
                if isinstance(outcome, Fault):
                    keep(outcome, kind, samples, work.parent / "faults", seed)
                if time.monotonic() > end:
                    break
    return tally
