"""A search space of your own: the table that hyctas-profile, hyctas-train and hyctas-search take with --space.

    hyctas-profile --run runs/mine --space docs/own_space.py --size 360x480 --networks 30

This one is for a slow CPU: narrow, shallow at high resolution, without the costly heads, with one kind of attention.
`docs/own_space.md` explains every line.
"""

from hyctas.space import AttentionVariant, Space


def space() -> Space:
    """Return the space; hyctas calls this function and reads nothing else of the file."""
    return Space(
        name="narrow",
        widths=(
            (2, (8, 16)),
            (4, (16, 24)),
            (8, (24, 32, 48)),
            (16, (32, 48, 64)),
            (32, (48, 64, 96, 128)),
        ),
        stem_depth=(0, 1),
        row_depth=(1, 3, 4),
        operators=("skip", "conv", "downup", "attention"),
        down_operators=("conv", "downup"),
        attention=(AttentionVariant(heads=2, qk_divisor=4, pool=2),),
        branch_sets=((32,), (16, 32), (8, 16, 32)),
        heads=("light", "head1"),
        head_blocks=("conv",),
    )
