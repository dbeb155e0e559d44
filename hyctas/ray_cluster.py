"""Connect to a Ray cluster, or start one on this machine, and say in a sentence why that fails. No torch here.

Ray is imported only where a cluster is opened.
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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from export.errors import Give, HyctasError, InvalidInput, LeaveOut, Remedy, Unavailable
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
STARTS = 3
"""A cluster on this machine is started so often: Ray gives up where its processes get no core for 30 seconds."""
REACH_S, LOOKS = 5.0, 3
"""How long the head may take to answer; how often it is looked for in vain before it counts as gone."""


class ClusterFailed(HyctasError):
    """A cluster cannot be reached, has no worker of use, or was lost; what was recorded before is whole."""

    exit_code = 3


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

    def start(self, device: Device, kind: type) -> Any:
        """Start an actor on a device, and nowhere else."""
        strategy = importlib.import_module("ray.util.scheduling_strategies").NodeAffinitySchedulingStrategy
        options = {"num_cpus": device.cpus, "num_gpus": device.gpus, "scheduling_strategy": strategy(device.node, soft=False)}
        return self.ray.remote(kind).options(max_restarts=0, **options).remote()

    def failed(self, error: Exception) -> ClusterFailed:
        """Say of what a cluster failed."""
        exceptions = self.ray.exceptions
        if isinstance(error, (exceptions.ObjectStoreFullError, exceptions.OutOfDiskError)):
            full = "the object store of the Ray cluster is full, in memory and on disk"
            return ClusterFailed(full, "give its nodes more of both", *self.remedies)
        return ClusterFailed(f"the Ray cluster at {self.address} failed: {one_line(error)}", *self.remedies)


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
    if address is None:
        os.environ.update({name: value for name, value in LOCAL.items() if name not in os.environ})
        where: dict[str, Any] = {"address": "local", "num_cpus": usable_cores(), "include_dashboard": False, "_temp_dir": folder}
        where["object_store_memory"] = STORE_BYTES
    else:
        importlib.import_module(TOKENS).maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
        where = {"address": address}
    for left in reversed(range(STARTS if address is None else 1)):
        try:
            ray.init(**where, **quiet)
            return
        except Exception as error:  # Ray raises bare ones, too
            ray.shutdown()
            if not left:
                why = one_line(error)
                if address is None:
                    raise ClusterFailed(f"a Ray cluster on this machine cannot be started: {why}", *remedies) from error
                token = "where it asks for a token, set RAY_AUTH_MODE=token and copy its ~/.ray/auth_token to this machine"
                raise ClusterFailed(f"the Ray cluster at {address} cannot be joined: {why}", token, *remedies) from error


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


def one_line(error: BaseException) -> str:
    """Return an error's text on one line."""
    return " ".join(str(error).split()) or type(error).__name__
