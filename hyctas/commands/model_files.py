"""Say what the files and folders that a user names are, which target runs them, and open them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from export.bench_models import BenchModel
from export.bundle.bundle_engine import ENGINE_NAME, bundle_of, engine_listed
from export.errors import InvalidInput
from export.pt2_package import OURS, compiled_facts
from export.target import TENSORRT, Target, format_size
from export.trt.cuda.guard import unavailable_reason
from export.trt.engine_file import read_manifest
from export.trt.onnx_metadata import onnx_metadata
from hyctas.commands.chosen_target import best_target

BUNDLE, RUN = "bundle", "run folder"
DEFAULT_MODEL = Path("models/balanced")
"""What a checkout comes with."""


def named_models(*given: Path | None) -> tuple[Path, ...]:
    """Return the models that were named, or the one that a checkout comes with.

    Raises:
        InvalidInput: neither.
    """
    named = tuple(path for path in given if path is not None)
    if not named and not DEFAULT_MODEL.is_dir():
        raise InvalidInput(
            f"no model is named, and no folder {DEFAULT_MODEL} is here: name an ONNX file, a bundle or a run folder with a trained "
            "network"
        )
    return named or (DEFAULT_MODEL,)


def kind_of(path: Path) -> str:
    """Return `.onnx`, `.pt2`, `.engine`, `bundle` or `run folder`.

    Raises:
        InvalidInput: nothing there, or nothing that can be timed.
    """
    if not path.exists():
        raise InvalidInput(f"no such file or folder: {path}")
    if path.is_dir():
        if (path / "manifest.json").exists():
            return BUNDLE
        if (path / "network.safetensors").exists():
            return RUN
        raise InvalidInput(f"{path} is no bundle (manifest.json) and no run with a trained network (network.safetensors)")
    if path.suffix.lower() not in (".onnx", ".pt2", ".engine"):
        raise InvalidInput(f"{path}: suffix {path.suffix!r} is unknown; give .onnx, .pt2 or .engine files, bundles, or run folders")
    return path.suffix.lower()


def choose_target(text: str | None, models: Sequence[tuple[Path, str]]) -> Target:
    """Return the target asked for, or the best available one that runs all models; bundles and runs run on any.

    That is TensorRT where a bundle has an engine, or an engine is to be timed, and int8 where one of the files is quantised.

    Raises:
        InvalidInput: no one target runs all of them, or the one asked for does not.
    """
    suffixes = (".onnx", ".pt2", ".engine")
    onnx, pt2, engine = (next((path for path, kind in models if kind == suffix), None) for suffix in suffixes)
    if engine and pt2:
        raise InvalidInput(f"{engine} runs on tensorrt, {pt2} on torch: no target runs both; time them in two commands")
    if engine:
        return _target_of_engine(text, engine)
    if onnx and pt2:
        raise InvalidInput(f"{onnx} runs on onnxruntime, {pt2} on torch: no target runs both; time them in two commands")
    facts = compiled_facts(pt2) if pt2 else None
    runtimes = ("onnxruntime-",) if onnx else ("onnxruntime-", "torch-") if not pt2 else ("torch-",)
    if facts is not None:
        return Target.parse(text or facts.get(f"{OURS}target", "aotinductor-cpu:fp32"))
    if text is not None:
        target = Target.parse(text)
        others = ("onnxruntime-", "torch-", "aotinductor-")
        if (onnx or pt2) and target.runtime.startswith(others) and not target.runtime.startswith(runtimes):
            raise InvalidInput(f"{target} does not run {onnx or pt2}; take {runtimes[0]}cpu:fp32, or a bundle (runs on both)")
        return target
    if onnx and any(onnx_metadata(path).get("precision") == "int8" for path, kind in models if kind == ".onnx"):
        return Target("onnxruntime-cpu", "int8")
    built = None if pt2 else _engine_of_bundles([path for path, kind in models if kind == BUNDLE])
    return best_target(runtimes) if built is None else _target_of_engine(None, built)


def _engine_of_bundles(folders: Sequence[Path]) -> Path | None:
    """Return the engine of the first bundle that has one, where TensorRT can be used."""
    engines = {path: read_manifest(path) for path in (folder / ENGINE_NAME for folder in folders) if bundle_of(path)}
    usable = {name: unavailable_reason(name) is None for name in {built.machine.runtime for built in engines.values() if built}}
    able = [path for path, built in engines.items() if built is not None and usable[built.machine.runtime]]
    return next((path for path in able if engine_listed(path.parent)), None)  # last, since it hashes whole engines


def _target_of_engine(text: str | None, engine: Path) -> Target:
    """Return the target asked for, or the one that an engine's manifest says it was built for."""
    manifest = read_manifest(engine)
    built = manifest.target if manifest is not None else "tensorrt:fp16"
    target = Target.parse(built if text is None else text)
    if target.runtime not in TENSORRT:
        raise InvalidInput(f"{target} does not run {engine}; take {built}, or time {engine.with_suffix('.onnx')}")
    return target


def names(paths: Sequence[Path]) -> list[str]:
    """Name models by their file names; by their paths where those are equal, numbered where these are equal as well."""
    short = [path.resolve().name for path in paths]
    full = [name if short.count(name) == 1 else str(path) for path, name in zip(paths, short, strict=True)]
    return [name if full.count(name) == 1 else f"{name} ({full[: i + 1].count(name)})" for i, name in enumerate(full)]


def bench_model(path: Path, kind: str, name: str, target: Target, size: tuple[int, int] | None) -> BenchModel:
    """Return what is opened of a file, bundle or run folder on a target; a run's network comes with its classes' colours.

    Raises:
        InvalidInput: made for another size, or for none that it says.
    """
    if kind != RUN and not (kind == BUNDLE and target.runtime.startswith(("torch-", "aotinductor-"))):
        return BenchModel(name, path=path, size=size)
    from hyctas.artifacts.bundling import load_trained  # torch, which other files are run without

    trained = load_trained(path)
    own = trained.size
    if kind == BUNDLE and size and own and size != own:
        raise InvalidInput(f"{path} is made for {format_size(own)}, asked for {format_size(size)}; leave --size out")
    if (size or own) is None:
        raise InvalidInput(f"{path} does not say for which image size; give --size HEIGHTxWIDTH")
    colours = np.array(trained.labels.colours, np.uint8)
    return BenchModel(name, module=trained.network, size=size or own, preprocessing=trained.preprocessing, colours=colours)
