"""Say what int8 costs in accuracy: the proof that stands beside an int8 file, in place of fp32's parity."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from export.codec import Share


@dataclass(frozen=True, kw_only=True)
class SplitLoss:
    """What int8 changes on labelled images."""

    images: int
    fp32_miou: Share
    int8_miou: Share

    @property
    def loss(self) -> float:
        """mIoU lost, 0..1; negative where int8 is better."""
        return self.fp32_miou - self.int8_miou


@dataclass(frozen=True, kw_only=True)
class Int8Loss:
    """The content of `int8.json`, and of `int8` in a single file's manifest."""

    target: str
    """What computed the int8 model here."""
    data: str
    """The images' name."""
    calibration_images: int
    judged_images: int
    """Images, none of them calibrated with where there are enough, on which layers were chosen."""
    layers: int
    """Convolutions and products with weights."""
    float_layers: tuple[str, ...]
    """Those that stayed in fp32, most sensitive first."""
    agreement: Share
    """Share of pixels of the judged images that get the same label as in fp32."""
    worst_agreement: Share
    """The same of the worst image."""
    portable_agreement: Share
    """`agreement` where the file is computed as it stands, as TensorRT does: int8 on either side of 0."""
    splits: dict[str, SplitLoss] = field(default_factory=dict)
    """mIoU by split: `choose` is what layers were chosen by, `val` is only reported; empty without labels."""
    min_agreement: Share | None = None
    """The bound on `agreement`; none where weights are random and nothing was judged."""
    max_miou_loss: Share | None = None
    """The bound on the loss of mIoU on `choose`; none without labels."""

    @property
    def passed(self) -> bool:
        """Whether the loss is within the bounds."""
        chosen = self.splits.get("choose")
        return (self.min_agreement is None or self.agreement >= self.min_agreement) and (
            self.max_miou_loss is None or chosen is None or chosen.loss <= self.max_miou_loss
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    def summary(self) -> str:
        """Say what was lost, in a few lines."""
        bound = "no bound" if self.min_agreement is None else f"at least {self.min_agreement:.2%}"
        lines = [
            f"int8 on {self.target}: {self.layers - len(self.float_layers)} of {self.layers} layers in int8, calibrated with "
            f"{self.calibration_images} images of {self.data}",
            f"labels agree with fp32 on {self.agreement:.2%} of the pixels of {self.judged_images} images ({bound}), on "
            f"{self.worst_agreement:.2%} of the worst; {self.portable_agreement:.2%} where activations stay in int8 (TensorRT)",
        ]
        for name, split in self.splits.items():
            limit = f" (at most {100 * self.max_miou_loss:.1f})" if name == "choose" and self.max_miou_loss is not None else ""
            lines.append(f"mIoU on {split.images} images of {name}: {split.fp32_miou:.2%} in fp32, {split.int8_miou:.2%} in int8, "
                         f"{100 * split.loss:+.2f} points lost{limit}")  # fmt: skip
        return "\n".join(lines)
