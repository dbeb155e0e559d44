"""Build an engine from an ONNX file where it is to run, or rebuild one: python -m export.trt.from_onnx.

| given                             | writes                                                                                      |
|-----------------------------------|---------------------------------------------------------------------------------------------|
| `model.onnx [--precision fp16]`   | `model.engine` and its manifest beside it                                                   |
| `model.engine`                    | the same again, from the ONNX file beside it, as its manifest says, if it does not fit here |

Needs Python 3.10, numpy, tensorrt, cuda-bindings, onnx and onnxruntime; the last two convert the graph, and compute what the
engine must give: nothing is written before both agree. Attention is built as it stands in the file, in standard operators;
an export of the network knows other ways, and chooses among them by measurement.
"""

from __future__ import annotations

import argparse
import functools
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from onnx import ModelProto

from export.errors import CheckFailed, CorruptFile, HyctasError, InvalidInput
from export.feeds import random_feeds
from export.files import sha256
from export.parity import check_comparable, check_same
from export.ranges import Range, argument
from export.target import Target
from export.trt.build import build_engine
from export.trt.cuda.device import BACKENDS, DeviceBackend, open_backend
from export.trt.cuda.guard import import_tensorrt
from export.trt.engine_file import (
    LATENCY_PROTOCOL,
    UNPROVEN,
    EngineManifest,
    Machine,
    check_free,
    machine_of,
    manifest_path,
    named_machine,
    needs_rebuild,
    required_manifest,
    save_engine,
)
from export.trt.layers import Layer, engine_layers, fused_attention, softmax_nodes
from export.trt.onnx_metadata import onnx_metadata
from export.trt.options import PRECISIONS, PRESETS, BuildOptions
from export.trt.prepare import in_precision
from export.trt.progress import Progress
from export.trt.rtx import capabilities, import_rtx
from export.trt.run import measure, summary
from export.trt.runner import EngineSession
from export.trt.timing_cache import default_folder

SECONDS = 2.0
"""Time to measure a finished engine for."""
EXAMPLES = 2
"""Random inputs that `mixed` holds parity on while it decides."""
AS_IT_STANDS = "attention is built as it stands in the file; an export of the network chooses its implementation by measurement"

OnStatus = Callable[[str], None]


@dataclass(frozen=True)
class BuildHost:
    """What building an engine needs of this machine."""

    trt: Any
    """The module `tensorrt`, or TensorRT-RTX."""
    machine: Machine
    backend: DeviceBackend | None
    """None where engines are built for GPUs elsewhere: none is run."""
    timing_cache: Path
    """Folder of timing caches."""


def open_host(cuda_backend: str | None = None, timing_cache: Path | None = None, capabilities: tuple[int, ...] = ()) -> BuildHost:
    """Return what this machine has; where GPUs are named, TensorRT-RTX for these. `Unavailable` where it is missing."""
    if capabilities:
        trt = import_rtx()
        return BuildHost(trt, named_machine(trt, capabilities), None, timing_cache or default_folder())
    trt = import_tensorrt()
    return BuildHost(trt, machine_of(trt), open_backend(cuda_backend), timing_cache or default_folder())


def engine_from_onnx(
    onnx: Path, options: BuildOptions, host: BuildHost, command: str, on_status: OnStatus, progress: Progress | None = None
) -> tuple[bytes, EngineManifest]:
    """Build, prove and time an engine, and return it with the manifest to save beside it; nothing is written.

    Args:
        onnx: of static shape, one input, one output; fp32, or quantised already for int8 and fp8.
        options: how to build.
        host: what this machine has.
        command: what rebuilds it, for the manifest.
        on_status: is told what is being done.
        progress: is told how far the build is.

    Raises:
        CheckFailed: the engine does not compute what ONNX Runtime computes from the file.
        InvalidInput: no such file, other inputs or outputs, or a graph that does not fit the options.
        Unavailable: onnxruntime is not installed, or what converts to the precision.
        TensorRTFailed: TensorRT failed, with its own words.
        CudaFailed: CUDA did.
    """
    from export.backends.onnxruntime_session import OnnxRuntime

    if not onnx.is_file():
        raise InvalidInput(f"no such file: {onnx}")
    with ExitStack() as stack:
        # opened before minutes are spent: it must be installed, take the file, and be able to judge it
        reference = stack.enter_context(OnnxRuntime(Target("onnxruntime-cpu", "fp32")).load_file(onnx))
        check_comparable(reference)
        random = np.random.default_rng(0)
        draw = lambda: {spec.name: random.standard_normal(spec.shape, np.float32) for spec in reference.inputs}  # noqa: E731
        examples = [draw() for _ in range(EXAMPLES)] if options.precision == "mixed" else []
        graph = in_precision(_single_file(onnx), options.precision, examples=examples)
        on_status(f"build {onnx.with_suffix('.engine').name}: {options.precision}, optimisation level {options.level}")
        built = build_engine(
            graph, options, timing_cache=host.timing_cache, machine=host.machine, trt=host.trt, progress=progress
        )
        size = f"built in {built.seconds:.0f} s, {len(built.plan) / 1e6:.2f} MB"
        describe = functools.partial(built.manifest, host.machine, onnx, command)
        if host.backend is None:
            on_status(f"{size}; {UNPROVEN['reason']}")
            return built.plan, describe(attention=_attention(built.engine_layers, graph, on_status), parity=UNPROVEN)
        session = stack.enter_context(EngineSession(built.plan, backend=host.backend, metadata=onnx_metadata(onnx), trt=host.trt))
        tolerance, agreement = options.parity_limits
        parity = check_same(session, reference, tolerance=tolerance, min_agreement=agreement)
        if not parity.passed:
            advice = "; take mixed, bf16 or fp32" if options.precision == "fp16" else ""
            raise CheckFailed(f"the engine is not written: {parity.summary()}{advice}")
        session.bind(random_feeds(session.inputs))
        times = summary(measure(session, SECONDS))
        attention = _attention(engine_layers(session.layer_info()), graph, on_status)
        latency = {f"{key}_ms": times[key] for key in ("median", "p90", "p95", "p99")} | {"n": times["n"], "cv": times["cv"]}
        on_status(f"{size}, {times['n']} runs of {times['median']:.3f} ms (median)")
        on_status(parity.summary())
        for line in (*built.notices, *session.notes):
            on_status(f"note: {line}")
        proof = {**parity.to_json(), "against": onnx.name}
        return built.plan, describe(attention=attention, parity=proof, latency={**latency, "protocol": LATENCY_PROTOCOL})


def _single_file(path: Path) -> bytes:
    """Return an ONNX file's content, of which the manifest's hash must cover all."""
    from export.onnx.foreign import external_files, load_graph

    if outside := external_files(load_graph(path)):
        raise InvalidInput(f"{path} keeps weights in {', '.join(outside)}; write it as a single file, whose hash covers them: "
                           f"in Python, onnx.save(onnx.load({path.name!r}), 'whole.onnx')")  # fmt: skip
    return path.read_bytes()


def rebuild_engine(path: Path, host: BuildHost, on_status: OnStatus, progress: Progress | None = None) -> EngineManifest:
    """Rebuild an engine, there or not, from the ONNX file beside it, as its manifest says, and replace both files.

    Raises:
        EngineRefused: it has no manifest, so what it was built from is not known.
        CorruptFile: the manifest cannot be read, or the ONNX file is missing or another one.
        HyctasError: as `engine_from_onnx`.
    """
    manifest = required_manifest(path)
    source = path.with_name(manifest.onnx)
    if not source.is_file():
        raise CorruptFile(source, f"is missing; {path.name} was built from it")
    if sha256(source) != manifest.onnx_sha256:
        raise CorruptFile(source, f"is not the file that {path.name} was built from; rebuild it on purpose: {manifest.command}")
    options = replace(options_of(path, manifest), plugins=False)
    plan, fresh = engine_from_onnx(source, options, host, manifest.command, on_status, progress)
    save_engine(path, plan, fresh)
    return fresh


def options_of(path: Path, manifest: EngineManifest) -> BuildOptions:
    """Return the options that an engine was built with; `CorruptFile` where its manifest holds none that can be."""
    try:
        options = BuildOptions.from_json(manifest.options)
    except (InvalidInput, KeyError, TypeError) as error:
        raise CorruptFile(manifest_path(path), f"holds no usable options ({error})") from None
    if options.precision != manifest.precision:
        raise CorruptFile(manifest_path(path), f"says {manifest.precision}, and {options.precision} in its options")
    return options


def _attention(layers: Sequence[Layer], graph: bytes, on_status: OnStatus) -> dict[str, Any]:
    """Say which attention is one kernel, and return what the manifest holds of it."""
    fused = fused_attention(layers, softmax_nodes(ModelProto.FromString(graph)))
    if fused.verdict != "unknown":
        on_status(f"note: {fused.summary()}; {AS_IT_STANDS}")
    return {
        "measured": False, "choices": [], "fused": fused.verdict, "evidence": list(fused.evidence), "reason": AS_IT_STANDS,
    }  # fmt: skip


class Shown:
    """Shows on a terminal how far a build is; elsewhere its outermost phases, a line each."""

    def __init__(self) -> None:
        self._phase, self._at = "", 0.0

    def __call__(self, text: str, done: int, total: int) -> None:
        """Take what `Progress` gives."""
        now, phase = time.monotonic(), text.partition(" > ")[0]
        if sys.stderr.isatty():
            if now - self._at > 0.2:
                self._at = now
                print(f"\r\033[K{text[-70:]} {f'{done}/{total}' if total else done}", end="", file=sys.stderr, flush=True)
        elif phase != self._phase:
            print(phase, file=sys.stderr, flush=True)
        self._phase = phase

    def clear(self) -> None:
        """Remove the line on a terminal."""
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    args = _parser().parse_args(arguments)
    shown = Shown()

    def on_status(text: str) -> None:
        shown.clear()
        print(text, flush=True)

    try:
        _make(args, on_status, shown)
        return 0
    except HyctasError as error:
        said, code = str(error), error.exit_code
    except OSError as error:
        said = f"{error.strerror}: {error.filename or 'while writing'}; files that were there before are whole"
        code = InvalidInput.exit_code
    except KeyboardInterrupt:
        said, code = "stopped; nothing was written", 130
    shown.clear()
    print(said, file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    description = "Build a TensorRT engine from an ONNX file where it is to run, or rebuild one that does not fit this machine."
    parser = argparse.ArgumentParser(prog="python -m export.trt.from_onnx", description=description)
    parser.add_argument("file", type=Path, metavar="FILE", help="model.onnx, or an engine with its manifest and its ONNX file")
    parser.add_argument("--precision", choices=PRECISIONS, help="of the engine (default: fp16); int8 and fp8 take a quantised file")
    parser.add_argument("--preset", choices=PRESETS, help="release: every kernel is tried (default); search: a quick build")
    mib = argument(Annotated[int, Range(1, 2**20)])
    parser.add_argument("--workspace-mib", type=mib, metavar="N", help="most scratch memory of one layer, for small devices")
    parser.add_argument("--gpu", metavar="SM", help="build with TensorRT-RTX for GPUs elsewhere, for instance sm_86,sm_89,sm_120")
    parser.add_argument("--cuda-backend", choices=BACKENDS, help="who talks to CUDA (default: the first that works)")
    parser.add_argument("--timing-cache", type=Path, metavar="DIR", help="folder of timing caches (default: the user's cache)")
    return parser


def _make(args: argparse.Namespace, on_status: OnStatus, shown: Shown) -> None:
    path: Path = args.file
    if path.suffix.lower() not in (".onnx", ".engine"):
        raise InvalidInput(f"{path.name}: give an .onnx file to build from, or an .engine file to rebuild")
    if path.parent.is_dir() and not os.access(path.parent, os.W_OK | os.X_OK):
        raise InvalidInput(f"cannot write beside {path}: you may not write there; copy it elsewhere first")
    engine = path if path.suffix.lower() == ".engine" else path.with_suffix(".engine")
    if engine == path:
        if given := [name for name in ("precision", "preset", "workspace_mib", "gpu") if getattr(args, name) is not None]:
            raise InvalidInput(f"{path.name} is rebuilt as its manifest says; leave out --{given[0].replace('_', '-')}")
        host = open_host(args.cuda_backend, args.timing_cache, options_of(path, required_manifest(path)).capabilities)
        if (reason := needs_rebuild(path, host.machine)) is None:
            on_status(f"{path.name} fits this machine; nothing to do")
            return
        on_status(f"{path.name}: {reason}")
        rebuild_engine(path, host, on_status, shown)
    else:
        gpus = capabilities(args.gpu) if args.gpu else ()
        chosen = {"workspace_mib": args.workspace_mib, "capabilities": gpus}
        options = BuildOptions.of_preset(args.preset or "release", args.precision or "fp16", **chosen)
        if not path.is_file():
            raise InvalidInput(f"no such file: {path}")
        check_free(engine)
        host = open_host(args.cuda_backend, args.timing_cache, gpus)
        command = f"python3 -m export.trt.from_onnx {shlex.quote(engine.name)}"
        save_engine(engine, *engine_from_onnx(path, options, host, command, on_status, shown))
    on_status(f"wrote {engine} and {manifest_path(engine).name}\nnext: python3 -m export.trt.run {shlex.quote(str(engine))}")


if __name__ == "__main__":
    sys.exit(main())
