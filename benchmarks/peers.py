"""Time any ONNX files beside models of ours, interleaved, and write a report that one can send around.

    python -m benchmarks.peers FOLDER --ours models --size 512x1024 --out benchmarks/results/cpu/peers.json

Every `*.onnx` in FOLDER is a peer. Ours are a bundle, an ONNX file, or a folder of bundles; all others are compared with the first.
A file that does not run is named in the report with the reason, and left out. `--memory` also measures the memory that each takes,
in a process of its own.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from benchmarks.failures import one_sentence
from export.bench_models import BenchModel, open_models
from export.bench_timing import bench, named
from export.bundle.manifest import NAME
from export.errors import HyctasError, InvalidInput
from export.prediction.segment import frame
from export.ranges import Range, Threads, argument
from export.runtime import Runtime
from export.runtimes import open_runtime
from export.target import Target, parse_size
from hyctas.cli.advice import explain
from hyctas.cli.show import bar, say
from hyctas.commands.bench_memory import measure_memories, with_memories
from hyctas.commands.timing_report import check_out, publish
from latency.lock import measuring

Seconds = Annotated[float, Range(above=0, at_most=3600)]


def models_in(path: Path) -> list[Path]:
    """Return a bundle or ONNX file itself, or the bundles and ONNX files in a folder, by name.

    Raises:
        InvalidInput: there are none.
    """
    if not path.exists():
        raise InvalidInput(f"no such file or folder: {path}")
    if path.is_file() or (path / NAME).is_file():
        return [path]
    found = sorted(entry for entry in path.iterdir() if entry.suffix.lower() == ".onnx" or (entry / NAME).is_file())
    if not found:
        raise InvalidInput(f"{path} holds neither ONNX files (*.onnx) nor bundles ({NAME})")
    return found


def models_of(ours: Sequence[Path], peers: Sequence[Path], size: tuple[int, int] | None) -> list[BenchModel]:
    """Return all models, ours first; equal file names are told apart by their folders."""
    paths = [*(path for one in ours for path in models_in(one)), *(path for one in peers for path in models_in(one))]
    names = [path.name for path in paths]
    shown = [name if names.count(name) == 1 else str(path) for name, path in zip(names, paths, strict=True)]
    return [
        BenchModel(name, path=path, size=None if path.is_dir() else size) for name, path in zip(shown, paths, strict=True)
    ]


def runnable(models: Sequence[BenchModel], runtime: Runtime, mode: str) -> tuple[list[BenchModel], list[str]]:
    """Return the models that open and run, and a sentence about each other one."""
    able, why = [], []
    for model in models:
        try:
            with tempfile.TemporaryDirectory(prefix="hyctas-peers-") as folder:
                with open_models([model], runtime, Path(folder))[0] as opened, named(opened):
                    frame(opened, mode)()
            able.append(model)
        except HyctasError as error:
            why.append(f"{model.name} is left out: {explain(error)}")
    return able, why


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Time ONNX files beside models of ours, interleaved.")
    parser.add_argument("folder", type=Path, nargs="+", help="folder of ONNX files, or one of them")
    parser.add_argument("--ours", type=Path, nargs="+", default=[Path("models")], help="bundles, or folders of them")
    parser.add_argument("--target", default="onnxruntime-cpu:fp32", help="where all of them run")
    parser.add_argument("--threads", type=argument(Threads), default=1, help="threads on a CPU target")
    parser.add_argument("--seconds", type=argument(Seconds), default=10.0, help="measured time per model")
    parser.add_argument("--mode", choices=("model", "labels", "end-to-end"), default="model", help="as hyctas-bench --mode")
    parser.add_argument("--size", type=parse_size, help="HEIGHTxWIDTH, for files with a dynamic one")
    parser.add_argument("--memory", action="store_true", help="measure the memory that each takes, too")
    parser.add_argument("--out", type=Path, default=Path("peers.json"), help="report; FILE.md and FILE.html appear beside it")
    arguments = parser.parse_args(argv)
    check_out(arguments.out)
    target = Target.parse(arguments.target)
    runtime = open_runtime(target, arguments.threads)
    ours = [path for one in arguments.ours for path in models_in(one)]
    models, left_out = runnable(models_of(arguments.ours, arguments.folder, arguments.size), runtime, arguments.mode)
    for sentence in left_out:
        say(sentence)
    if len(models) < 2 or models[0].path not in ours:
        raise InvalidInput("a comparison needs one model of ours and one other that run")
    with measuring(say), bar("time models") as shown:
        memories = measure_memories(models, target, arguments.threads) if arguments.memory else {}
        report = bench(
            models, target, arguments.threads, seconds=arguments.seconds, mode=arguments.mode, runtime=runtime,
            progress=lambda done, total: shown.update(done / total),
        )  # fmt: skip
    complete = replace(report, warnings=(*report.warnings, *left_out))
    publish(with_memories(complete, memories), arguments.out, None)


if __name__ == "__main__":
    with one_sentence():
        main()
