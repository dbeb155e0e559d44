"""Measure how well the memory of networks is predicted, and fit the prediction to what a runtime takes.

    python -m benchmarks.memory_fidelity --target onnxruntime-cpu:fp32 --out benchmarks/results/cpu/memory_onnxruntime.json --fit

Random networks of `edge`, half at each size, are exported and measured as `hyctas-bench --memory` does. Errors are those of
predictions by fits that left the network out (5 folds); `--fit` writes the fit to all of them into `hyctas/cost/memory.json`.
Memory does not depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import nnls

from benchmarks.failures import one_sentence
from export import export_onnx
from export.bench_models import BenchModel
from export.bench_report import markdown_rows
from export.codec import plain
from export.files import write_json, write_text
from export.machine import hardware
from export.model_memory import measure_memory
from export.ranges import Seed, argument
from export.runtimes import open_runtime
from export.target import Target, format_size, parse_size
from hyctas.cli.show import bar, say
from hyctas.cost.memory import FITTED, FORMAT_VERSION, MemoryFit, fits, live_mib, weights_mib
from hyctas.cost.workloads import draw_networks
from hyctas.network import build
from hyctas.plan import lower
from hyctas.space import edge

FOLDS, CLASSES, PURPOSE = 5, 19, 71


@dataclass(frozen=True)
class Measured:
    """One network's memory, and what it is predicted from."""

    id: str
    size: str
    weights_mib: float
    live_mib: float
    measured_mib: float
    predicted_mib: float = 0.0
    """By a fit that left it out."""

    @property
    def features(self) -> tuple[float, float, float]:
        return 1.0, self.weights_mib, self.live_mib

    @property
    def error(self) -> float:
        """Error of the prediction, as a share."""
        return abs(self.predicted_mib / self.measured_mib - 1)


def fitted(networks: Sequence[Measured]) -> np.ndarray:
    """Return the coefficients, none below 0, with the least squares of relative errors."""
    measured = np.array([network.measured_mib for network in networks])
    coefficients, _ = nnls(np.array([network.features for network in networks]) / measured[:, None], np.ones(len(networks)))
    return np.asarray(coefficients)


def held_out(networks: Sequence[Measured]) -> list[Measured]:
    """Return the networks with predictions by fits that left them out."""
    found = []
    for index, network in enumerate(networks):
        others = [other for i, other in enumerate(networks) if i % FOLDS != index % FOLDS]
        predicted = float(np.array(network.features) @ fitted(others))
        found.append(Measured(**{**plain(network), "predicted_mib": predicted}))
    return found


def measure(target: Target, sizes: Sequence[tuple[int, int]], count: int, seed: int) -> list[Measured]:
    """Export and measure networks of `edge`, in turn at each size."""
    found = []
    with tempfile.TemporaryDirectory(prefix="hyctas-memory-") as folder, bar("measure memory") as shown:
        for index, genotype in enumerate(draw_networks(edge(), count, seed, PURPOSE)):
            size, path = sizes[index % len(sizes)], Path(folder) / "m.onnx"
            plan = lower(genotype, size, CLASSES)
            export_onnx(build(genotype, CLASSES).eval(), size, path, "native")
            memory = measure_memory(BenchModel("m", path), target, 1)
            found.append(Measured(genotype.id, format_size(size), weights_mib(plan), live_mib(plan), memory.peak_mib))
            shown.update((index + 1) / count, f"{memory.peak_mib:.0f} MiB")
    return found


def report(target: Target, networks: Sequence[Measured], fit: MemoryFit, command: str) -> str:
    """Write the result for people."""
    head = ["network", "size", "weights", "live activations", "measured", "predicted", "error"]
    rows = [
        [network.id, network.size, *(f"{mib:.1f}" for mib in (network.weights_mib, network.live_mib, network.measured_mib,
         network.predicted_mib)), f"{network.error:.1%}"]
        for network in sorted(networks, key=lambda network: network.measured_mib)
    ]  # fmt: skip
    return (
        f"# Memory on {target}, MiB\n\n    {command}\n\n"
        f"{', '.join(f'{name} {version}' for name, version in fit.versions.items())}, 1 thread; {len(networks)} random networks of "
        f"`edge`, {CLASSES} classes, native output. Each prediction is by a fit that left the network out: mean error "
        f"{fit.mape:.1%}, largest {fit.worst:.1%}. Fit to all: {fit.constant_mib:.1f} MiB + {fit.per_weight:.2f} x weights + "
        f"{fit.per_live:.2f} x live activations.\n\n{markdown_rows([head, *rows], left=2)}\n"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Measure how well the memory of networks is predicted.")
    parser.add_argument("--target", default="onnxruntime-cpu:fp32", help="where they run")
    parser.add_argument("--networks", type=int, default=24, help=f"how many, at least {2 * FOLDS}")
    parser.add_argument("--sizes", nargs="+", default=["360x480", "512x1024"], help="image sizes, HEIGHTxWIDTH, in turn")
    parser.add_argument("--seed", type=argument(Seed), default=0, help="of the draw")
    parser.add_argument("--fit", action="store_true", help=f"write the fit into {FITTED.name} of the package")
    parser.add_argument("--out", type=Path, required=True, help="result, FILE.json; FILE.md appears beside it")
    arguments = parser.parse_args(argv)
    if arguments.networks < 2 * FOLDS:
        parser.error(f"--networks {arguments.networks}: {FOLDS} folds need {2 * FOLDS}")
    target = Target.parse(arguments.target)
    runtime = open_runtime(target, 1)
    networks = held_out(measure(target, [parse_size(size) for size in arguments.sizes], arguments.networks, arguments.seed))
    errors = [network.error for network in networks]
    constant, per_weight, per_live = map(float, fitted(networks))
    fit = MemoryFit(constant, per_weight, per_live, len(networks), float(np.mean(errors)), max(errors), runtime.versions())
    command = f"python -m benchmarks.memory_fidelity --target {target} --networks {len(networks)} --seed {arguments.seed}"
    value: dict[str, Any] = {"target": str(target), "machine": hardware(), "fit": fit, "networks": networks, "command": command}
    write_json(arguments.out, {"format_version": FORMAT_VERSION, **plain(value)})
    write_text(arguments.out.with_suffix(".md"), report(target, networks, fit, command))
    say(f"mean error {fit.mape:.1%}, largest {fit.worst:.1%}; wrote {arguments.out} and {arguments.out.with_suffix('.md')}")
    if arguments.fit:
        write_json(FITTED, {"format_version": FORMAT_VERSION, "fits": plain({**fits(), target.runtime: fit})})
        say(f"wrote {FITTED}")


if __name__ == "__main__":
    with one_sentence():
        main()
