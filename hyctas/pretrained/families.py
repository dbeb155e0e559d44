"""List the published networks whose weights are read: what tensors cannot tell (strides, padding, epsilon, pixel scaling).

Sources: EfficientNet-Lite: github.com/tensorflow/tpu, models/official/efficientnet/lite; depth coefficients 1.0, 1.1, 1.2, 1.4,
1.8. MobileNetV2: arXiv 1801.04381, table 2; depth coefficients 1.0 and timm's 1.2, 1.4. ResNet: arXiv 1512.03385, table 1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Stage:
    """What the blocks of one stage share."""

    kernel: int
    stride: int
    """Of the first block; the others have 1."""
    expansion: int


@dataclass(frozen=True)
class Family:
    """Networks that differ in width and depth only.

    `stages` and `repeats` are empty for ResNet, whose tensor names say the stage.
    """

    name: str
    stages: tuple[Stage, ...]
    repeats: tuple[tuple[int, ...], ...]
    """Blocks per stage, one row per depth; no two rows have the same sum."""
    relu6: bool
    eps: float
    symmetric_padding: bool
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def layout(self, blocks: int) -> list[tuple[Stage, int]] | None:
        """Return every block's (stage, stride) for a number of blocks; None where no network of the family has so many."""
        for row in self.repeats:
            if sum(row) == blocks:
                return [
                    (stage, stage.stride if index == 0 else 1)
                    for stage, count in zip(self.stages, row, strict=True)
                    for index in range(count)
                ]
        return None


LITE = Family(
    name="efficientnet-lite",
    stages=(Stage(3, 1, 1), Stage(3, 2, 6), Stage(5, 2, 6), Stage(3, 2, 6), Stage(5, 1, 6), Stage(5, 2, 6), Stage(3, 1, 6)),
    repeats=((1, 2, 2, 3, 3, 4, 1), (1, 3, 3, 4, 4, 5, 1), (1, 3, 3, 5, 5, 6, 1), (1, 4, 4, 6, 6, 8, 1)),
    relu6=True,
    eps=1e-3,
    symmetric_padding=False,
    mean=(127 / 255,) * 3,
    std=(128 / 255,) * 3,
)
LITE_TIMM = replace(LITE, eps=1e-5, symmetric_padding=True, mean=IMAGENET_MEAN, std=IMAGENET_STD)
"""timm's own training of the same shape (`efficientnet_lite0`, without `tf_`): same names, other arithmetic."""
MOBILENETV2 = Family(
    name="mobilenetv2",
    stages=(Stage(3, 1, 1), Stage(3, 2, 6), Stage(3, 2, 6), Stage(3, 2, 6), Stage(3, 1, 6), Stage(3, 2, 6), Stage(3, 1, 6)),
    repeats=((1, 2, 3, 4, 3, 3, 1), (1, 3, 4, 5, 4, 4, 1), (1, 3, 5, 6, 5, 5, 1)),
    relu6=True,
    eps=1e-5,
    symmetric_padding=True,
)
RESNET = Family(name="resnet", stages=(), repeats=(), relu6=False, eps=1e-5, symmetric_padding=True)

SUPPORTED = (
    "EfficientNet-Lite (names of efficientnet-lite-pytorch or timm), MobileNetV2 (torchvision or timm) and ResNet-18/34 "
    "(torchvision or timm)"
)
