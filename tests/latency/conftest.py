"""A runtime with invented times, so that profiling is tested without measuring. Also run as a file by the kill test."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.runtime import TensorSpec
from export.target import Target
from latency.workload import Workload


class FakeModule:
    """Knows how long it takes: `ms` is a number or is asked at each step."""

    def __init__(self, ms: float | Callable[[], float]) -> None:
        self.ms = ms

    def eval(self) -> FakeModule:
        return self


class FakeSession:
    outputs: tuple[TensorSpec, ...] = ()

    def __init__(self, module: FakeModule, shapes: Sequence[tuple[int, ...]], sleep_s: float = 0) -> None:
        self.module, self.sleep_s = module, sleep_s
        self.inputs = tuple(TensorSpec(f"x{i}", shape) for i, shape in enumerate(shapes))
        self.feeds: dict[str, np.ndarray] = {}
        self.closed = False
        self.steps = 0

    def run(self, feeds: Any) -> list[np.ndarray]:
        raise NotImplementedError

    def bind(self, feeds: Any) -> None:
        assert {name: array.shape for name, array in feeds.items()} == {spec.name: spec.shape for spec in self.inputs}
        self.feeds = dict(feeds)

    def step(self) -> float:
        assert self.feeds and not self.closed
        self.steps += 1
        if self.sleep_s:
            time.sleep(self.sleep_s)
        return self.module.ms() if callable(self.module.ms) else self.module.ms

    def close(self) -> None:
        self.closed = True

    def __enter__(self) -> FakeSession:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class FakeRuntime:
    target = Target.parse("torch-cpu:fp32")
    threads = 2

    def __init__(self, sleep_s: float = 0, version: str = "1") -> None:
        self.sleep_s, self.version = sleep_s, version
        self.sessions: list[FakeSession] = []
        self.batches: list[int] = []

    def versions(self) -> dict[str, str]:
        return {"fake": self.version}

    def load_file(self, path: Path) -> FakeSession:
        raise NotImplementedError

    def load_modules(self, modules: Sequence[Any]) -> list[FakeSession]:
        made = [FakeSession(module, [tuple(x.shape) for x in inputs], self.sleep_s) for module, inputs in modules]
        self.batches.append(len(made))
        self.sessions += made
        return made


def fake_workload(name: str, ms: float | Callable[[], float], op: str = "conv") -> Workload:
    return Workload(name, op, lambda: FakeModule(ms), ((1, 3, 4, 5),))  # type: ignore[return-value,arg-type]


@pytest.fixture
def fakes() -> dict[str, Any]:
    """The fakes by name (test files cannot import each other)."""
    return {"Session": FakeSession, "Runtime": FakeRuntime, "Module": FakeModule, "workload": fake_workload}
