"""Train many networks briefly and alike, and note what each reaches: what decides about operators, weights and recipes.

    python -m benchmarks.screening --data FOLDER --plan widths operators --runs runs/screening
    python -m benchmarks.screening --time
    python -m benchmarks.screening --table

A screening is 1,500 steps of 12 crops of 192x256, counted in steps so that a busy machine changes nothing, on one thread: two
that wait for each other are slow beside anything else. Everything is chosen by the choosing split; val is noted only for cases
that train on all of train, and for the finals: what is left at the end, trained for 3,000 steps of 12 crops of 240x320. Each
finished case appends a line to the results file, and cases that stand there are skipped; a killed one continues where it last
saved. `python -m benchmarks.recipe_report` writes the account of families and finals.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.failures import one_sentence
from export.errors import CheckFailed, InvalidInput
from export.files import read_json, write_text
from export.ranges import Seed, argument
from export.runtime import Runtime
from hyctas.arch.genotype import LINEAR, Cell, Genotype, normal_form
from hyctas.artifacts.choice import HANDMADE
from hyctas.artifacts.runs import FORMAT_VERSION
from hyctas.presets import read_preset
from hyctas.pretrained.start import default_source
from hyctas.space import edge
from hyctas.spaces.members import member
from hyctas.spaces.stages import AttentionVariant

RESULTS = Path(__file__).parent / "results/cpu/screening.jsonl"
BASE, BASE_INIT = "edge:lite0-16", "efficientnet-lite0"
TARGET, SIZE, CLASSES = "onnxruntime-cpu:fp32", (360, 480), 11
RECIPES = {
    1: "crops hardly ever showed the edges of frames, class weights biased decisions, and in brief trainings inverted residuals "
    "learnt at a rate of 0.001 (commit c15c683)",
    2: "crops show the edges of frames, half of what class weights do to decisions is taken back, and the other branches of "
    "re-parameterised convolutions start at scale 0",
}  # fmt: skip
RECIPE = 2
"""What this code trains."""
FINAL_STEPS, FINAL_CROP, FINAL_PRESET = 3000, "240x320", "standard"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One training."""

    network: str
    """edge:NAME; after a "+" an operator that is added at the end of its trunk (`ADDED`), or after spaces genes in which it
    differs, as in "edge:lite0-16 head.kind=light decoder.width=2"."""
    init: str
    seed: int
    steps: int = 1500
    crop: str = "192x256"
    all_of_train: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    """Of the recipe, besides 100 steps of warm-up."""
    recipe: int = RECIPE
    """What the code of the time made of equal settings (`RECIPES`)."""
    teachers: tuple[tuple[str, int], ...] = ()
    """Network and seed of each case that it follows: cases alike in steps and crops, without settings, from the usual weights."""

    def to_json(self) -> dict[str, Any]:
        """Return what stands in the results file: `teachers` where there are any, `recipe` from the second one on."""
        found = asdict(self)
        return {name: value for name, value in found.items() if (name, value) not in (("teachers", ()), ("recipe", 1))}

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> Case:
        """Return the case of a line of the results file."""
        return cls(**{"recipe": 1, **line["case"]})

    @property
    def key(self) -> str:
        """Canonical JSON of it."""
        return json.dumps(self.to_json(), sort_keys=True)

    @property
    def splits(self) -> tuple[str, ...]:
        """What it is scored on, first what counts: val alone where it trains on all of train, beside the other in the finals."""
        return ("val",) if self.all_of_train else ("choose", "val") if self.steps == FINAL_STEPS else ("choose",)

    @property
    def name(self) -> str:
        """Name of the run folder."""
        parts = [self.network.removeprefix(HANDMADE), self.init, *(f"{name}={value}" for name, value in self.settings.items())]
        parts += [f"from-{name.removeprefix(HANDMADE)}-{seed}" for name, seed in self.teachers]
        parts += [f"recipe{self.recipe}"] * (self.recipe > 1)
        text = "_".join([*parts, str(self.steps), self.crop, *["all"] * self.all_of_train, f"seed{self.seed}"])
        return "".join(c if c.isalnum() or c in "-_=.+" else "-" for c in text)

    def genotype(self) -> Genotype:
        """Return what is trained."""
        name, *changes = self.network.removeprefix(HANDMADE).split()
        name, _, added = name.partition("+")
        return with_cell(member(name), added) if added else with_genes(member(name), changes)

    def teacher_cases(self) -> list[Case]:
        """Return the cases that it follows."""
        plain = replace(self, settings={}, teachers=())
        return [
            replace(plain, network=name, init=default_source(member(name.removeprefix(HANDMADE))), seed=seed)
            for name, seed in self.teachers
        ]


ATTENTION = {
    "attention": AttentionVariant(heads=2, qk_divisor=1), "attention-pool2": AttentionVariant(heads=2, qk_divisor=1, pool=2),
    "attention-thin": AttentionVariant(heads=2, qk_divisor=4), "attention-half": AttentionVariant(heads=1, half_resolution=True),
}  # fmt: skip
ADDED = ("conv", "residual", "inverted", "downup", "downup2x", "context", *ATTENTION)


def with_genes(genotype: Genotype, changes: Sequence[str]) -> Genotype:
    """Return a network of `edge` with some of its choices changed (`GENE=CHOICE`, without spaces).

    Raises:
        KeyError, ValueError: there is no such gene, or no such choice.
    """
    space = edge()
    genes = space.encode(genotype)
    for name, _, value in (change.partition("=") for change in changes):
        genes[space.index[name]] = [str(choice).replace(" ", "") for choice in space.choices[name]].index(value)
    return space.decode(genes)


def with_cell(genotype: Genotype, op: str) -> Genotype:
    """Return a network with one branch, with one more cell at the end of its trunk."""
    (branch,) = genotype.branches
    last = branch[-1]
    if op in ATTENTION:
        cell = Cell("attention", last.out, 1, ATTENTION[op].at(last.out), stage=last.stage)
    elif op == "inverted":
        cell = Cell(op, last.out, stage=last.stage, kernel=last.kernel, expansion=last.expansion, relu6=last.relu6)
    else:
        cell = Cell(op, last.out, stage=last.stage, linear=op in LINEAR)
    return normal_form(replace(genotype, branches=((*branch, cell),)))


def _seeds(count: int, **case: Any) -> Iterator[Case]:
    for seed in range(count):
        yield Case(seed=seed, **case)


def _gate() -> Iterator[Case]:
    """`lite0-16` in our own code on all of train: val >= 65."""
    yield Case(network="edge:lite0-16", init="efficientnet-lite0", seed=0, all_of_train=True)


def _widths() -> Iterator[Case]:
    """Random against trained weights, at three widths and whole."""
    for name in ("lite0-16", "lite0-16-w50", "lite0-16-w75", "lite0"):
        for init in ("efficientnet-lite0", "none"):
            yield from _seeds(2, network=f"edge:{name}", init=init)


def _operators() -> Iterator[Case]:
    """Each operator as one more cell at the end of `lite0-16`."""
    for op in ADDED:
        yield from _seeds(2, network=f"edge:lite0-16+{op}", init="efficientnet-lite0")


def _rates() -> Iterator[Case]:
    """Slower learning of what was trained before, and other rates for all."""
    for settings in ({"trunk_rate": 0.3}, {"trunk_rate": 0.1}, {"learning_rate": 1e-3}, {"learning_rate": 4e-3}):
        yield from _seeds(2, network="edge:lite0-16", init="efficientnet-lite0", settings=settings)


def _recipe() -> Iterator[Case]:
    """One factor of the recipe at a time."""
    factors: tuple[dict[str, Any], ...] = (
        {"ema": 0.99}, {"auxiliary": 0.2}, {"reparameterise": True}, {"colour": 0.3}, {"loss": "ohem"}, {"class_weights": False},
        {"schedule": "cosine"},
    )  # fmt: skip
    for settings in factors:
        yield from _seeds(2, network="edge:lite0-16", init="efficientnet-lite0", settings=settings)


def _crops() -> Iterator[Case]:
    """Larger crops, and as many fewer steps of them."""
    for crop, steps in (("240x320", 960), ("360x480", 427)):
        yield from _seeds(2, network="edge:lite0-16", init="efficientnet-lite0", steps=steps, crop=crop)


def _teachers() -> Iterator[Case]:
    """Distillation: from a network with trained weights to one without, from the widest of a family, from an ensemble."""
    yield from _seeds(2, network="edge:plain", init="none", teachers=(("edge:lite0-16", 0),))
    for teachers in ((("edge:lite0", 0),), (("edge:lite0-16", 0), ("edge:lite0-16", 1))):
        yield from _seeds(2, network="edge:lite0-16", init="efficientnet-lite0", teachers=teachers)


def _families() -> Iterator[Case]:
    """Every hand-made family, from random weights."""
    for name in ("plain", "plain-w75", "two-branch-w50", "hyctas-w50", "lite0-16-attention", "lite0-16-branch", "resnet-w50"):
        init = "efficientnet-lite0" if name.startswith("lite0") else "none"
        yield from _seeds(2, network=f"edge:{name}", init=init)
    yield from _seeds(2, network="edge:plain", init="none", settings={"reparameterise": True})


def _shapes() -> Iterator[Case]:
    """`lite0-16` with other parts at about its latency, or at 0.6 of it with the trunk's full widths."""
    short = " ".join(f"{cell}.op=skip" for cell in ("stem.4.1", "b16.8.1", "b16.16a.2", "b16.16b.2"))
    shorter = " ".join(f"{cell}.op=skip" for cell in ("b16.16a.1", "b16.16b.1"))
    for changes in (
        f"head.kind=light {short}", f"{short} {shorter}", "decoder.width=2 b16.16b.3.op=inverted", "head.kind=light",
        f"head.kind=head2 {short}", f"decoder=concat head.kind=head2 {short}", "head.kind=head1 stem.4.1.op=skip",
        f"decoder=concat decoder.width=4 head.kind=light {short}",
    ):  # fmt: skip
        yield from _seeds(2, network=f"edge:lite0-16 {changes}", init="efficientnet-lite0")


def _finals() -> Iterator[Case]:
    """The best together, three seeds: `lite0-16` from trained and random weights, the yardstick now and as it was before."""
    best = {name: value for name, value in read_preset(FINAL_PRESET).items() if name not in ("minutes", "crop")}
    for network, init, settings, recipe in (
        (BASE, BASE_INIT, best, RECIPE), (BASE, "none", best, RECIPE),
        ("edge:plain", "none", {**best, "reparameterise": True}, RECIPE), ("edge:plain", "none", {}, 1),
    ):  # fmt: skip
        yield from _seeds(3, network=network, init=init, steps=FINAL_STEPS, crop=FINAL_CROP, settings=settings, recipe=recipe)


PLANS = {
    "gate": _gate, "widths": _widths, "operators": _operators, "rates": _rates, "recipe": _recipe, "crops": _crops,
    "teachers": _teachers, "families": _families, "shapes": _shapes,
    "finals": _finals,
}  # fmt: skip


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="data set, as hyctas-train takes it")
    parser.add_argument("--plan", nargs="*", choices=PLANS, default=list(PLANS), help="what to train, in this order")
    parser.add_argument("--seeds", nargs="*", type=argument(Seed), help="train these seeds only (default: all of the plan)")
    parser.add_argument("--runs", type=Path, default=Path("runs/screening"), help="folder of the run folders")
    parser.add_argument("--results", type=Path, default=RESULTS, help="results file")
    parser.add_argument("--time", action="store_true", help="time the networks of the results file instead")
    parser.add_argument("--table", action="store_true", help="write the results file's table beside it instead")
    arguments = parser.parse_args()
    with one_sentence():
        lines, latency = read_results(arguments.results), arguments.results.with_name("screening_latency.json")
        if arguments.time:
            measure(lines, latency)
            return
        if arguments.table:
            timed = read_json(latency, 1) if latency.exists() else {"ms": {}}
            write_text(arguments.results.with_suffix(".md"), table(lines, timed["ms"], timed.get("yardstick_by_plain")))
            return
        for plan in arguments.plan:
            for case in PLANS[plan]():
                if arguments.seeds is not None and case.seed not in arguments.seeds:
                    continue
                if not noted(case, arguments.results):
                    run(case, arguments.data, arguments.runs, arguments.results)


def noted(case: Case, results: Path) -> bool:
    """Say whether a case stands in a results file."""
    return case.key in {json.dumps(line["case"], sort_keys=True) for line in read_results(results)}


def read_results(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a results file; none where there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def append(results: Path, line: dict[str, Any]) -> None:
    """Append a line to a results file."""
    with results.open("a") as file:
        file.write(json.dumps(line) + "\n")


def run(case: Case, data: str, runs: Path, results: Path) -> None:
    """Train a case with the command that users have, its teachers first, and append what it reached, once.

    Raises:
        InvalidInput: the case is of an earlier recipe.
        CheckFailed: the command failed.
    """
    if case.recipe != RECIPE:
        raise InvalidInput(f"{case.name} is of recipe {case.recipe}, which earlier code trains: {RECIPES[case.recipe]}")
    teachers = case.teacher_cases()
    for teacher in teachers:
        if not (runs / teacher.name / "scores.json").exists():
            run(teacher, data, runs, results)
    genotype = case.genotype()
    arguments = [
        "--init", case.init, "--data", data, "--steps", str(case.steps), "--crop", case.crop, "--seed", str(case.seed),
        *["--all-of-train"] * case.all_of_train,
        *(["--teacher", *(str(runs / teacher.name) for teacher in teachers)] if teachers else []),
    ]  # fmt: skip
    scores, record = train(genotype, runs / case.name, case.settings, arguments)
    split, *others = case.splits
    line = {
        "case": case.to_json(), "genotype": genotype.id, "split": split, "miou": scores[split]["miou"], "iou": scores[split]["iou"],
        **{other: {"miou": scores[other]["miou"], "iou": scores[other]["iou"]} for other in others},
        "classes": record["config"]["data"]["classes"],
        "spent_s": record["results"]["spent_s"], "cpu": record["machine"]["cpu"], "versions": record["versions"],
    }  # fmt: skip
    if not noted(case, results):
        append(results, line)


def train(
    genotype: Genotype, folder: Path, settings: Mapping[str, Any], arguments: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any]]:  # fmt: skip
    """Train a network with the command that users have; return its scores and its run's record.

    Args:
        genotype: what is trained.
        folder: the run folder.
        settings: of the recipe, besides one thread and 100 steps of warm-up.
        arguments: of the command, besides network, run folder and settings.

    Raises:
        CheckFailed: the command failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    network = folder / "network.json"
    write_text(network, genotype.to_json())
    run_training("network", folder, {"threads": 1, "warmup_steps": 100, **settings}, ["--network", str(network), *arguments])
    return read_json(folder / "scores.json", 1), read_json(folder / "train-network.json", FORMAT_VERSION)


def run_training(kind: str, folder: Path, settings: Mapping[str, Any], arguments: Sequence[str]) -> None:
    """Run `hyctas-train network` or `hyctas-train supernet` in a run folder, with a recipe of these settings.

    Raises:
        CheckFailed: the command failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "recipe.toml"
    write_text(config, "".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items()))
    command = [
        str(Path(sys.executable).with_name("hyctas-train")), kind, "--run", str(folder), "--config", str(config), *arguments,
    ]  # fmt: skip
    print(f"== {folder.name}", flush=True)
    if subprocess.run(command, check=False).returncode:
        raise CheckFailed(f"{' '.join(command)} failed")


def measure(lines: list[dict[str, Any]], path: Path) -> None:
    """Time every network of the results on ONNX Runtime, 1 and 2 threads, their rounds alternating; nothing else should run."""
    from export.files import write_json
    from export.machine import fingerprint
    from export.target import Target
    from hyctas.cost.calibrate import measure_networks
    from hyctas.engine.table_attention import open_target

    genotypes = {line["case"]["network"]: Case.of(line).genotype() for line in lines}
    found: dict[str, dict[str, float]] = {name: {} for name in genotypes}
    ratios = {}
    for threads in (1, 2):
        runtime = open_target(Target.parse(TARGET), threads)
        times = measure_networks(list(genotypes.values()), runtime, SIZE, CLASSES, rounds=9)[0]
        for name, ms in zip(genotypes, times.tolist(), strict=True):
            found[name][str(threads)] = ms
        ratios[str(threads)] = yardstick_ratio(runtime)
    write_json(path, {
        "format_version": 1, "target": TARGET, "size": SIZE, "machine": fingerprint(), "ms": found, "yardstick_by_plain": ratios,
    })  # fmt: skip


def yardstick_ratio(runtime: Runtime, rounds: int = 15) -> float:
    """Return what the yardstick as it is written takes, by what its encoding `edge:plain` takes: the median of alternate rounds."""
    import torch
    from torch import nn

    from benchmarks.yardstick import Yardstick
    from hyctas.cost.calibrate import NETWORK_PROTOCOL
    from hyctas.cost.workloads import native_modules
    from latency.measure import measure as measure_session

    class NativeYardstick(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = Yardstick(CLASSES)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.network.forward_native(image)

    (encoded,) = native_modules([member("plain")], SIZE, CLASSES)
    sessions = runtime.load_modules([encoded, (NativeYardstick().eval(), encoded[1])])
    for session in sessions:
        session.bind({spec.name: np.zeros(spec.shape, np.float32) for spec in session.inputs})
    ratios = []
    for _ in range(rounds):
        plain, yardstick = (measure_session(session, NETWORK_PROTOCOL).median_ms for session in sessions)
        ratios.append(yardstick / plain)
    for session in sessions:
        session.close()
    return statistics.median(ratios)


def table(lines: list[dict[str, Any]], times: dict[str, dict[str, float]], ratios: Mapping[str, float] | None = None) -> str:
    """Return the results as Markdown: a line per case, with seeds, mean, difference to the same seeds of the base, latency."""
    cases: dict[str, dict[int, float]] = {}
    for line in lines:
        case = {"recipe": 1, **line["case"]}
        seed = case.pop("seed")
        cases.setdefault(json.dumps({**case, "split": line["split"]}, sort_keys=True), {})[seed] = 100 * line["miou"]
    rows = [
        "| network | start | settings | recipe | steps, crop | split | mIoU %, by seed | mean | against `lite0-16` "
        "| ms (1 / 2 threads) |",
        "|---|---|---|---:|---|---|---|---:|---:|---:|",
    ]
    for text, found in cases.items():
        case = json.loads(text)
        alike = {name: value for name, value in case.items() if name != "teachers"}
        brief = {"steps": Case.steps, "crop": Case.crop} if case["steps"] < FINAL_STEPS else {}
        base = cases.get(json.dumps(alike | {"network": BASE, "init": BASE_INIT, "settings": {}, **brief}, sort_keys=True), {})
        shared = [found[seed] - base[seed] for seed in found if seed in base]
        gain = f"{sum(shared) / len(shared):+.1f}" if shared and found is not base else "-"
        settings = [f"{name} = {value}" for name, value in case["settings"].items()]
        settings += [f"follows {network} (seed {seed})" for network, seed in case.get("teachers", ())]
        seeds = ", ".join(f"{found[seed]:.1f}" for seed in sorted(found))
        ms = " / ".join(f"{value:.2f}" for value in times.get(case["network"], {}).values()) or "not timed"
        rows.append(
            f"| {case['network']} | {case['init']} | {', '.join(settings) or '-'} "
            f"| {case['recipe']} | {case['steps']}, {case['crop']} | {case['split']} | {seeds} "
            f"| {sum(found.values()) / len(found):.1f} | {gain} | {ms} |"
        )
    cpus = sorted({line["cpu"] for line in lines})
    return (
        "# Screening\n\nPrinted by `python -m benchmarks.screening --table` from `screening.jsonl`, which "
        "`python -m benchmarks.screening --data FOLDER` wrote: brief, equal trainings on CamVid (see `benchmarks/screening.py`). "
        f"Machine: {', '.join(cpus)}. Latency by `python -m benchmarks.screening --time` ({TARGET}, "
        f"{SIZE[0]}x{SIZE[1]}, native output), where it says so. Recipes of equal settings: "
        + "; ".join(f"{number}, {text}" for number, text in RECIPES.items()) + ".\n\n"
        + "\n".join(rows) + "\n" + _yardstick_text(ratios)
    )


def _yardstick_text(ratios: Mapping[str, float] | None) -> str:
    """Say how near the yardstick's encoding comes to its latency."""
    if ratios is None:
        return ""
    by_threads = ", ".join(f"{ratio:.3f} ({threads})" for threads, ratio in ratios.items())
    said = "as it is written, against `edge:plain`, its encoding (1 / 2 threads)"
    return f"\n`benchmarks/yardstick.py` {said}: {by_threads} times.\n"


if __name__ == "__main__":
    main()
