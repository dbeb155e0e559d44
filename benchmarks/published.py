"""Print what the released networks cost, part by part, and draw them.

    python -m benchmarks.published --out docs

writes docs/published_numbers.md and docs/published_S.svg, _M.svg, _L.svg. Nothing is measured: all of it follows from the
genotypes, so the files are the same on every machine, and a test compares them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.failures import one_sentence
from export.bench_report import markdown_rows
from export.files import write_text
from hyctas import published
from hyctas.plan import Node, Plan, lower
from hyctas.report.diagram import diagram_svg

SIZE = (1024, 2048)
CLASSES = 19
PARTS = {
    "stem": ("stem",), "trunk": ("trunk",), "decoder": ("arm", "refine", "fusion"), "unused": ("auxiliary",), "head": ("head",),
}  # fmt: skip


def module_set(plan: Plan) -> list[Node]:
    """List what the released code holds, of a plan with auxiliary heads: those heads left out, their fusions not."""
    return [node for node in plan.nodes if not node.part.startswith("aux") or node.operator.label == "fusion"]


def cost(nodes: Sequence[Node]) -> tuple[int, int]:
    """Return parameters and MACs."""
    return sum(node.operator.parameters for node in nodes), sum(node.macs for node in nodes)


def released(name: str, base: int = 16, head: int = 1, *, panoptic: bool = False) -> tuple[int, int]:
    """Return parameters and MACs of a network's released module set."""
    return cost(module_set(lower(published.genotype(name, base, head, panoptic=panoptic), SIZE, CLASSES, auxiliary=True)))


def numbers() -> str:
    """Write the whole page."""
    totals, parts, variants = [], [], []
    for name in published.NAMES:
        plan = lower(published.genotype(name), SIZE, CLASSES, auxiliary=True)
        nodes = module_set(plan)
        everything, built, training = cost(nodes), cost(plan.needed()), cost(plan.nodes)
        half = module_set(lower(published.genotype(name), (512, 1024), CLASSES, auxiliary=True))
        totals.append(
            [name, *(f"{count[0]:,}" for count in (everything, built, training)),
             *(f"{count[1] / 1e9:.1f}" for count in (everything, built, cost(half)))]
        )  # fmt: skip
        core = sum(node.operator.core_macs(*node.input_shapes[0][1:]) for node in nodes)
        shares = [cost([node for node in nodes if node.part in part])[1] / 1e9 for part in PARTS.values()]
        percent = 100 * shares[1] * 1e9 / everything[1]
        parts.append([name, *(f"{share:.1f}" for share in shares), f"{percent:.0f} %",
                      f"{core / 1e9:.1f} ({100 * core / everything[1]:.0f} %)"])  # fmt: skip
        kinds = [released(name, head=0), released(name, head=2), released(name, panoptic=True)]
        kinds += [released(name, base) for base in (6, 8, 12, 20)]
        variants.append([name, *(f"{count / 1e6:.2f} M, {macs / 1e9:.1f} G" for count, macs in kinds)])
    return "\n\n".join(
        [
            "<!-- printed by: python -m benchmarks.published --out docs -->",
            "# The released networks in numbers",
            f"19 classes, base 16, head 1, one image of {SIZE[0]}x{SIZE[1]}; MACs (multiply-accumulates) with those of the "
            "attention products. *All modules*: what the released code holds, the fusions at 1/16 and 1/32 that its logits do "
            "not need included. *As built*: what `hyctas.network.build` makes and exports. *Training*: with the auxiliary heads.",
            markdown_rows(
                [["", "parameters, all modules", "as built", "training", "GMAC, all modules", "as built", "all, 512x1024"], *totals]
            ),
            "GMAC of each part, all modules; how much of all is in the searched trunk, and in attention products (heads included):",
            markdown_rows([["", *PARTS, "trunk's share", "attention"], *parts]),
            "Other heads, the panoptic pair of heads, other base widths (parameters, MACs; all modules):",
            markdown_rows([["", "head 0 (light)", "head 2", "panoptic", "base 6", "base 8", "base 12", "base 20"], *variants]),
        ]
    ) + "\n"


def drawing(name: str) -> str:
    """Draw a network at its full size."""
    svg = diagram_svg(lower(published.genotype(name), SIZE, CLASSES))
    return svg.replace('<svg class="hd"', '<svg class="hd" color="#1a202c"').replace('style="', 'style="background:#fff;', 1) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Write numbers and drawings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for published_numbers.md and the drawings")
    folder = parser.parse_args(arguments).out
    with one_sentence():
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "published_numbers.md", numbers())
        for name in published.NAMES:
            write_text(folder / f"published_{name}.svg", drawing(name))
    print(numbers())


if __name__ == "__main__":
    main()
