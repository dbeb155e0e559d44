"""Give tasks to the workers of a Ray cluster: one per device, and a task again where its worker died. No torch here.

Ray joins the machines, starts processes, carries objects and says who died. Here is who is given what next, and which workers are
refused.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from export.errors import CheckFailed, HyctasError
from hyctas.ray_cluster import Cluster, ClusterFailed, Device, one_line

LOOK_S = 2.0
"""How often the cluster's head is looked for."""
OPEN_S = 900.0
"""How long a worker may take to be ready."""
DEATHS = 3
"""A task that so many workers died of is not tried again; neither is a worker that died so often before it was ready."""


class Worker(Protocol):
    """What works on a device, in a process of its own. Its other public methods are the tasks that it can be given."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What must be the same on all workers."""

    @property
    def kind(self) -> str:
        """What tells devices apart whose results do not mix; tasks can be for one kind only. Empty: they all mix."""


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
            return self._refuse(place, one_line(defect.cause))
        except exceptions.RayError:  # whoever did it is gone, or what it sent
            return self._bury(place, key)
        if key is None:
            differing = [] if error else _differences(value[0], self.expected)
            if error or differing:
                return self._refuse(place, one_line(error) if error else "; ".join(differing))
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
        place.actor = self.cluster.start(place.device, _Actor)
        place.doing, place.key, place.kind = place.actor.open.remote(self.make, *self.arguments), None, None
        place.since = time.monotonic()
        return place

    def _hand_out(self) -> None:
        """Give every free worker a task: first those that it does faster than others, then the oldest."""
        for near in (True, False):
            for place in self._places:
                fitting = (key for key in self._waiting if self._fits(key, place, near=near))
                if place.doing is None and (key := next(fitting, None)) is not None:
                    self._waiting.remove(key)
                    task = self._tasks[key]
                    place.key, place.doing = key, place.actor.run.remote(task.name, *task.arguments)

    def _fits(self, key: Hashable, place: _Place, *, near: bool) -> bool:
        task = self._tasks[key]
        return task.kind in ("", place.kind) and (not near or self._by.get(task.near) is place)


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
