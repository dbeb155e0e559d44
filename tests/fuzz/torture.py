"""make torture: kill commands at random moments, and take away what they need; the result must be that of an undisturbed run.

1. Two of the same command in one folder at once; a full disk; a read-only folder; few open files; a closed stdout. Each must end
   with one sentence or its work done, and the command, repeated without the trouble, with the undisturbed result.
2. SIGKILL over profile, both trainings, search, export and bench of the smallest possible job; each command is then repeated
   until it ends. Front, history, weights and bundle must be those of an undisturbed run, and no file more may lie about.

What was done is kept in WORK/state.json, so that a stopped torture goes on where it was; `--restart` begins anew.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from export.ranges import Range, Seed, argument
from tests.fuzz.fuzz_launch import KILLED, kill, preload, run_command, start, start_command, wait
from tests.fuzz.reliability import facts, record
from tests.fuzz.samples import CLASSES, DATA, write_tables

OPEN_FILES = 64
TIMEOUT_S = 900.0
FIXED = "fixed.json"
TRAIN = ("--data", DATA, "--crop", "32x32", "--batch", 2, "--config", "HOME/train.toml")
SETTINGS = "save_seconds = 0.0\nthreads = 1\n"
SEARCH = "population = 3\ncandidates = 6\nscreen_images = 1\n"
PROFILE = "budget_ms = 2.0\nwarmup_ms = 1.0\n"
MEASURED = {"latency.json", "fps.json", "fps.md", "fps.html", "report.md", "report.html", "pareto.svg"}
"""Files whose content is measured, or names what was."""
RECORDS = {"profile.json", "train-supernet.json", "search.json", "finalists.json", "train-network.json"}
"""Files that note when and for how long."""


@dataclass(frozen=True)
class Stage:
    """One command of the job; `{}` is the run folder, `HOME` the folder of what all runs share."""

    name: str
    command: str
    arguments: tuple[object, ...]

    def filled(self, run: Path, home: Path) -> list[str]:
        """Return the arguments for a run folder."""
        return [str(argument).replace("{}", str(run)).replace("HOME", str(home)) for argument in self.arguments]


STAGES = (
    Stage("profile", "profile", ("--run", "{}", "--space", "tiny", "--size", "64x64", "--classes", CLASSES, "--networks", 0,
                                 "--shard", "1/40", "--target", "onnxruntime-cpu:fp32", "--config", "HOME/profile.toml")),
    Stage("train supernet", "train", ("supernet", "--run", "{}", "--space", "tiny", "--steps", 6, *TRAIN)),
    Stage("search", "search", ("--run", "{}", "--table", "HOME/" + FIXED, "--evaluations", 5, "--images", 2, "--measure", 0,
                               "--finalists", 3, "--finalist-steps", 2, "--config", "HOME/search.toml")),
    Stage("train network", "train", ("network", "--run", "{}", "--steps", 6, *TRAIN)),
    Stage("export", "export", ("{}/bundle/", "--network", "{}", "--size", "64x64")),
    Stage("bench", "bench", ("--run", "{}", "--seconds", 0.05, "--size", "64x64", "--target", "onnxruntime-cpu:fp32")),
)  # fmt: skip


class Failed(Exception):
    """A command did not end as it must; the text says how."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 1 where something was lost."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.torture", description="Kill commands at random moments.")
    parser.add_argument("--kills", type=argument(Annotated[int, Range(0, 10**6)]), default=100)
    parser.add_argument("--seed", type=argument(Seed), default=0)
    parser.add_argument("--work", type=Path, default=Path("runs/torture"))
    parser.add_argument("--restart", action="store_true", help="forget what an earlier torture did")
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/cpu/reliability.md")
    asked = parser.parse_args(argv)
    work = asked.work.resolve()
    if asked.restart:
        shutil.rmtree(work, ignore_errors=True)
    torture, now = Torture(work, asked.seed, asked.kills), facts()
    torture.state["commits"] = [*dict.fromkeys([*torture.state["commits"], now["commit"]])]
    print(f"seed {asked.seed}: {len(TROUBLES)} troubles, then {asked.kills} kills, in {work}", flush=True)
    torture.prepare()
    torture.trouble_all()
    torture.kill_all()
    faults = torture.state["faults"]
    print(f"\nseed {asked.seed}: {sum(torture.state['kills'].values())} kills in {torture.state['chains']} jobs, "
          f"{len(torture.state['troubles'])} other troubles, {len(faults)} faults")  # fmt: skip
    for fault in faults:
        print(f"FAULT: {fault}")
    if asked.record:
        record("torture", torture.state, now)
    return bool(faults)


class Torture:
    """What is done to the commands, with what came of it.

    Args:
        work: folder for everything; what an earlier torture did there counts.
        seed: of all draws.
        kills: how many.
    """

    def __init__(self, work: Path, seed: int, kills: int) -> None:
        self.work, self.seed, self.wanted = work, seed, kills
        self.log, self.state_path = work / "log.txt", work / "state.json"
        fresh = {"seed": seed, "seconds": {}, "kills": {}, "chains": 0, "troubles": {}, "faults": [], "temporary": 0, "commits": []}
        self.state: dict[str, Any] = json.loads(self.state_path.read_text()) if self.state_path.exists() else fresh
        os.environ["TMPDIR"] = str(work / "tmp")

    def prepare(self) -> None:
        """Make the table, and the undisturbed run that all others are compared with."""
        preload()
        (self.work / "tmp").mkdir(parents=True, exist_ok=True)
        reference = self.work / "reference"
        if self.state["seconds"]:
            return
        shutil.rmtree(reference, ignore_errors=True)
        (self.work / "files").mkdir(exist_ok=True)
        tables = self.work / "tables"
        tables.mkdir(exist_ok=True)
        if wait(start(lambda: write_tables(tables) or 0, self.log), TIMEOUT_S):  # type: ignore[func-returns-value]
            raise Failed(f"no table: {self.log.read_text()[-1000:]}")
        (tables / "latency.json").replace(self.work / FIXED)
        (self.work / "train.toml").write_text(SETTINGS)
        (self.work / "profile.toml").write_text(PROFILE)
        (self.work / "search.toml").write_text(SEARCH)
        seconds = {}
        for stage in STAGES:
            begun = time.monotonic()
            self.finish(stage, reference)
            seconds[stage.name] = time.monotonic() - begun
        self.state["seconds"] = {name: round(value, 2) for name, value in seconds.items()}
        self._save()
        print(f"undisturbed: {', '.join(f'{name} {value:.1f} s' for name, value in seconds.items())}", flush=True)

    def kill_all(self) -> None:
        """Do the job again and again, with a few kills in each command, until there were enough."""
        begun, before = time.monotonic(), sum(self.state["kills"].values())
        while (done := sum(self.state["kills"].values())) < self.wanted:
            number = self.state["chains"]
            rng, run = np.random.default_rng([self.seed, number]), self.work / "killed"
            shutil.rmtree(run, ignore_errors=True)
            counts = dict.fromkeys((stage.name for stage in STAGES), 0)
            try:
                for stage in STAGES:
                    for _ in range(min(int(rng.integers(2, 6)), self.wanted - done - sum(counts.values()))):
                        counts[stage.name] += self._kill(stage, run, rng)
                    self.finish(stage, run)
                self.compare(run)
            except Failed as error:
                self._fault(f"job {number} (kills: {counts}): {error}", run)
            self._tidy()
            self.state["chains"] = number + 1
            for name, count in counts.items():
                self.state["kills"][name] = self.state["kills"].get(name, 0) + count
            self._save()
            now = sum(self.state["kills"].values())
            left = (time.monotonic() - begun) / max(1, now - before) * (self.wanted - now)
            print(f"job {number}: {sum(counts.values())} kills, {now} of {self.wanted}; {left / 60:.0f} min left", flush=True)

    def trouble_all(self) -> None:
        """Do all that is no kill, once each."""
        for name, trouble in TROUBLES.items():
            if name in self.state["troubles"]:
                continue
            begun = time.monotonic()
            try:
                said = trouble(self)
            except Failed as error:
                said = "fault"
                self._fault(f"{name}: {error}", self.work / "troubled")
            self.state["troubles"][name] = said
            self._save()
            print(f"{name} ({time.monotonic() - begun:.0f} s): {said}", flush=True)

    def finish(self, stage: Stage, run: Path) -> None:
        """Run a stage to its end.

        Raises:
            Failed: it does not end with 0.
        """
        at = self.log.stat().st_size if self.log.exists() else 0
        code = run_command(stage.command, *stage.filled(run, self.work), log=self.log, timeout_s=TIMEOUT_S)
        if code != 0:
            raise Failed(f"{stage.name} ends with {code}: {self.log.read_text(errors='replace')[at:][-700:]}")

    def compare(self, run: Path) -> None:
        """Compare a run folder with the undisturbed one.

        Raises:
            Failed: a file more or less, or another content.
        """
        reference = self.work / "reference"
        ours, theirs = ({p.relative_to(r).as_posix() for p in r.rglob("*")} for r in (run, reference))
        if ours != theirs:
            raise Failed(f"files left: {sorted(ours - theirs)}, files missing: {sorted(theirs - ours)}")
        files = (name for name in sorted(theirs) if (reference / name).is_file())
        differing = [name for name in files if _content(run / name) != _content(reference / name)]
        if differing:
            raise Failed(f"other content than in an undisturbed run: {', '.join(differing)}")

    def copy_to(self, stage: str) -> Path:
        """Return a run folder in which everything before a stage is done."""
        run = self.work / "troubled"
        shutil.rmtree(run, ignore_errors=True)
        run.mkdir()
        for earlier in STAGES:
            if earlier.name == stage:
                break
            self.finish(earlier, run)
        return run

    def finish_all(self, run: Path) -> None:
        """Do the whole job without trouble, and compare."""
        for stage in STAGES:
            self.finish(stage, run)
        self.compare(run)

    def _kill(self, stage: Stage, run: Path, rng: np.random.Generator) -> int:
        """Start a stage and kill it at a random moment; returns 0 where it ended before."""
        pid = start_command(stage.command, stage.filled(run, self.work), self.log)
        time.sleep(float(rng.uniform(0, self.state["seconds"][stage.name])))
        return int(kill(pid) == KILLED)

    def _fault(self, text: str, run: Path) -> None:
        self.state["faults"].append(text)
        print(f"FAULT: {text}", flush=True)
        kept = self.work / f"fault-{len(self.state['faults'])}"
        shutil.rmtree(kept, ignore_errors=True)
        if run.exists():
            shutil.copytree(run, kept)

    def _tidy(self) -> None:
        """Count and remove what killed processes left in the temporary folder: nobody but the system removes that."""
        left = list((self.work / "tmp").iterdir())
        self.state["temporary"] += len(left)
        for path in left:
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _save(self) -> None:
        self.state_path.write_text(json.dumps(self.state, indent=1))


def _content(path: Path) -> object:
    """Return what of a file must be the same in every run; what a training started from is named after its run folder."""
    if path.name in MEASURED:
        return sorted(json.loads(path.read_text()).get("rows", ())) if path.suffix == ".json" else path.stat().st_size > 0
    if path.name in RECORDS:
        record = json.loads(path.read_text(), object_hook=lambda item: {k: v for k, v in item.items() if k != "source"})
        results = {name: value for name, value in record["results"].items() if name not in ("spent_s", "busy")}
        config = {name: value for name, value in record["config"].items() if name != "merge"}
        return record["state"], config, results
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _two_at_once(torture: Torture) -> str:
    """Start each command twice in one folder; one may refuse, and the result must be whole."""
    said = []
    run = torture.work / "troubled"
    shutil.rmtree(run, ignore_errors=True)
    for stage in STAGES:
        pids = [start_command(stage.command, stage.filled(run, torture.work), torture.log) for _ in range(2)]
        codes = [wait(pid, TIMEOUT_S) for pid in pids]
        if 0 not in codes or not set(codes) <= {0, 2}:
            raise Failed(f"{stage.name} twice at once ends with {codes}: {torture.log.read_text(errors='replace')[-700:]}")
        said.append(f"{stage.name} {' and '.join(map(str, codes))}" if codes != [0, 0] else stage.name)
    torture.finish_all(run)
    return f"each ended whole ({', '.join(said)})"


def _full_disk(torture: Torture) -> str:
    """Do the job on a small disk, give it room in steps, and repeat the command that stopped."""
    run, disk = torture.work / "troubled", torture.work / "disk"
    shutil.rmtree(run, ignore_errors=True)
    disk.mkdir(exist_ok=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        return f"not run: {mounted.stderr.strip()}"
    try:
        size, stops = 40, 0
        for stage in STAGES:
            arguments = stage.filled(disk / "run", torture.work)
            while (code := run_command(stage.command, *arguments, log=torture.log, timeout_s=TIMEOUT_S)) != 0:
                _refused(code, torture, stage)
                stops, size = stops + 1, int(size * 1.5) + 40
                if size > 1 << 20:
                    raise Failed(f"{stage.name} never has room enough")
                subprocess.run(["mount", "-o", f"remount,size={size}k", disk], check=True)
        shutil.copytree(disk / "run", run)
    finally:
        subprocess.run(["umount", disk], check=True)
    torture.compare(run)
    return f"stopped {stops} times, each with a sentence, and went on with more room"


def _read_only(torture: Torture) -> str:
    """Do every command in a folder that is mounted read-only, done and not yet done."""
    stopped = 0
    for stage in (STAGES[0], *STAGES[1:]):
        run = torture.copy_to(stage.name)
        if subprocess.run(["mount", "--bind", run, run], capture_output=True).returncode:
            return "not run: mount --bind is refused"
        try:
            subprocess.run(["mount", "-o", "remount,ro,bind", run], check=True)
            code = run_command(stage.command, *stage.filled(run, torture.work), log=torture.log, timeout_s=TIMEOUT_S)
            if code == 0:
                raise Failed(f"{stage.name} claims to have written into a read-only folder")
            _refused(code, torture, stage)
            stopped += 1
        finally:
            subprocess.run(["umount", run], check=True)
    torture.finish_all(torture.work / "troubled")
    return f"all {stopped} commands refused with a sentence, and went on once they could write"


def _few_files(torture: Torture) -> str:
    """Do the job with `OPEN_FILES` open files."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))

    run, said = torture.work / "troubled", []
    shutil.rmtree(run, ignore_errors=True)
    for stage in STAGES:
        code = run_command(stage.command, *stage.filled(run, torture.work), log=torture.log, timeout_s=TIMEOUT_S, prepare=limit)
        if code != 0:
            _refused(code, torture, stage)
            said.append(stage.name)
            torture.finish(stage, run)
    torture.compare(run)
    return f"refused with a sentence: {', '.join(said)}" if said else "no command needs more"


def _closed_stdout(torture: Torture) -> str:
    """Do the job with a closed stdout, and with a reader that leaves: work is done, or the exit code says otherwise."""
    run, codes = torture.work / "troubled", dict[str, list[int]]()
    for how in (">&-", "| true"):
        shutil.rmtree(run, ignore_errors=True)
        for stage in STAGES:
            words = [sys.executable, "-m", f"hyctas.cli.{stage.command}", *stage.filled(run, torture.work)]
            line = ["bash", "-c", f'set -o pipefail; "$@" 2>>"$LOG" {how}', "torture", *words]
            done = subprocess.run(line, env=os.environ | {"LOG": str(torture.log)}, timeout=TIMEOUT_S)
            codes.setdefault(how, []).append(done.returncode)
            if done.returncode not in (0, 141):
                raise Failed(f"{stage.name} {how} ends with {done.returncode}: {torture.log.read_text(errors='replace')[-700:]}")
            if done.returncode == 141:
                torture.finish(stage, run)
        torture.compare(run)
    return "; ".join(f"{how}: exit {' '.join(map(str, found))}" for how, found in codes.items())


def _refused(code: int | None, torture: Torture, stage: Stage) -> None:
    """Require an end with a sentence.

    Raises:
        Failed: a traceback, a hang or another exit code.
    """
    end = torture.log.read_text(errors="replace")[-1500:]
    if code not in (1, 2, 3) or "error: " not in end or "Traceback (most recent" in end[end.rfind("error: ") :]:
        raise Failed(f"{stage.name} ends with {code}: {end[-700:]}")


TROUBLES: dict[str, Callable[[Torture], str]] = {
    "two of the same command at once": _two_at_once,
    "a full disk": _full_disk,
    "a read-only folder": _read_only,
    f"ulimit -n {OPEN_FILES}": _few_files,
    "a closed stdout": _closed_stdout,
}

if __name__ == "__main__":
    sys.exit(main())
