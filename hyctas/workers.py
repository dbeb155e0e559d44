"""Share work among the workers of a Ray cluster: one per device, and a task again where its worker died. No torch here.

Ray joins the machines, starts processes, carries objects and says who died. Here is who is given what next, which workers are
refused, and what is said when the cluster itself is lost. Ray is imported only where a cluster is opened.
"""

from __future__ import annotations

import importlib
import logging
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from export.errors import CheckFailed, Give, HyctasError, InvalidInput, LeaveOut, Remedy, Unavailable
from export.machine import usable_cores

INSTALL = "pip install 'ray==2.60.0'"
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
"""No statistics of use are sent, and nothing is warned of."""
LOCAL = {
    "RAY_worker_register_timeout_seconds": "900", "RAY_health_check_failure_threshold": "100", "RAY_worker_niceness": "0",
}  # fmt: skip
"""For a cluster on this machine: workers are as important as the command itself, and not dead because they wait for a core."""
STORE_BYTES = 2**30
"""Object store of a cluster on this machine: what is put there is a supernet, and networks in training."""
TOKENS = "ray._private.authentication.authentication_token_setup"
"""Where Ray's heads, and Ray itself for the address "auto", decide whether to ask for ~/.ray/auth_token."""
REACH_S, LOOK_S, LOOKS = 5.0, 2.0, 3
"""How long the head may take to answer; how often it is looked for, and how often in vain before it counts as gone."""
OPEN_S = 900.0
"""How long a worker may take to be ready."""
DEATHS = 3
"""A task that so many workers died of is not tried again; neither is a worker that died so often before it was ready."""


class ClusterFailed(HyctasError):
    """A cluster cannot be reached, has no worker of use, or was lost; what was recorded before is whole."""

    exit_code = 3


class Worker(Protocol):
    """What works on a device, in a process of its own. Its other public methods are the tasks that it can be given."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What must be the same on all workers."""

    @property
    def kind(self) -> str:
        """What tells devices apart whose results do not mix; tasks can be for one kind only. Empty: they all mix."""


@dataclass(frozen=True)
class Device:
    """What one worker has to itself."""

    node: str
    name: str
    """Of its machine, for people."""
    cpus: int
    gpus: int


@dataclass(frozen=True)
class Cluster:
    """A cluster that is connected."""

    ray: Any
    """The module."""
    address: str
    """Of the head."""
    devices: tuple[Device, ...]
    remedies: tuple[Remedy, ...]
    """What to do where it fails."""

    def put(self, value: object) -> object:
        """Hand something over once, for all workers; what they get in its place.

        Raises:
            ClusterFailed: there is no room for it.
        """
        try:
            return self.ray.put(value)
        except self.ray.exceptions.RayError as error:
            raise self.failed(error) from error

    def check(self) -> None:
        """Look for the head.

        Raises:
            ClusterFailed: it is gone.
        """
        for look in range(LOOKS):
            if _answers(self.address):
                return
            time.sleep(look)
        raise ClusterFailed(f"the head of the Ray cluster at {self.address} does not answer any more", *self.remedies)

    def failed(self, error: Exception) -> ClusterFailed:
        """Say of what a cluster failed."""
        exceptions = self.ray.exceptions
        if isinstance(error, (exceptions.ObjectStoreFullError, exceptions.OutOfDiskError)):
            full = "the object store of the Ray cluster is full, in memory and on disk"
            return ClusterFailed(full, "give its nodes more of both", *self.remedies)
        return ClusterFailed(f"the Ray cluster at {self.address} failed: {_one_line(error)}", *self.remedies)


@contextmanager
def open_cluster(address: str | None, workers: int | None, threads: int | None) -> Iterator[Cluster]:
    """Connect to a cluster, or start one on this machine that ends with the context.

    Args:
        address: of the head, HOST:PORT, or "auto"; none: start one.
        workers: how many a cluster on this machine has.
        threads: cores of a worker; none: a worker has a whole machine to itself.

    Raises:
        Unavailable: Ray is not installed.
        InvalidInput: no address; or this machine has no room for so many workers.
        ClusterFailed: it cannot be reached, runs other versions, or has no device.
    """
    os.environ.update(QUIET)
    if workers is not None and threads is not None and workers * threads > usable_cores():
        raise _too_many(workers, f"{usable_cores()} cores, and a worker takes {threads}", usable_cores() // threads)
    without = LeaveOut(("workers" if address is None else "ray",))
    remedies = ("repeat the command, which continues, as soon as the cluster works", without)
    try:
        ray = importlib.import_module("ray")
    except ModuleNotFoundError:
        raise Unavailable("Ray", "the package ray is not installed", INSTALL, without) from None
    own: Any = importlib.import_module("ray._private.worker")
    own._worker_logs_enabled = False  # what Ray says of dead workers, we say
    folder = tempfile.mkdtemp(prefix="hyctas-", dir="/tmp") if address is None else None  # short: sockets have names inside
    try:
        _connect(ray, address, folder, remedies)
        devices = [device for node in ray.nodes() if node["Alive"] for device in _devices(node, threads)]
        if workers is not None and workers > len(devices):
            raise _too_many(workers, f"{len(devices)} GPUs", len(devices))
        head = ray.get_runtime_context().gcs_address
        if not devices:
            raise ClusterFailed(f"no node of the Ray cluster at {head} has {threads or 1} cores for a worker")
        yield Cluster(ray, head, tuple(devices[:workers]), remedies)
    finally:
        ray.shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _too_many(workers: int, found: str, most: int) -> InvalidInput:
    ways = (Give("workers", str(most)),) if most else ()
    return InvalidInput(f"{workers} workers are too many for this machine, which has {found}", *ways, "set fewer threads")


def _connect(ray: Any, address: str | None, folder: str | None, remedies: tuple[Remedy, ...]) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    if address is not None and address != "auto":
        if not re.fullmatch(r"[^/\s]+:\d+", address):
            raise InvalidInput(f"the address of a Ray cluster is that of its head, HOST:PORT, or auto, not {address!r}")
        if not _answers(address):  # Ray itself would try for minutes
            raise ClusterFailed(f"nothing answers at {address}, where the head of a Ray cluster should be", *remedies)
    try:
        if address is None:
            os.environ.update({name: value for name, value in LOCAL.items() if name not in os.environ})
            ray.init(address="local", num_cpus=usable_cores(), include_dashboard=False, object_store_memory=STORE_BYTES,
                     _temp_dir=folder, **quiet)  # fmt: skip
        else:
            importlib.import_module(TOKENS).maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
            ray.init(address=address, **quiet)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        where = "on this machine cannot be started" if address is None else f"at {address} cannot be joined"
        raise ClusterFailed(f"a Ray cluster {where}: {_one_line(error)}", *remedies) from error


def _devices(node: Mapping[str, Any], threads: int | None) -> list[Device]:
    """Return what a node offers: itself, or its GPUs, or where it has none, as many workers as its cores have room for."""
    cpus, gpus = int(node["Resources"].get("CPU", 0)), int(node["Resources"].get("GPU", 0))
    name = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
    if threads is None:
        return [Device(node["NodeID"], name, cpus, gpus)] * (cpus > 0)
    count = min(gpus, cpus // threads) if gpus else cpus // threads
    return [Device(node["NodeID"], name, threads, int(gpus > 0))] * count


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), REACH_S):
            return True
    except (OSError, OverflowError):
        return False


class _Actor:
    """What Ray runs on a device. An error of the user's comes back as a value, since not every exception can be sent."""

    def open(self, make: Callable[..., Worker], *arguments: Any) -> tuple[Any, HyctasError | None]:
        try:
            self.worker = make(*arguments)
        except (HyctasError, OSError) as error:
            return None, _portable(error)
        return (dict(self.worker.facts), self.worker.kind), None

    def run(self, task: str, *arguments: Any) -> tuple[Any, HyctasError | None]:
        try:
            return getattr(self.worker, task)(*arguments), None
        except (HyctasError, OSError) as error:
            return None, _portable(error)


def _portable(error: HyctasError | OSError) -> HyctasError:
    """Return an error that can be sent: a failed check is one for whoever asked; of others the sentence counts."""
    if isinstance(error, OSError):
        return HyctasError(f"on {socket.gethostname()}: {error}")
    return (CheckFailed if isinstance(error, CheckFailed) else HyctasError)(str(error), *error.remedies)


@dataclass
class _Place:
    """A device and the worker on it."""

    device: Device
    actor: Any
    doing: Any
    """Ray's reference to what it does; None: nothing."""
    key: Hashable | None = None
    """Of the task that it does; None: it starts, or waits."""
    deaths: int = 0
    """Before it was ready."""
    kind: str | None = None
    """None until it is ready."""
    since: float = 0.0
    """When it was started."""


@dataclass
class _Task:
    name: str
    arguments: tuple[Any, ...]
    near: Hashable | None
    kind: str
    arrived: Callable[[Any], None] | None
    deaths: int = 0


@dataclass
class Pool:
    """Workers on all devices of a cluster, who are given the tasks in the order in which they were submitted.

    Args:
        cluster: connected.
        make: makes a worker, in its own process.
        arguments: for that.
        expected: facts that a worker must have; one that has others is refused.
        notice: told in a sentence who is refused, and who died.
    """

    cluster: Cluster
    make: Callable[..., Worker]
    arguments: tuple[Any, ...]
    expected: Mapping[str, Any]
    notice: Callable[[str], None]
    _places: list[_Place] = field(default_factory=list)
    _tasks: dict[Hashable, _Task] = field(default_factory=dict)
    """Waiting, or being done."""
    _waiting: list[Hashable] = field(default_factory=list)
    _done: dict[Hashable, tuple[Any, HyctasError | None]] = field(default_factory=dict)
    _by: dict[Hashable, _Place] = field(default_factory=dict)
    """Who did a task."""

    def __post_init__(self) -> None:
        self._refused, self._looked = set[str](), time.monotonic()
        for device in self.cluster.devices:
            self._places.append(self._open(_Place(device, None, None)))

    def submit(
        self, key: Hashable, task: str, *arguments: Any, near: Hashable | None = None, kind: str = "",
        arrived: Callable[[Any], None] | None = None,
    ) -> None:  # fmt: skip
        """Give a task to whoever is free next.

        Args:
            key: its result is asked for by this; one that was submitted before is not submitted again.
            task: method of the worker.
            arguments: of the method.
            near: key of an earlier task, whose worker does this one faster.
            kind: of the devices that may do it; empty: any.
            arrived: called with the result as soon as it comes, while others are waited for.
        """
        if key not in self._tasks and key not in self._done:
            self._tasks[key] = _Task(task, arguments, near, kind, arrived)
            self._waiting.append(key)
            self._hand_out()

    def result(self, key: Hashable) -> Any:
        """Wait for the result of a task that was submitted, and forget it.

        Raises:
            HyctasError: what the worker raised: CheckFailed, or with its text.
            ClusterFailed: the cluster was lost, or no worker is left.
        """
        while key not in self._done:
            self._turn()
        value, error = self._done.pop(key)
        if error is not None:
            raise error
        return value

    def kinds(self) -> dict[str, list[Device]]:
        """Wait until every worker is ready or refused; return the devices of each kind.

        Raises:
            ClusterFailed: the cluster was lost, or no worker is left.
        """
        while not self._places or any(place.kind is None for place in self._places):
            self._turn()
        found: dict[str, list[Device]] = {}
        for place in self._places:
            found.setdefault(str(place.kind), []).append(place.device)
        return found

    def close(self) -> None:
        """End the workers."""
        for place in self._places:
            with suppress(Exception):  # a cluster that is lost has ended them
                self.cluster.ray.kill(place.actor)
        self._places.clear()

    def _turn(self) -> None:
        """Wait a while for something to happen, and see to it."""
        for place in [place for place in self._places if place.kind is None and time.monotonic() - place.since > OPEN_S]:
            self._refuse(place, f"it was not ready within {OPEN_S:.0f} s, because others have the device, or it is too slow")
        if not self._places:
            raise ClusterFailed("no worker of the Ray cluster can be used, as said above", *self.cluster.remedies)
        doing = {place.doing: place for place in self._places if place.doing is not None}
        if not doing:
            raise ClusterFailed("no worker is left of the kind that what is left needs", *self.cluster.remedies)
        ended, _ = self.cluster.ray.wait(list(doing), timeout=LOOK_S)
        if time.monotonic() - self._looked > LOOK_S:
            self.cluster.check()
            self._looked = time.monotonic()
        for reference in ended:
            self._take(doing[reference])
        self._hand_out()

    def _take(self, place: _Place) -> None:
        """See what became of what a worker was doing."""
        key, reference, exceptions = place.key, place.doing, self.cluster.ray.exceptions
        place.key = place.doing = None
        try:
            value, error = self.cluster.ray.get(reference)
        except (exceptions.ObjectStoreFullError, exceptions.OutOfDiskError) as full:
            raise self.cluster.failed(full) from full
        except exceptions.RayTaskError as defect:
            if key is not None:
                raise  # a defect of ours, with the worker's traceback
            return self._refuse(place, _one_line(defect.cause))
        except exceptions.RayError:  # whoever did it is gone, or what it sent
            return self._bury(place, key)
        if key is None:
            differing = [] if error else _differences(value[0], self.expected)
            if error or differing:
                return self._refuse(place, _one_line(error) if error else "; ".join(differing))
            place.deaths, place.kind = 0, value[1]
            return None
        task = self._tasks.pop(key)
        self._done[key], self._by[key] = (value, error), place
        if task.arrived is not None and error is None:
            task.arrived(value)
        return None

    def _bury(self, place: _Place, key: Hashable | None) -> None:
        """Let a task run again whose worker died, and put another worker in its place."""
        if key is None:
            place.deaths += 1
        else:
            self.notice(f"a worker on {place.device.name} died; what it was doing runs again")
            self._tasks[key].deaths += 1
            self._waiting.insert(0, key)
            if self._tasks[key].deaths == DEATHS:
                died = f"{DEATHS} workers died of one task, the last one on {place.device.name}"
                raise ClusterFailed(died, *self.cluster.remedies)
        if place.deaths == DEATHS:
            return self._refuse(place, f"it died {DEATHS} times as it started")
        self._open(place)
        return None

    def _refuse(self, place: _Place, reason: str) -> None:
        self._places.remove(place)
        with suppress(Exception):
            self.cluster.ray.kill(place.actor)
        text = f"a worker on {place.device.name} is refused: {reason}"
        if text not in self._refused:
            self.notice(text)
        self._refused.add(text)

    def _open(self, place: _Place) -> _Place:
        """Start a worker in a place."""
        ray = self.cluster.ray
        strategy = importlib.import_module("ray.util.scheduling_strategies").NodeAffinitySchedulingStrategy
        kind = ray.remote(_Actor).options(
            num_cpus=place.device.cpus, num_gpus=place.device.gpus, max_restarts=0,
            scheduling_strategy=strategy(node_id=place.device.node, soft=False),
        )  # fmt: skip
        place.actor = kind.remote()
        place.doing, place.key, place.kind = place.actor.open.remote(self.make, *self.arguments), None, None
        place.since = time.monotonic()
        return place

    def _hand_out(self) -> None:
        """Give every free worker a task: one that it does faster than others, else the oldest."""
        for place in self._places:
            fitting = [key for key in self._waiting if place.doing is None and self._tasks[key].kind in ("", place.kind)]
            if fitting:
                own = (key for key in fitting if self._by.get(self._tasks[key].near) is place)
                key = next(own, fitting[0])
                self._waiting.remove(key)
                task = self._tasks[key]
                place.key, place.doing = key, place.actor.run.remote(task.name, *task.arguments)


def _differences(theirs: Mapping[str, Any], ours: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Say where a worker's facts differ."""
    lines = list[str]()
    for name in sorted(ours.keys() | theirs.keys()):
        here, there = ours.get(name, "nothing"), theirs.get(name, "nothing")
        if isinstance(here, Mapping) and isinstance(there, Mapping):
            lines += _differences(there, here, f"{prefix}{name}.")
        elif here != there:
            lines.append(f"{prefix}{name} is {there} there and {here} here")
    return lines


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
