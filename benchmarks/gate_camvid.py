"""Does a searched network beat what is built by hand, at equal latency and equal training? CamVid, val, five seeds.

    python -m benchmarks.gate_camvid --prepare --winner RUN --latency RUN/latency.json --limit ms=12
    python -m benchmarks.gate_camvid --data FOLDER
    python -m benchmarks.gate_camvid --table

`--prepare` finds the opponents and measures all contenders, their rounds alternating; nothing else should run. An opponent is a
hand-made family's widest member that meets the limit, if it takes nine tenths of it; else, from that member on, one width gene
after the other is raised as long as the limit is met. Families whose every member is above the limit are named. The trainings are
screenings (`benchmarks/screening.py`) of 3,000 steps of 12 crops of 240x320 on all of train, from the same source of weights,
with the same teachers (`--teacher`), one seed of all contenders before the next; val is looked at once per training, and every
look is a line of the results file. Finished trainings are skipped; a killed one continues where it last saved.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.failures import one_sentence
from benchmarks.screening import BASE_INIT, Case, noted, read_results, run
from benchmarks.search_against_random import paired
from export.bench_report import markdown_rows
from export.codec import decode_toml
from export.errors import Infeasible, InvalidInput
from export.files import read_json, write_json, write_text
from export.machine import fingerprint
from export.target import Target
from hyctas.arch.genotype import Genotype
from hyctas.artifacts.choice import chosen_genotype, read_genotype
from hyctas.cost.workloads import CostModel, only_calibrated_size
from hyctas.search.limits import Limits
from hyctas.space import edge
from hyctas.spaces.members import family, members
from hyctas.spaces.search_space import SearchSpace
from latency import LatencyTable

RESULTS = Path(__file__).parent / "results/cpu/gate_camvid.jsonl"
FORMAT_VERSION = 1
WINNER, CLASSES, SEEDS, ROUNDS, TRIES = "winner", 11, 5, 9, 4
NEAR, TOLERANCE = 0.9, 1.02
"""Share of the limit that an opponent should reach where its widths allow it, and share of it that opponents may reach: the limit
may be the measured time of one, and doubt is in their favour."""
MISPREDICTED = 1.2
"""Members predicted below so many times the limit are measured."""
WANTED = 1.0
"""Points of val by which the winner must beat the best opponent on average."""


@dataclass(frozen=True, kw_only=True)
class GateCase(Case):
    """The training of one contender."""

    genes: str
    """Its genotype's JSON."""

    def genotype(self) -> Genotype:
        """Return what is trained."""
        return Genotype.from_json(self.genes)

    @property
    def name(self) -> str:
        """Name of the run folder: contenders of several gates may have one name."""
        return f"{super().name}_{self.genotype().id}"

    def teacher_cases(self) -> list[Case]:
        """Return the hand-made networks that it follows, trained as it is itself."""
        alike: dict[str, Any] = {"steps": self.steps, "crop": self.crop, "all_of_train": self.all_of_train}
        return [Case(network=name, init=BASE_INIT, seed=seed, **alike) for name, seed in self.teachers]


def widest(genotype: Genotype, space: SearchSpace, fits: Callable[[Genotype], bool]) -> Genotype:
    """Raise one width gene after the other, again and again, as long as the network fits."""
    widths = [position for position, (name, _) in enumerate(space.genes) if name.endswith("width")]
    grown = True
    while grown:
        grown = False
        for position in widths:
            genes = space.encode(genotype)
            genes[position] += 1
            if genes[position] < space.cardinality[position]:
                wider = space.decode(genes)
                if wider.id != genotype.id and fits(wider):
                    genotype, grown = wider, True
    return genotype


def opponents(
    space: SearchSpace, predicted: Callable[[Genotype], float], measured: Callable[[Mapping[str, Genotype]], dict[str, float]],
    limit_ms: float,
) -> tuple[dict[str, Genotype], dict[str, str]]:  # fmt: skip
    """Find each hand-made family's opponent.

    Args:
        space: of the families.
        predicted: gives a network's predicted latency in ms.
        measured: measures networks, in ms by name.
        limit_ms: what they may take, up to `TOLERANCE`.

    Returns:
        The opponents by family, and why other families have none.
    """
    allowed_ms = TOLERANCE * limit_ms
    near = {name: genotype for name, genotype in members().items() if predicted(genotype) <= MISPREDICTED * allowed_ms}
    times = measured(near)
    found: dict[str, Genotype] = {}
    ascending = sorted(near, key=lambda name: times[name])
    left_out = {family(name): "no member is predicted near the limit" for name in members()}
    left_out |= {family(name): f"no member meets the limit; its fastest takes {times[name]:.2f} ms" for name in ascending[::-1]}
    fitting = {family(name): name for name in ascending if times[name] <= allowed_ms}
    bounds = {}
    for kind, name in fitting.items():
        found[kind] = near[name]
        left_out.pop(kind)
        if times[name] < NEAR * limit_ms:
            bounds[kind] = allowed_ms * predicted(near[name]) / times[name]
    for _ in range(TRIES):
        wider = {kind: widest(near[fitting[kind]], space, lambda g, ms=ms: predicted(g) <= ms) for kind, ms in bounds.items()}  # type: ignore[misc]
        times = measured(wider)
        found |= {kind: genotype for kind, genotype in wider.items() if times[kind] <= allowed_ms}
        bounds = {kind: ms * allowed_ms / times[kind] for kind, ms in bounds.items() if times[kind] > allowed_ms}
        if not bounds:
            break
    return found, left_out


def prepare(winner: Genotype, table: LatencyTable, limit_ms: float, path: Path) -> None:
    """Find the opponents, measure all contenders, and write them down.

    Raises:
        InvalidInput: the winner is a hand-made network, or one of the opponents.
        Infeasible: the winner is above the limit, or no hand-made network is below it.
    """
    from hyctas.cost.calibrate import measure_networks
    from hyctas.engine.table_attention import open_target

    if made := [name for name, genotype in members().items() if genotype.id == winner.id]:
        raise InvalidInput(f"the winner is edge:{made[0]}: the search found nothing better than what is built by hand")
    space = edge()
    size = only_calibrated_size(space, table)
    model, identity = CostModel(space, table, size, CLASSES), table.identity
    runtime = open_target(Target.parse(identity.target), identity.threads)

    def measured(some: Mapping[str, Genotype]) -> dict[str, float]:
        found = measure_networks(list(some.values()), runtime, size, CLASSES, rounds=ROUNDS)[0].tolist() if some else []
        return dict(zip(some, found, strict=True))

    found, left_out = opponents(space, lambda genotype: model.costs(genotype).latency_ms, measured, limit_ms)
    if same := [name for name, genotype in found.items() if genotype.id == winner.id]:
        raise InvalidInput(f"the winner is the widest form of {same[0]}: the search found nothing else")
    times = measured(contenders := {WINNER: winner, **found})
    for name, reason in left_out.items():
        print(f"left out: {name}: {reason}")
    if times[WINNER] > limit_ms or not found:
        raise Infeasible(f"measured on {identity.target}: {times}; nothing to compare within {limit_ms:g} ms")
    write_json(path, {
        "format_version": FORMAT_VERSION, "limit_ms": limit_ms, "target": identity.target, "threads": identity.threads,
        "size": size, "machine": fingerprint(), "left_out": left_out,
        "contenders": {n: {"genotype": json.loads(g.to_json()), "id": g.id, "ms": times[n]} for n, g in contenders.items()},
    })  # fmt: skip


def cases(found: dict[str, Any], init: str, settings: dict[str, Any], teachers: tuple[tuple[str, int], ...] = ()) -> list[GateCase]:
    """List the trainings of all contenders, seed by seed; a network without blocks of the source starts from random weights."""
    from hyctas.pretrained.start import NONE, default_source

    listed = []
    for seed in range(SEEDS):
        for name, contender in found["contenders"].items():
            genes = json.dumps(contender["genotype"])
            start = NONE if default_source(Genotype.from_json(genes)) == NONE else init
            listed.append(GateCase(
                network=name, init=start, seed=seed, steps=3000, crop="240x320", all_of_train=True, settings=settings, genes=genes,
                teachers=teachers,
            ))  # fmt: skip
    return listed


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepare", action="store_true", help="find and measure the contenders")
    parser.add_argument("--winner", type=Path, help="run folder of a search, or a genotype's file")
    parser.add_argument("--latency", type=Path, help="latency table of the space edge")
    parser.add_argument("--limit", help="ms=... or fps=...")
    parser.add_argument("--data", help="CamVid's folder, as hyctas-train takes it")
    parser.add_argument("--init", default=BASE_INIT, help="weights that all start from")
    parser.add_argument("--config", type=Path, help="TOML file with settings of the recipe, for all alike")
    parser.add_argument("--teacher", nargs="*", default=[], help="hand-made networks that all follow, each as edge:NAME:SEED")
    parser.add_argument("--runs", type=Path, default=Path("runs/gate_camvid"), help="folder of the run folders")
    parser.add_argument("--results", type=Path, default=RESULTS, help="results file; the contenders stand beside it, as .json")
    parser.add_argument("--table", action="store_true", help="write the results file's table beside it instead")
    arguments = parser.parse_args()
    with one_sentence():
        path = arguments.results.with_suffix(".json")
        if arguments.prepare:
            _prepare(arguments, path)
            return
        if not path.exists():
            raise InvalidInput(f"there is no {path}; run python -m benchmarks.gate_camvid --prepare first")
        found = read_json(path, FORMAT_VERSION)
        if arguments.table:
            write_text(arguments.results.with_suffix(".md"), table(found, read_results(arguments.results)))
            return
        if arguments.data is None:
            raise InvalidInput("give --data, or --prepare or --table")
        settings = decode_toml(dict[str, Any], arguments.config) if arguments.config else {}
        teachers = tuple((name, int(seed)) for name, _, seed in (text.rpartition(":") for text in arguments.teacher))
        for case in cases(found, arguments.init, settings, teachers):
            if not noted(case, arguments.results):
                run(case, arguments.data, arguments.runs, arguments.results)


def _prepare(arguments: argparse.Namespace, path: Path) -> None:
    if arguments.winner is None or arguments.latency is None or arguments.limit is None:
        raise InvalidInput("--prepare needs --winner, --latency and --limit")
    if looks := read_results(arguments.results):
        raise InvalidInput(f"{arguments.results} holds {len(looks)} looks at val, of the contenders in {path}; give another file")
    limit_ms = Limits.parse([arguments.limit]).latency_ms
    if limit_ms is None:
        raise InvalidInput(f"--limit {arguments.limit} is not one on latency; give ms=... or fps=...")
    winner = chosen_genotype(arguments.winner) if arguments.winner.is_dir() else read_genotype(arguments.winner)
    prepare(winner, LatencyTable.load(arguments.latency), limit_ms, path)


def table(found: dict[str, Any], lines: list[dict[str, Any]]) -> str:
    """Return the results as Markdown: every look at val, the mean differences, and whether the gate holds.

    Raises:
        InvalidInput: the looks are of several recipes.
    """
    recipes = {json.dumps([line["case"]["settings"], line["case"].get("teachers", [])], sort_keys=True) for line in lines}
    starts = {(line["case"]["network"], line["case"]["init"]) for line in lines}
    if len(recipes) > 1 or len(starts) > len({name for name, _ in starts}):
        raise InvalidInput("the looks at val are of several recipes or sources of weights; give each a results file of its own")
    looks: dict[str, dict[int, float]] = {name: {} for name in found["contenders"]}
    for line in lines:
        if line["case"]["network"] in looks and line["genotype"] == found["contenders"][line["case"]["network"]]["id"]:
            looks[line["case"]["network"]][line["case"]["seed"]] = 100 * line["miou"]
    rows = [["network", "ms", "share of the limit", "val mIoU %, by seed", "mean", "winner minus this", "one-sided 95 % bound"]]
    own, gains = looks[WINNER], {}
    for name, contender in found["contenders"].items():
        seeds, share = looks[name], contender["ms"] / found["limit_ms"]
        average = f"{sum(seeds.values()) / len(seeds):.2f}" if seeds else "-"
        gain, bound = "-", "-"
        if name != WINNER and (shared := sorted(own.keys() & seeds.keys())):
            gains[name] = paired([own[seed] - seeds[seed] for seed in shared], one_sided=True)
            gain, bound = (f"{value:+.2f}" for value in gains[name][:2])
        shown = ", ".join(f"{seeds[seed]:.1f}" for seed in sorted(seeds)) or "not trained"
        narrow = "" if share >= NEAR else " (no wider form fits)"
        first = f"{name} {contender['id']}", f"{contender['ms']:.2f}", f"{share:.2f}{narrow}"
        rows.append([*first, shown, average, gain, bound])
    verdict = "Not all trainings are done.\n"
    if gains and all(len(seeds) == SEEDS for seeds in looks.values()):
        best = max(gains, key=lambda name: sum(looks[name].values()))
        mean, low, _ = gains[best]
        holds = "holds" if mean >= WANTED and low > 0 else "is missed"
        verdict = (
            f"The best opponent is {best}: the winner's mean difference is {mean:+.2f} points (wanted: {WANTED:g} or more), its "
            f"one-sided paired bound of 95 % {low:+.2f} (wanted: above 0). The gate {holds}.\n"
        )
    return (
        f"# Gate: CamVid at {found['limit_ms']:.2f} ms\n\nPrinted by `python -m benchmarks.gate_camvid --table` from the trainings "
        f"of `python -m benchmarks.gate_camvid --data FOLDER`. {found['target']}, {found['threads']} threads, "
        f"{found['size'][0]}x{found['size'][1]}, {found['machine']['cpu']}. Every look at val is in this table; val chose "
        f"nothing.\n\n{markdown_rows(rows)}\n\n{verdict}"
        + "".join(f"\nNo opponent of the family {name}: {reason}.\n" for name, reason in found.get("left_out", {}).items())
    )


if __name__ == "__main__":
    main()
