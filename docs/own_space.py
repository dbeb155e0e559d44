"""A search space of your own: the table that hyctas-profile, hyctas-train and hyctas-search take with --space.

    hyctas-profile --run runs/mine --space docs/own_space.py --size 360x480 --networks 60

This one is for a slow CPU: narrow, shallow at high resolution, without the costly heads, with one kind of attention. Its widths are
parts of EfficientNet-Lite0's, so that trained weights fit:

    hyctas-train supernet --run runs/mine --space docs/own_space.py --init efficientnet-lite0

`docs/own_space.md` explains every line.
"""

from hyctas.space import AttentionVariant, Space, Stage

FIRST = ("conv", "inverted")
CELLS = ("skip", "conv", "downup", "inverted")


def space() -> Space:
    """Return the space; hyctas calls this function and reads nothing else of the file."""
    return Space(
        name="narrow",
        stages=(
            Stage("2", (16, 24)),
            Stage("4", (16, 24), depth=2, first=FIRST, operators=("skip", "inverted")),
            Stage("8", (24, 32, 40), depth=2, first=FIRST, operators=CELLS, kernels=(3, 5)),
            Stage("16a", (40, 64, 80), depth=3, first=FIRST, operators=CELLS),
            Stage("16b", (56, 80), depth=3, first=("skip", "inverted"), operators=CELLS, kernels=(3, 5), attention=True),
            Stage("32a", (96, 128), depth=3, first=FIRST, operators=CELLS, kernels=(3, 5), attention=True),
            Stage("32b", (160,), first=("skip", "inverted")),
        ),
        stems=("separable",),
        attention=(AttentionVariant(heads=2, qk_divisor=1),),
        branch_sets=((16,), (32,), (16, 32)),
        heads=("light", "plain"),
        head_blocks=("conv",),
    )
