"""Keep a manifest beside each engine, and refuse before loading what does not fit this machine. No torch or ONNX here.

An engine runs where it was built: same TensorRT, same GPU. On anything else TensorRT returns None at best. Worse, deserialising an
engine executes code that stands in it, so only engines are loaded whose content is the one that their manifest names:

| beside `model.engine`                       | without trust         | trusted               |
|---------------------------------------------|-----------------------|-----------------------|
| manifest, hash and machine fit              | loaded                | loaded                |
| no manifest                                 | refused               | loaded                |
| another hash (or a kill between files)      | refused               | loaded                |
| built for another TensorRT, GPU, CUDA or OS | refused               | refused               |
| built under another driver                  | loaded, with a notice | loaded, with a notice |

A manifest proves that an engine is the one that was built, not who built it: whoever sends you both can write both. Take engines
from sources whose programs you would run, or rebuild them from the ONNX file (`export.trt.from_onnx`), which is data.
"""

from __future__ import annotations

import hashlib
import math
import platform
import shlex
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from export.bundle.bundle_engine import bundle_of, engine_replaced
from export.errors import CorruptFile, HyctasError, InvalidInput, Perform, Remedy
from export.files import check_own, json_text, read_json, sha256, write_together
from export.parity import check_claim
from export.ranges import Range, check_types
from export.trt import rtx
from export.trt.cuda.guard import UNKNOWN, cuda_runtime_version, driver_version, require_gpu
from export.trt.options import target_precision
from export.trt.versions import is_rtx

FORMAT_VERSION = 1
UNPROVEN = {"passed": False, "reason": "parity not proven: not run on a GPU"}
"""What the manifest says of an engine that was built where it cannot run."""
LATENCY_PROTOCOL = "CUDA graph where one could be captured, inputs and outputs on the device, events on the device"
"""How the times in a manifest are taken."""


class EngineRefused(HyctasError):
    """An engine file must not be loaded here.

    Attributes:
        path: the engine.
        field: what does not fit: a field of `EngineManifest`, or `manifest` where there is none.
        built: what the engine was built with.
        found: what is here.
        command: what builds one that fits.
    """

    def __init__(self, path: Path, reason: str, *, field: str, built: str, found: str, command: str) -> None:
        self.path, self.reason, self.field, self.built, self.found, self.command = path, reason, field, built, found, command
        text = f"{path.name} is refused: {reason}\nTo get one that fits: {command}{_beside(path)}"
        super().__init__(text, *_remedies(path, field))


@dataclass(frozen=True)
class Machine:
    """What an engine depends on. Texts may be `unknown`."""

    tensorrt: str
    cuda: str
    """Version of CUDA's runtime."""
    driver: str
    gpu: str
    """The GPU's name as the driver gives it."""
    capability: tuple[int, int]
    """Compute capability (major, minor)."""
    system: str
    """Operating system and processor, for instance `Linux-x86_64`."""
    runtime: str = "tensorrt"
    """`tensorrt` or `tensorrt-rtx`, whose version `tensorrt` then is."""
    capabilities: tuple[tuple[int, int], ...] = ()
    """Of an engine of TensorRT-RTX: all that it was built for."""

    @property
    def fits(self) -> tuple[tuple[int, int], ...]:
        """The compute capabilities that an engine built with this runs on."""
        return self.capabilities or (self.capability,)


def machine_of(trt: Any, index: int = 0) -> Machine:
    """Gather the facts of this machine; `Unavailable` where no GPU is usable."""
    gpu, runtime = require_gpu(index), rtx.RUNTIME if is_rtx(trt) else "tensorrt"
    return Machine(str(trt.__version__), cuda_runtime_version(), driver_version(), gpu.name, gpu.capability, _system(), runtime)


def named_machine(trt: Any, capabilities: Sequence[int]) -> Machine:
    """Return what an engine of TensorRT-RTX depends on that is built for GPUs that are named, whatever is here."""
    numbers = tuple(divmod(number, 10) for number in capabilities)
    return Machine(str(trt.__version__), UNKNOWN, UNKNOWN, UNKNOWN, numbers[0], _system(), rtx.RUNTIME, numbers)


def _system() -> str:
    return f"{platform.system()}-{platform.machine()}"


@dataclass(frozen=True, kw_only=True)
class EngineManifest:
    """The content of `model.engine.json`."""

    machine: Machine
    """What it was built with."""
    engine_sha256: str
    size_bytes: Annotated[int, Range(0)]
    """Of the engine."""
    onnx: str
    """Name of the ONNX file, in the same folder, that it can be rebuilt from."""
    onnx_sha256: str
    """Of that file."""
    graph_sha256: str
    """Of the graph as TensorRT parsed it: another one where the file was converted to the precision first."""
    precision: str
    options: dict[str, Any]
    """`export.trt.options.BuildOptions` as plain values."""
    command: str
    """What rebuilds the engine."""
    attention: dict[str, Any] = field(default_factory=dict)
    """Implementation of each attention: plugin, fused or decomposed, and why."""
    parity: dict[str, Any] | None = None
    """How far the engine's outputs are from the network's; `UNPROVEN` where it was not run."""
    latency: dict[str, Any] | None = None
    """What was measured of its speed, with spread and protocol; None where nothing was."""

    def __post_init__(self) -> None:
        if Path(self.onnx).name != self.onnx or self.onnx in ("", ".", "..") or "\\" in self.onnx:
            raise InvalidInput(f"the ONNX file must stand beside the engine and be named without a folder; got {self.onnx!r}")

    @property
    def target(self) -> str:
        """What it runs as, for instance `tensorrt-rtx:fp16`; mixed ones run as fp16."""
        return f"{self.machine.runtime}:{target_precision(self.precision)}"

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        machine = {**vars(self.machine), "capability": ",".join(".".join(map(str, one)) for one in self.machine.fits)}
        del machine["capabilities"]
        return {"format_version": FORMAT_VERSION, **vars(self), "machine": machine}


def manifest_path(path: Path) -> Path:
    """Return where an engine's manifest stands: `model.engine` has `model.engine.json`."""
    return path.with_name(path.name + ".json")


def read_manifest(path: Path) -> EngineManifest | None:
    """Read the manifest of an engine, without looking at the engine; None where there is none.

    Raises:
        CorruptFile: not JSON, of another format version, or fields are missing, wrong or unknown.
    """
    beside = manifest_path(path)
    if not beside.is_file():
        return None
    value = read_json(beside, FORMAT_VERSION)
    try:
        return _from_json(value)
    except (KeyError, TypeError, ValueError, AttributeError, InvalidInput) as error:
        raise CorruptFile(beside, f"a field is missing or wrong ({type(error).__name__}: {error})") from None


def required_manifest(path: Path) -> EngineManifest:
    """Read the manifest of an engine as `read_manifest` does.

    Raises:
        InvalidInput: there is neither the engine nor its manifest.
        EngineRefused: there is no manifest.
    """
    manifest = read_manifest(path)
    if manifest is None and not path.exists():
        raise InvalidInput(f"no such engine: {path}, and no manifest of one ({manifest_path(path).name})")
    if manifest is None:
        raise _without_manifest(path)
    return manifest


def check_free(path: Path) -> None:
    """Refuse to overwrite what is no engine of ours: `InvalidInput` where something stands at `path` without a manifest."""
    check_own(path, manifest_path(path), lambda: read_manifest(path) is not None)


def save_engine(path: Path, plan: bytes, manifest: EngineManifest) -> None:
    """Write an engine and its manifest, both or none; a kill between the two leaves a pair that is refused, since hashes differ.

    Where they are part of a bundle, its manifest lists them afterwards.

    Raises:
        InvalidInput: the manifest is not that of the plan.
        OSError: a file cannot be written.
    """
    if manifest.engine_sha256 != hashlib.sha256(plan).hexdigest() or manifest.size_bytes != len(plan):
        raise InvalidInput(f"the manifest for {path.name} names another engine than the {len(plan)} bytes that are to be saved")
    with replaced_in_bundle(path):
        write_together({path: plan, manifest_path(path): json_text(manifest.to_json()).encode()})


def replaced_in_bundle(path: Path) -> AbstractContextManager[None]:
    """Let an engine's files be written inside; where they are part of a bundle, its manifest lists them afterwards."""
    home = bundle_of(path)
    return engine_replaced(home) if home is not None else nullcontext()


@dataclass(frozen=True)
class CheckedEngine:
    """An engine that may be deserialised here."""

    plan: bytes = field(repr=False)
    manifest: EngineManifest | None
    """None for a trusted engine without one."""
    notices: tuple[str, ...]
    """What a user should know, though nothing forbids loading it."""


def read_engine(path: Path, machine: Machine, *, trust: bool = False) -> CheckedEngine:
    """Read an engine, once its manifest fits the machine and its content fits the manifest.

    The bytes that are returned are those that were hashed: deserialise them, not the file again.

    Args:
        path: the engine.
        machine: where it is to run.
        trust: load it without a manifest, or with another content than the manifest's. Its code will be executed.

    Raises:
        InvalidInput: no such file.
        EngineRefused: names the first thing that does not fit, and the command that builds one that does.
        CorruptFile: the manifest cannot be read.
    """
    if not path.is_file():
        raise InvalidInput(f"no such engine: {path}")
    manifest = read_manifest(path)
    if manifest is None:
        if not trust:
            raise _without_manifest(path)
        return CheckedEngine(path.read_bytes(), None, (f"{path.name} has no manifest and was trusted",))
    _check_machine(path, manifest, machine)
    plan, notices, built, driver = path.read_bytes(), list[str](), manifest.engine_sha256, manifest.machine.driver
    if machine.driver != driver and machine.runtime != rtx.RUNTIME:
        notices.append(f"built under driver {driver}, here is {machine.driver}: its times may differ")
    if (found := hashlib.sha256(plan).hexdigest()) != built:
        if not trust:
            reason = f"its content (sha256 {found[:12]}...) is not what its manifest names ({built[:12]}...): "
            reason += "it was changed, or writing it was interrupted"
            raise EngineRefused(path, reason, field="engine_sha256", built=built, found=found, command=manifest.command)
        notices.append(f"{path.name} is not the engine that its manifest names, and was trusted")
    return CheckedEngine(plan, manifest, tuple(notices))


def needs_rebuild(path: Path, machine: Machine) -> str | None:
    """Say why an engine must be rebuilt before it runs here, or None where it need not.

    A missing engine, a missing or unreadable manifest, another machine, another content and a changed ONNX file are reasons.
    """
    try:
        manifest = read_engine(path, machine).manifest
    except EngineRefused as error:
        return error.reason
    except (InvalidInput, CorruptFile) as error:
        return str(error)
    assert manifest is not None, "an engine without a manifest passes only where it is trusted"
    source = path.with_name(manifest.onnx)
    if source.is_file() and sha256(source) != manifest.onnx_sha256:
        return f"{source.name} changed since {path.name} was built from it"
    return None


def _has_source(path: Path) -> str | None:
    """Return the name of the ONNX file that an engine was built from, where it stands beside it."""
    try:
        manifest = read_manifest(path)
    except CorruptFile:
        return None
    return manifest.onnx if manifest is not None and path.with_name(manifest.onnx).is_file() else None


def _beside(path: Path) -> str:
    """Say what needs nothing but what stands beside an engine; nothing where its ONNX file does not."""
    source = _has_source(path)
    return "" if source is None else f"\nor from {source} beside it: python3 -m export.trt.from_onnx {shlex.quote(str(path))}"


def _remedies(path: Path, field: str) -> list[Remedy]:
    """Name the steps that build an engine, or that trust it."""
    found: list[Remedy] = [Perform("export", {"rebuild": True}, str(path))] if _has_source(path) else []
    if field == "manifest":
        found.append(Perform("export", {"network": "BUNDLE", "target": "tensorrt:fp16"}, path.name))
        found.append(Perform("bench", {"trust": True}, str(path)))
    return found


def _check_machine(path: Path, manifest: EngineManifest, here: Machine) -> None:
    """Refuse what was built for another machine; texts that are the same, or empty, fit."""
    built, is_rtx_engine = manifest.machine, manifest.machine.runtime == rtx.RUNTIME
    major = [version.partition(".")[0] for version in (built.cuda, here.cuda)]
    shown = [".".join(map(str, one)) for one in (*built.fits, here.capability)]
    name = {"tensorrt": "TensorRT", rtx.RUNTIME: "TensorRT-RTX"}.get(built.runtime, built.runtime)
    pairs = (
        ("runtime", "the runtime", built.runtime, here.runtime),
        ("tensorrt", name, built.tensorrt, here.tensorrt),
        ("capability", "compute capability", *(("", "") if here.capability in built.fits else (", ".join(shown[:-1]), shown[-1]))),
        ("gpu", "GPU", *(("", "") if is_rtx_engine else (built.gpu, here.gpu))),
        ("system", "system", built.system, here.system),
        ("cuda", "CUDA", *(("", "") if UNKNOWN in major else major)),
    )
    for fact, what, was, found in pairs:
        if was != found:
            reason = f"it was built for {what} {was}, and here is {what} {found}"
            raise EngineRefused(path, reason, field=fact, built=was, found=found, command=manifest.command)


def _without_manifest(path: Path) -> EngineRefused:
    reason = f"it has no manifest ({manifest_path(path).name}), so nobody knows what it is; loading an engine executes code in it"
    command = "build it from its bundle or its ONNX file. If you built it yourself, trust it"
    return EngineRefused(path, reason, field="manifest", built=UNKNOWN, found="none", command=command)


def _from_json(value: Mapping[str, Any]) -> EngineManifest:
    values = {name: entry for name, entry in value.items() if name != "format_version"}
    facts = {"runtime": "tensorrt", **values["machine"]}
    pairs = tuple((int(major), int(minor)) for major, minor in (one.split(".") for one in facts.pop("capability").split(",")))
    machine = Machine(**facts, capability=pairs[0], capabilities=pairs if facts["runtime"] == rtx.RUNTIME else ())
    manifest = EngineManifest(**{**values, "machine": machine})
    for part in (machine, manifest):
        check_types(part)
    parity, latency = manifest.parity or {}, manifest.latency or {}  # the engine's hash tells nothing of these
    check_claim(parity)
    if parity.get("passed", True) is not True and parity != UNPROVEN:
        raise InvalidInput("parity failed; such an engine is never written")
    for name, number in latency.items():
        if isinstance(number, (int, float)) and not isinstance(number, bool) and not 0 <= number < math.inf:
            raise InvalidInput(f"latency has {name} {number!r}, which no measurement gives")
    return manifest
