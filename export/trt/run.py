"""Time an engine on the device it was built for: python -m export.trt.run model.engine.

Needs Python 3.10, numpy, tensorrt and cuda-bindings; Pillow for images that are neither .npy nor .ppm.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from export.errors import CorruptFile, HyctasError, InvalidInput
from export.feeds import random_feeds
from export.files import sha256, write_bytes, write_json
from export.runtime import TensorSpec
from export.trt.cuda.device import BACKENDS, DeviceBackend, open_backend
from export.trt.cuda.guard import import_tensorrt
from export.trt.engine_file import EngineRefused, machine_of
from export.trt.layers import engine_layers
from export.trt.runner import EngineSession, open_engine

FORMAT_VERSION = 1
WARM_UP_S, MIN_SAMPLES = 0.2, 10
NOISY_CV = 0.025
"""Coefficient of variation from which trtexec warns."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    args = _parser().parse_args(arguments)
    try:
        _run(args)
    except HyctasError as error:
        trust = isinstance(error, EngineRefused) and error.field == "manifest"
        print(f"{error}{': --trust' * trust}", file=sys.stderr)
        return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m export.trt.run", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("engine", type=Path, metavar="ENGINE", help="the engine; its manifest (ENGINE.json) stands beside it")
    parser.add_argument("--trust", action="store_true", help="load it without a manifest, or changed since: executes code in it")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--image", type=Path, metavar="FILE", help="input: .npy (as it is), .ppm, or what Pillow reads")
    source.add_argument("--random", action="store_true", help="input: normal noise, always the same (default)")
    parser.add_argument("--seconds", type=float, default=3.0, metavar="S", help="time to measure for (default: 3)")
    parser.add_argument("--cuda-backend", choices=BACKENDS, help="who talks to CUDA (default: the first that works)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the times go (default: ENGINE.times.json)")
    parser.add_argument("--outputs", type=Path, metavar="FILE", help="write the outputs for the input to this .npz")
    parser.add_argument("--layers", type=Path, metavar="DIR", help="write per-layer times and descriptions, as trtexec does")
    return parser


def _run(args: argparse.Namespace) -> None:
    if not args.seconds > 0:
        raise InvalidInput(f"--seconds must be positive, got {args.seconds}")
    machine = machine_of(import_tensorrt())
    backend = open_backend(args.cuda_backend)
    with open_engine(args.engine, trust=args.trust, backend=backend) as session:
        notes: list[str] = []
        feeds = _image(args.image, session, notes) if args.image else random_feeds(session.inputs)
        outputs = session.run(feeds)
        session.bind(feeds)
        samples = measure(session, args.seconds)
        whole = _whole_runs(session, feeds, min(args.seconds, 1.0))
        notes += session.notes
        times, version = summary(samples), {"tensorrt": machine.tensorrt, "cuda": machine.cuda, "driver": machine.driver}
        if times["cv"] > NOISY_CV:
            notes.append(f"noisy: the coefficient of variation is {times['cv']:.1%}; above {NOISY_CV:.1%}, fix the clocks")
        if args.layers is not None:
            info = session.layer_info()
            write_json(args.layers / f"layers_{args.engine.stem}.json", info)
            write_json(args.layers / f"profile_{args.engine.stem}.json", session.time_layers().to_json())
            notes.append(f"layers that are attention in one kernel: {sum(layer.fused for layer in engine_layers(info))}")
        report = {
            "format_version": FORMAT_VERSION,
            "engine": args.engine.name,
            "sha256": sha256(args.engine),
            "gpu": machine.gpu,
            "versions": {**version, **backend.versions()},
            "cuda_backend": backend.name,
            "inputs": [_described(spec) for spec in session.inputs],
            "outputs": [_described(spec) for spec in session.outputs],
            "times_ms": times,
            "with_transfers_ms": statistics.median(whole),
            "notes": notes,
            "samples_ms": [round(sample, 5) for sample in samples],
        }
    if args.outputs is not None:
        buffer = io.BytesIO()
        np.savez(buffer, **{spec.name: output for spec, output in zip(session.outputs, outputs, strict=True)})  # type: ignore[arg-type]
        write_bytes(args.outputs, buffer.getvalue())
    write_json(args.json or args.engine.with_name(args.engine.name + ".times.json"), report)
    _show(args.engine.name, machine.gpu, backend, report)


def measure(session: EngineSession, seconds: float) -> list[float]:
    """Warm up for 200 ms, then take samples of the bound inputs for `seconds`, ten at least; in milliseconds."""
    end = time.monotonic() + WARM_UP_S
    while time.monotonic() < end:
        session.step()
    samples: list[float] = []
    end = time.monotonic() + seconds
    while len(samples) < MIN_SAMPLES or time.monotonic() < end:
        samples.append(session.step())
    return samples


def _whole_runs(session: EngineSession, feeds: dict[str, np.ndarray], seconds: float) -> list[float]:
    """Time runs with their transfers from and to host memory, by the host's clock, in milliseconds."""
    times: list[float] = []
    end = time.monotonic() + seconds
    while len(times) < MIN_SAMPLES or time.monotonic() < end:
        start = time.perf_counter()
        session.run(feeds)
        times.append(1000 * (time.perf_counter() - start))
    return times


def summary(samples: Sequence[float]) -> dict[str, float]:
    """Return median, percentiles, minimum and mean in milliseconds, coefficient of variation, count, and frames per second."""
    values = np.asarray(samples)
    median, p90, p95, p99 = (float(value) for value in np.percentile(values, (50, 90, 95, 99)))
    mean = float(values.mean())
    numbers = {"median": median, "p90": p90, "p95": p95, "p99": p99, "min": float(values.min()), "mean": mean}
    return {**numbers, "cv": float(values.std()) / mean, "n": len(values), "fps": 1000 / median}


def _image(path: Path, session: EngineSession, notes: list[str]) -> dict[str, np.ndarray]:
    """Return the input made of a file: an array as it is, an image normalised as the model's metadata says."""
    spec = session.inputs[0]
    if len(session.inputs) != 1:
        raise InvalidInput(f"--image needs an engine with one input; this one has {[spec.name for spec in session.inputs]}")
    if not path.is_file():
        raise InvalidInput(f"no such file: {path}")
    if path.suffix == ".npy":
        array = np.load(path, allow_pickle=False)
        if array.shape != spec.shape:
            raise InvalidInput(f"{path.name} has the shape {array.shape}; input {spec.name!r} takes {spec.shape}")
        return {spec.name: array.astype(spec.dtype)}
    if len(spec.shape) != 4 or spec.shape[:2] != (1, 3):
        raise InvalidInput(f"--image needs an input (1, 3, H, W); {spec.name!r} takes {spec.shape} (write it as .npy)")
    size = spec.shape[2], spec.shape[3]
    pixels = _read_ppm(path, size) if path.suffix == ".ppm" else _read_with_pillow(path, size)
    mean, std = _normalisation(session.metadata, notes)
    values = (pixels.astype(np.float32) / 255 - mean) / std
    return {spec.name: np.ascontiguousarray(values.transpose(2, 0, 1)[None]).astype(spec.dtype)}


def _normalisation(metadata: dict[str, str], notes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    if "preprocessing" not in metadata:
        notes.append("no preprocessing is known (the ONNX file is not beside the engine, or says none): RGB in 0..1")
        return np.zeros(3, np.float32), np.ones(3, np.float32)
    try:
        value = json.loads(metadata["preprocessing"])
        mean, std = (np.asarray(value[key], np.float32).reshape(3) for key in ("mean", "std"))
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidInput(f"the model's preprocessing is not readable ({error}): {metadata['preprocessing'][:80]!r}") from None
    return mean, std


def _read_ppm(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Read a binary PPM (P6, 8 bits), which any tool writes, as (H, W, 3) uint8."""
    data = path.read_bytes()
    head = re.match(rb"P6\s+(\d+)\s+(\d+)\s+255\s", data)
    if head is None:
        raise InvalidInput(f"{path.name} is no PPM image with 8 bits per channel (P6) and without comments")
    width, height = int(head[1]), int(head[2])
    if (height, width) != size:
        raise InvalidInput(f"{path.name} is {height}x{width}; the engine takes {size[0]}x{size[1]}, and only Pillow resizes")
    pixels = np.frombuffer(data, np.uint8, offset=head.end())[: 3 * width * height]
    if pixels.size != 3 * width * height:
        raise CorruptFile(path, f"holds {pixels.size} of {3 * width * height} bytes of pixels")
    return pixels.reshape(height, width, 3)


def _read_with_pillow(path: Path, size: tuple[int, int]) -> np.ndarray:
    try:
        from PIL import Image
    except ImportError:
        advice = f"pip install pillow, or write it as .ppm (P6) of {size[0]}x{size[1]}"
        raise InvalidInput(f"{path.name} can be read with Pillow only, which is not installed: {advice}") from None
    from export.bundle.imaging import upright_rgb

    try:
        with Image.open(path) as image:
            return np.asarray(upright_rgb(image).resize((size[1], size[0]), Image.Resampling.BILINEAR))
    except InvalidInput as error:
        raise InvalidInput(f"{path.name}: {error}") from None
    except OSError as error:
        raise InvalidInput(f"{path.name} is no image that Pillow reads: {error}") from None


def _described(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "shape": list(spec.shape), "dtype": spec.dtype}


def _show(name: str, gpu: str, backend: DeviceBackend, report: dict[str, Any]) -> None:
    times = report["times_ms"]
    print(f"{name} on {gpu}, TensorRT {report['versions']['tensorrt']}, {backend.name}")
    print(f"median {times['median']:.3f} ms, p90 {times['p90']:.3f} ms, p99 {times['p99']:.3f} ms, {times['fps']:.1f} FPS", end="")
    print(f" (n = {times['n']}; with transfers {report['with_transfers_ms']:.3f} ms)")
    for note in report["notes"]:
        print(f"note: {note}")


if __name__ == "__main__":
    sys.exit(main())
