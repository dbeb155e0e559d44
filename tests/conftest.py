"""Settings that all tests share: threads that wait politely, and deterministic property tests without deadlines."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
from collections.abc import Iterator

import pytest

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # there is a process per core already
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # waiting threads must not hold a core that another process needs
gc.set_threshold(50_000, 20, 20)  # some 4 % of the time otherwise goes into looking for garbage among millions of objects
os.environ["HYCTAS_MEASURING_LOCK"] = f"hyctas-tests-{os.getpid()}"  # tests wait for no measurement on this machine
with contextlib.suppress(ModuleNotFoundError):  # a machine with a GPU runs what needs one with pytest alone
    from hypothesis import HealthCheck, settings

    settings.register_profile(
        "project", deadline=None, derandomize=True, max_examples=10, suppress_health_check=list(HealthCheck), database=None
    )
    settings.load_profile("project")


def pytest_collection_finish() -> None:
    """Leave what the tests' modules hold out of every collection of garbage to come: timing begins with one, of 0.4 s otherwise."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Seed torch's global generator per test; the library itself never does."""
    try:
        import torch
    except ImportError:
        return
    torch.manual_seed(0)


@pytest.fixture
def usual_signals() -> Iterator[None]:
    """Heed SIGINT and SIGHUP, here and in processes started here: what a script starts in the background ignores them."""
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: lambda *_: None}  # a child begins with the default
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
