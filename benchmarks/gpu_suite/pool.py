"""Run compile jobs in processes of their own. One that crashes, as compilers do on odd tiles, costs its job and nothing else."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from export.machine import usable_cores

Job = Mapping[str, Any]
_COMMAND = (sys.executable, "-m", "benchmarks.gpu_suite.warm")


class Pool:
    """Processes that answer jobs; a context manager, which ends them.

    Args:
        workers: how many; default: one per usable core, but for one.
        command: starts a worker: one JSON object per line in, one out.
    """

    def __init__(self, workers: int | None = None, command: Sequence[str] = _COMMAND) -> None:
        self.command, self.workers = tuple(command), workers or max(1, usable_cores() - 1)
        self._jobs: queue.PriorityQueue[tuple[float, int, Any, Job | None]] = queue.PriorityQueue()
        self._answers: queue.SimpleQueue[tuple[Any, dict[str, Any]]] = queue.SimpleQueue()
        self._processes: set[subprocess.Popen[str]] = set()
        self._lock, self._closed, self._open, self._order = threading.Lock(), False, 0, itertools.count()

    def __enter__(self) -> Pool:
        self._threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(self.workers)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._closed = True
            for process in self._processes:
                process.kill()
        for _ in range(self.workers):
            self._jobs.put((-math.inf, next(self._order), "", None))
        for thread in self._threads:
            thread.join()

    def submit(self, name: Any, job: Job, priority: float = 0.0) -> None:
        """Queue a job; its answer comes under this name. Lower priorities come first, equal ones in order."""
        self._open += 1
        self._jobs.put((priority, next(self._order), name, job))

    def answers(self, seconds: float) -> Iterator[tuple[Any, dict[str, Any]]]:
        """Yield answers as they come, until none is missing or the time is over; what comes later, a later call yields.

        An answer holds `error` where a job failed.
        """
        end = time.monotonic() + seconds
        while self._open:
            try:
                found = self._answers.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                return
            self._open -= 1
            yield found

    def _serve(self) -> None:
        process: subprocess.Popen[str] | None = None
        while (found := self._jobs.get())[3] is not None:
            process = process or self._start()
            if process is None:
                return
            answer = self._ask(process, found[3])
            if answer is None:
                answer, process = {"error": f"the compiling process ended with code {self._end(process)}"}, None
            self._answers.put((found[2], answer))
        if process is not None:
            self._end(process)

    def _end(self, process: subprocess.Popen[str]) -> int:
        """Close a process's pipes, wait for its end, and return its exit code."""
        with self._lock:
            self._processes.discard(process)
        with contextlib.suppress(OSError):  # a job that it never took
            process.communicate()
        return process.wait()

    def _start(self) -> subprocess.Popen[str] | None:
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        with self._lock:
            if self._closed:
                return None
            pipe = subprocess.PIPE
            process = subprocess.Popen(self.command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, env=environment)
            self._processes.add(process)
        return process

    def _ask(self, process: subprocess.Popen[str], job: Job) -> dict[str, Any] | None:
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
            found: dict[str, Any] | None = json.loads(line) if line else None
        except (OSError, ValueError):
            return None
        return found
