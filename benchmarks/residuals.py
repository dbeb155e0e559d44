"""Where do a latency table's errors come from? The measured networks of `benchmarks.fidelity`, by families of operators.

    python -m benchmarks.residuals --run RUN --space edge --networks 100 --seed 5 --out FILE

RUN, space, networks and seed are those of a finished `benchmarks.fidelity`; nothing is measured. Every family's sum gets a factor
of its own (non-negative least squares of the relative errors, beside a constant), with an interval over networks drawn again (the
bootstrap): a family whose interval leaves out 1 is predicted too fast or too slow. Cross-validation says what all factors together
explain: what they leave is noise of the measurements, or depends on where an operator stands.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from benchmarks.failures import one_sentence
from benchmarks.fidelity import FASTEST, drawn_networks
from export.bench_report import markdown_rows
from export.codec import decode, whole_lines
from export.errors import InvalidInput
from export.files import write_text
from export.ranges import Range, Seed, argument
from export.target import format_size
from hyctas.cost.calibrate import Conditions, NetworkJournal, closest
from hyctas.cost.workloads import family, units
from hyctas.plan import lower
from hyctas.spaces.space_file import load_space
from latency import LatencyTable
from latency.predictor import FOLDS

RESAMPLED, INTERVAL, BEYOND, SMALL = 500, (5, 95), 0.1, 0.005


@dataclass(frozen=True)
class Sums:
    """Networks as sums of rows."""

    families: list[str]
    ms: np.ndarray
    """(networks, families): each family's rows in milliseconds."""
    measured: np.ndarray
    """(networks,), in milliseconds."""

    def of(self, index: np.ndarray) -> Sums:
        """Return some of the networks."""
        return Sums(self.families, self.ms[index], self.measured[index])

    @property
    def total(self) -> Sums:
        """All families as one."""
        return Sums(["all"], self.ms.sum(axis=1, keepdims=True), self.measured)

    def fit(self) -> np.ndarray:
        """Return a constant (ms, of either sign) and a factor per family."""
        from scipy.optimize import nnls

        ones = np.ones((len(self.measured), 1))
        columns = np.concatenate([ones, -ones, self.ms], axis=1) / self.measured[:, None]
        up, down, *factors = nnls(columns, np.ones(len(self.measured)))[0]
        return np.array([up - down, *factors])

    def predict(self, found: np.ndarray) -> np.ndarray:
        """Return (networks,) milliseconds of what `fit` found."""
        return np.asarray(found[0] + self.ms @ found[1:])


def errors(sums: Sums) -> np.ndarray:
    """Return predicted / measured - 1 of every network by a fit that has not seen it (cross-validation)."""
    order = np.random.default_rng(0).permutation(len(sums.measured))
    found = np.empty(len(order))
    for held_out in np.array_split(order, FOLDS):
        part = sums.of(held_out)
        found[held_out] = part.predict(sums.of(np.setdiff1d(order, held_out)).fit()) / part.measured - 1
    return found


def read_sums(run: Path, space_name: str, count: int, seed: int) -> tuple[Sums, np.ndarray, Conditions]:
    """Read a judged table and its networks; return also how far two measurements of each are apart, (networks,).

    Raises:
        InvalidInput: it is not finished, or was made with other settings.
    """
    path, table, space = run / "networks.jsonl", LatencyTable.load(run / "latency.json"), load_space(space_name)
    if not path.exists():
        raise InvalidInput(f"there is no {path}; run python -m benchmarks.fidelity --run {run} first")
    conditions = decode(Conditions, whole_lines(path)[0][0][1])
    times = NetworkJournal(path, conditions).times
    networks = [g for part in drawn_networks(space, table, conditions.size, conditions.classes, count, seed) for g in part]
    if missing := [genotype.id for genotype in networks if len(times.get(genotype.id, ())) < 2]:
        raise InvalidInput(f"{len(missing)} of {len(networks)} networks are not in {path} twice (the first: {missing[0]}); give "
                           "--space, --networks and --seed as benchmarks.fidelity had them, and let it finish")  # fmt: skip
    rows = [defaultdict[str, float](float) for _ in networks]
    for row, genotype in zip(rows, networks, strict=True):
        for unit in units(lower(genotype, conditions.size, conditions.classes)):
            row[family(unit.key)] += table.rows[unit.key].median_ms
    names = sorted({name for row in rows for name in row})
    ms = np.array([[row[name] for name in names] for row in rows])
    large = ms.sum(axis=0) >= SMALL * ms.sum()
    ms = np.concatenate([ms[:, large], ms[:, ~large].sum(axis=1, keepdims=True)], axis=1)
    names = [*np.array(names)[large].tolist(), "all others"]
    pairs = np.array([closest(times[genotype.id]) for genotype in networks])
    return Sums(names, ms, pairs.mean(axis=1)), np.abs(pairs[:, 0] / pairs[:, 1] - 1), conditions


def report(sums: Sums, apart: np.ndarray, heading: str, command: str) -> str:
    """Return the account as Markdown."""
    rng, common, found = np.random.default_rng(0), sums.total.fit()[1], sums.fit()[1:]
    drawn = [sums.of(rng.integers(len(sums.measured), size=len(sums.measured))) for _ in range(RESAMPLED)]
    again = np.array([one.fit()[1:] / one.total.fit()[1] for one in drawn])  # (resampled, families)
    ends = np.percentile(again, INTERVAL, axis=0)
    fastest = np.argsort(sums.measured)[: len(sums.measured) // FASTEST]
    shares = [100 * part.sum(axis=0) / part.sum() for part in (sums.ms, sums.ms[fastest])]
    rows = [["family", "% of predicted time", "% in the fastest fifth", "factor / common scale", "interval of 90 %"]]
    for column in np.argsort(-shares[0]):
        low, high = ends[:, column]
        rows.append([sums.families[column], *(f"{share[column]:.1f}" for share in shares), f"{found[column] / common:.3f}",
                     f"{low:.3f} to {high:.3f}"])  # fmt: skip
    lines = [["errors by cross-validation", "MAPE", "beyond 10 %", "MAPE of the fastest fifth"]]
    for name, one in (("one scale", sums.total), ("a factor per family", sums)):
        off = np.abs(errors(one))
        lines.append([name, f"{off.mean():.1%}", str(int((off > BEYOND).sum())), f"{off[fastest].mean():.1%}"])
    lines.append(["measuring twice", f"{apart.mean():.1%}", str(int((apart > BEYOND).sum())), f"{apart[fastest].mean():.1%}"])
    return (
        f"# Where the errors of predicted latency come from\n\n{heading}\n\n" + markdown_rows(rows, 1) + "\n\n"
        + markdown_rows(lines, 1) + f"\n\n```\n{command}\n```\n"
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished benchmarks.fidelity")
    parser.add_argument("--space", default="edge")
    parser.add_argument("--networks", type=argument(Annotated[int, Range(5, 1000)]), default=30)
    parser.add_argument("--seed", type=argument(Seed), default=0)
    parser.add_argument("--out", type=Path, required=True, help="FILE.md")
    given = parser.parse_args(arguments)
    with one_sentence():
        sums, apart, conditions = read_sums(given.run, given.space, given.networks, given.seed)
        identity = conditions.identity
        heading = (
            f"{identity.target}, {identity.threads} threads, space {given.space} at {format_size(conditions.size)}, "
            f"{len(sums.measured)} networks; {identity.device['cpu']}, {identity.device['cores']} cores."
        )
        command = "python -m benchmarks.residuals " + " ".join(sys.argv[1:] if arguments is None else arguments)
        text = report(sums, apart, heading, command)
        write_text(given.out.with_suffix(".md"), text)
        print(text)


if __name__ == "__main__":
    main()
