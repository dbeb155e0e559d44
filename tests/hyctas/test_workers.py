"""Workers on a real Ray cluster of this machine: what is given to whom, who is refused, and what a SIGKILL costs."""

from __future__ import annotations

import os
import signal
import socket
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from export.errors import CheckFailed, CorruptFile, Give, HyctasError, InvalidInput, LeaveOut, Unavailable
from hyctas.ray_cluster import INSTALL, Cluster, ClusterFailed, open_cluster
from hyctas.workers import Pool

pytest.importorskip("ray", reason=f"needs Ray: {INSTALL}")
FACTS = {"versions": {"torch": "2"}, "data": "street"}


class Clerk:
    """A worker that needs nothing."""

    def __init__(self, facts: dict[str, Any], kinds: bool = False) -> None:
        self.facts, self.kind = facts, f"{os.getpid()}" if kinds else ""

    def double(self, value: int) -> tuple[int, int]:
        return 2 * value, os.getpid()

    def fail(self, check: bool) -> None:
        if check:
            raise CheckFailed("no convergence", Give("threads"))
        raise CorruptFile("image.png", "cut off", 3)

    def defect(self) -> None:
        raise KeyError("a defect")

    def die(self, marks: Path, times: int) -> str:
        """Be killed, as often as asked; the marks count."""
        mark = marks / f"{len(list(marks.iterdir()))}"
        if mark.name != f"{times}":
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return "done"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two workers of a thread each."""
    with open_cluster(None, 2, 1) as found:
        yield found


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def pool(cluster: Cluster, told: list[str]) -> Iterator[Pool]:
    made = Pool(cluster, Clerk, (FACTS,), FACTS, told.append)
    yield made
    made.close()


def test_results_come_by_key_and_arrive_early(pool: Pool) -> None:
    """Whoever did an earlier task does the one that is near it."""
    arrived: list[int] = []
    for value in range(8):
        pool.submit(value, "double", value, arrived=lambda result: arrived.append(result[0]))
    doubled, who = pool.result(7)
    assert doubled == 14 and len(arrived) >= 7, "the others did not wait until they were asked for"
    results = {value: pool.result(value) for value in range(7)}
    assert [result[0] for result in results.values()] == [*range(0, 14, 2)] and sorted(arrived) == [*range(0, 16, 2)]
    done = {value: result[1] for value, result in results.items()} | {7: who}
    if len(set(done.values())) == 2:  # a machine may be so busy that one worker did all before the other was ready
        for value, did in done.items():
            pool.submit(f"near {value}", "double", value, near=value)
            assert pool.result(f"near {value}")[1] == did


def test_a_killed_worker_loses_nothing(pool: Pool, told: list[str], tmp_path: Path) -> None:
    pool.submit("killed", "die", tmp_path, 1)
    pool.submit("beside", "double", 4)
    assert pool.result("killed") == "done" and pool.result("beside")[0] == 8
    assert len(told) == 1 and socket.gethostname() in told[0] and "runs again" in told[0]


def test_a_task_that_kills_every_worker_ends_it(pool: Pool, tmp_path: Path) -> None:
    pool.submit("killed", "die", tmp_path, 99)
    with pytest.raises(ClusterFailed) as found:
        pool.result("killed")
    assert found.value.exit_code == 3 and LeaveOut(("workers",)) in found.value.remedies and len(list(tmp_path.iterdir())) == 3


def test_errors_of_workers(pool: Pool) -> None:
    """A failed check stays one, others keep their sentence; the pool lives on. A defect of ours shows where it is."""
    for key, arguments in (("check", (True,)), ("file", (False,))):
        pool.submit(key, "fail", *arguments)
    pool.submit("defect", "defect")
    with pytest.raises(CheckFailed, match="no convergence") as failed:
        pool.result("check")
    assert failed.value.remedies == (Give("threads"),)
    with pytest.raises(HyctasError, match=r"image.png, line 3: cut off"):
        pool.result("file")
    with pytest.raises(KeyError, match="in defect"):
        pool.result("defect")
    pool.submit("after", "double", 1)
    assert pool.result("after")[0] == 2


def test_tasks_of_one_kind_of_device(cluster: Cluster, told: list[str]) -> None:
    pool = Pool(cluster, Clerk, (FACTS, True), FACTS, told.append)
    kinds = list(pool.kinds())
    assert len(kinds) == 2
    for value in range(6):
        pool.submit(value, "double", value, kind=kinds[value % 2])
    assert [str(pool.result(value)[1]) for value in range(6)] == kinds * 3
    pool.submit("strange", "double", 1, kind="a kind that is not here")
    with pytest.raises(ClusterFailed, match="of the kind"):
        pool.result("strange")
    pool.close()


def test_workers_that_differ_are_refused_by_name(cluster: Cluster, told: list[str]) -> None:
    pool = Pool(cluster, Clerk, (FACTS | {"versions": {"torch": "1"}},), FACTS, told.append)
    pool.submit(0, "double", 0)
    with pytest.raises(ClusterFailed, match="no worker"):
        pool.result(0)
    assert [text.partition(": ")[2] for text in told] == ["versions.torch is 1 there and 2 here"], "told once per machine"
    assert socket.gethostname() in told[0]


def test_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:  # bound, and nothing listens
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ClusterFailed, match=address) as found, open_cluster(address, None, 1):
            pass
    assert found.value.exit_code == 3 and LeaveOut(("ray",)) in found.value.remedies
    for bad in ("somewhere", "ray://127.0.0.1:10001", "127.0.0.1:x", ""):
        with pytest.raises(InvalidInput, match="HOST:PORT"), open_cluster(bad, None, 1):
            pass


def test_too_many_workers() -> None:
    with pytest.raises(InvalidInput, match="9999 workers") as found, open_cluster(None, 9999, 1):
        pass
    assert [type(way) for way in found.value.remedies] == [Give, str]


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(Unavailable) as found, open_cluster(None, 1, 1):
        pass
    assert found.value.install == INSTALL
    extras = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert f"pip install '{extras['ray'][0]}'" == INSTALL
