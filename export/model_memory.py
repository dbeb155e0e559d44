"""Measure the memory that a model takes: in a process of its own, the most that was resident beyond the runtime without a model.

What counts: weights as the runtime keeps them, activations, scratch memory, and what loading takes on the way. What does not: the
interpreter, the runtime's libraries and its threads, which a tiny model has brought in before. On a GPU, the memory that the device
had in use counts likewise, by NVML.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from export.bench_models import BenchModel, runnable_file
from export.errors import HyctasError, InvalidInput, Unavailable
from export.feeds import random_feeds
from export.machine import resident_mib
from export.runtime import Runtime
from export.runtimes import open_runtime
from export.sensors import gpu_used_mib
from export.target import TENSORRT, Target

RUNS = 3
"""The second run of a runtime may take other memory than the first, which it has learnt from."""
TINY_ONNX = bytes.fromhex(
    "08083a4b0a0c0a0178120179220452656c751201675a1b0a017812160a14080112100a0208010a0208010a0208010a02"
    "0801621b0a017912160a14080112100a0208010a0208010a0208010a02080142040a00100d"
)
"""A ReLU of one number."""
STATUS, PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class ModelMemory:
    """Memory beyond that of the runtime without a model, in MiB."""

    peak_mib: float
    """Host memory."""
    runtime_mib: float
    """Host memory of the process before the model was loaded: interpreter, libraries, threads."""
    device_mib: float | None = None
    """Memory of the GPU that the model runs on; None on a CPU."""

    def __str__(self) -> str:
        device = "" if self.device_mib is None else f" and {self.device_mib:.0f} MiB of GPU memory"
        return f"{self.peak_mib:.1f} MiB{device} beyond the {self.runtime_mib:.0f} MiB of a process with the runtime alone"


def measure_memory(model: BenchModel, target: Target, threads: int) -> ModelMemory:
    """Load and run a model in a process of its own.

    Args:
        model: a file or bundle; a module is exported in the process that has it, which hides what it takes afterwards.
        target: where it runs.
        threads: threads inside one operator.

    Raises:
        InvalidInput: a module, or a file that does not run there.
        Unavailable: the system does not tell, or the target cannot run here.
    """
    if model.path is None:
        raise InvalidInput(f"model {model.name!r}: memory is measured of files and bundles; write the network as a file first")
    if not (STATUS.exists() and PEAK.exists()):
        raise Unavailable("measuring memory", "it takes /proc of Linux", "measure on a machine with Linux")
    context = multiprocessing.get_context("spawn")  # a fork would share what is resident here
    with tempfile.TemporaryDirectory(prefix="hyctas-memory-") as folder:
        path = runnable_file(model, target, Path(folder), [])
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_measure, args=(theirs, path, target, threads, Path(folder)), daemon=True)
        process.start()
        theirs.close()
        try:
            found = ours.recv()
        except EOFError:
            process.join()
            raise InvalidInput(f"{path}: the process that measured its memory ended with code {process.exitcode}") from None
        finally:
            process.join()
    if isinstance(found, HyctasError):
        raise found
    if isinstance(found, str):
        raise RuntimeError(found)
    assert isinstance(found, ModelMemory)
    return found


def _measure(answers: Connection, path: Path, target: Target, threads: int, folder: Path) -> None:
    """Send what a model takes, or the error that it ended with."""
    try:
        answers.send(_measured(path, target, threads, folder))
    except HyctasError as error:
        answers.send(InvalidInput(str(error)))  # every one of them can be pickled like this
    except Exception:
        answers.send(traceback.format_exc())


def _measured(path: Path, target: Target, threads: int, folder: Path) -> ModelMemory:
    runtime = open_runtime(target, threads)
    runtime.versions()
    with _warm(runtime, path, folder):
        on_gpu = target.device != "cpu"
        before, device = _resident_mib("VmRSS"), gpu_used_mib() if on_gpu else None
        PEAK.write_text("5")  # the highest resident size begins again at the present one
        with runtime.load_file(path) as session:
            session.bind(random_feeds(session.inputs))
            for _ in range(RUNS):
                session.step()
            after = gpu_used_mib() if on_gpu else None
        peak = _resident_mib("VmHWM")
    device_mib = None if device is None or after is None else max(0.0, after - device)
    return ModelMemory(max(0.0, peak - before), before, device_mib)


@contextmanager
def _warm(runtime: Runtime, path: Path, folder: Path) -> Iterator[None]:
    """Keep a tiny model loaded, so that libraries, plugins and threads are there; engines have none."""
    if path.suffix.lower() != ".onnx" or runtime.target.runtime in TENSORRT:
        yield
        return
    tiny = folder / "tiny.onnx"
    tiny.write_bytes(TINY_ONNX)
    with runtime.load_file(tiny) as session:
        session.bind(random_feeds(session.inputs))
        session.step()
        yield


def _resident_mib(field: str) -> float:
    found = resident_mib(field, STATUS)
    if found is None:
        raise Unavailable("measuring memory", f"{STATUS} has no {field}", "measure on a machine with Linux")
    return found
