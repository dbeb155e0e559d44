"""Answer questions of the paper about attention and cost, one table each.

    python -m benchmarks.ablations attention --network edge:hyctas-w50 --data FOLDER [--table FILE]
    python -m benchmarks.ablations retrained --data FOLDER
    python -m benchmarks.ablations ratios --data FOLDER --table FILE --limit ms=12
    python -m benchmarks.ablations placement --run RUN
    python -m benchmarks.ablations required --run RUN --limit ms=12
    python -m benchmarks.ablations cost --run RUN

`attention` trains a network beside itself with an attention cell moved, removed and, given a latency table, replaced by the
convolution of nearest time. `retrained` trains the answers of `benchmarks.search_against_random`, each side's, alike. Both train by
screening (1,500 steps of 12 crops of 192x256, two seeds): every finished training appends a line to a results file and is skipped
then, and the account is written anew. `ratios` trains supernets alike that draw numbers of branches at different ratios rho.
`placement` counts at which strides the networks of a search have attention; `required` searches among the networks with
attention alone, beside all; `cost` says what each step of a run took.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.ablations.branch_ratios import ratios
from benchmarks.ablations.cost import cost
from benchmarks.ablations.moved_attention import attention
from benchmarks.ablations.placement import placement
from benchmarks.ablations.required_attention import required
from benchmarks.ablations.retrained import retrained
from benchmarks.failures import one_sentence
from benchmarks.search_against_random import add_search_arguments
from export.files import write_text

RESULTS = Path(__file__).parents[1] / "results/cpu"
STEPS, CROP, SEEDS = 1500, "192x256", 2
ANSWERS = {
    "attention": attention, "retrained": retrained, "ratios": ratios, "placement": placement, "required": required, "cost": cost,
}  # fmt: skip
TRAIN, OF_A_RUN = ("attention", "retrained", "ratios"), ("placement", "cost")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.ablations", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    for name in ANSWERS:
        kind = kinds.add_parser(name)
        kind.add_argument("--results", type=Path, default=RESULTS, help="folder of the results file and the account")
        if name in OF_A_RUN:
            kind.add_argument("--run", required=True, help="run folder")
        if name == "required":
            add_search_arguments(kind, required=True)
            kind.add_argument("--work", type=Path, default=Path("runs/ablations/required"), help="folder of the histories")
        if name in TRAIN:
            kind.add_argument("--data", required=True, help="data set, as hyctas-train takes it")
            kind.add_argument("--runs", type=Path, default=Path("runs/ablations"), help="folder of the run folders")
            kind.add_argument("--seeds", type=int, default=SEEDS)
            kind.add_argument("--steps", type=int, default=STEPS)
            kind.add_argument("--crop", default=CROP)
        if name == "ratios":
            kind.add_argument("--table", type=Path, required=True, help="latency table of the space edge")
            kind.add_argument("--limit", required=True, help="ms=... or fps=..., that the supernets are trained for")
        if name == "attention":
            kind.add_argument("--network", type=Path, required=True, help="edge:NAME, published:NAME or a genotype's file")
            kind.add_argument("--table", type=Path, help="latency table with the network's operators")
    arguments = parser.parse_args()
    with one_sentence():
        text = ANSWERS[arguments.kind](arguments)
        write_text(arguments.results / f"ablation_{arguments.kind}.md", text)
        print(text)


if __name__ == "__main__":
    main()
