"""Configure training: one recipe for a supernet and for a network. No torch here."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from export.errors import Give, InvalidInput
from export.ranges import Range, Seed, Settings, Side, Threads

Share = Annotated[float, Range(0, 1)]
Ratio = Annotated[float, Range(0, 1e6)]


@dataclass(frozen=True, kw_only=True)
class Recipe(Settings):
    """How weights are trained."""

    minutes: Annotated[float, Range(above=0, at_most=1e5)] | None = None
    """Time budget in minutes, pauses excluded; the schedule follows the share of it that is spent."""
    steps: Annotated[int, Range(1, 10**9)] | None = None
    """Number of steps instead of a time budget; runs of equal steps and seed are equal."""
    batch: Annotated[int, Range(2, 4096)] = 12
    """Crops per step, over all processes."""
    device_batch: Annotated[int, Range(1, 4096)] | None = None
    """Crops that a process computes at a time, at most; gradients of several such micro-batches add up. None: its whole share."""
    crop: tuple[Side, Side] = (240, 320)
    """Height and width of a training crop."""
    size: tuple[Side, Side] | None = None
    """Resize all images to this height and width first; none: as they are."""
    scale: tuple[Annotated[float, Range(0.1, 10)], Annotated[float, Range(0.1, 10)]] = (0.6, 1.6)
    """Range of the random scale."""
    colour: Share = 0.0
    """Strength of the jitter of contrast and saturation, each a factor of 1 +- this."""
    learning_rate: Annotated[float, Range(above=0, at_most=10)] = 2e-3
    """Peak learning rate of AdamW."""
    trunk_rate: Share = 1.0
    """Factor on the learning rate of parameters that came from trained weights; 0 leaves them as they are."""
    schedule: Literal["poly", "cosine"] = "poly"
    """How the learning rate falls with the share of the budget that is spent: "poly", (1 - share) ** 0.9, or "cosine"."""
    weight_decay: Annotated[float, Range(0, 10)] = 1e-2
    """Decoupled weight decay, on convolution weights only."""
    warmup_steps: Annotated[int, Range(0, 10**6)] = 50
    """Steps over which the learning rate rises linearly first."""
    clip: Annotated[float, Range(above=0, at_most=1e6)] = 5.0
    """Largest norm of the gradient."""
    ema: Annotated[float, Range(0, below=1)] = 0.0
    """Decay of the running average of the weights that the training ends with; 0: it ends with the weights of the last step."""
    loss: Literal["cross_entropy", "ohem"] = "cross_entropy"
    """"cross_entropy" over all pixels, or "ohem" over the hardest ones."""
    class_weights: bool = True
    """Weight classes by 1 / ln(1.1 + share of pixels); half of what that does to decisions is taken back."""
    amp: bool = True
    """Compute in bfloat16 where it is safe (autocast)."""
    seed: Seed = 0
    """Seed of data order, augmentation and drawing of networks."""
    threads: Threads = 2
    """Threads that torch computes with."""
    save_seconds: Annotated[float, Range(0, 86400)] = 60.0
    """Seconds between checkpoints."""
    absent_classes: bool = False
    """Train although a class has no pixel in train: the network never learns it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.minutes is None) == (self.steps is None):
            raise InvalidInput("training takes a budget in minutes or in steps: give exactly one of minutes and steps")
        if self.scale[0] > self.scale[1]:
            raise InvalidInput(f"scale is {list(self.scale)}; give the smaller scale first")

    def identity(self) -> dict[str, Any]:
        """Return what decides the weights, as a run's configuration records it.

        Not what data is merely accepted, nor what may change with the machines that a run is continued on.
        """
        return {name: value for name, value in asdict(self).items() if name not in ("absent_classes", "device_batch")}

    def micro_batches(self, processes: int) -> list[int]:
        """Return the crops of each micro-batch in which a process computes its share of a step: as equal as can be.

        Raises:
            InvalidInput: the batch cannot be shared so.
        """
        share, rest = divmod(self.batch, processes)
        if rest:
            fitting = [str(count) for count in range(1, self.batch + 1) if self.batch % count == 0]
            raise InvalidInput(
                f"batch is {self.batch}, which {processes} processes cannot share equally",
                f"start {', '.join(fitting[:-1])} or {fitting[-1]} processes",
                *(Give("batch", str(processes * count)) for count in (share, share + 1) if count),
            )
        count = -(-share // (self.device_batch or share))
        sizes = [share // count + (number < share % count) for number in range(count)]
        if sizes[-1] * processes < 2:  # no variance to normalise by, where a layer's map has one pixel
            assert self.device_batch is not None
            least = next(size for size in range(self.device_batch + 1, share + 1) if share // -(-share // size) > 1)
            raise InvalidInput(
                f"device_batch is {self.device_batch}, by which one of {share} crops is computed alone, and batch norms need two; "
                f"set it to {least}, the next that works"
            )
        return sizes


@dataclass(frozen=True, kw_only=True)
class NetworkRecipe(Recipe):
    """How one network is trained."""

    auxiliary: Annotated[float, Range(0, 10)] = 0.0
    """Weight of the losses of two more heads, at 1/16 and 1/32, which the finished network does not have (published: 0.2)."""
    distillation: Share = 0.5
    """Weight of following the teacher's soft labels, against the labels; only with a teacher."""
    temperature: Annotated[float, Range(0.1, 100)] = 2.0
    """Temperature that softens the teacher's and the network's probabilities; only with a teacher."""
    reparameterise: bool = False
    """Train each 3x3 convolution as parallel branches that are merged afterwards (RepVGG, Ding et al., CVPR 2021)."""


@dataclass(frozen=True, kw_only=True)
class SupernetRecipe(Recipe):
    """How a supernet is trained: every step the largest network on the labels, then smaller ones that also follow it."""

    ratios: tuple[Ratio, Ratio, Ratio] = (1.0, 2.0, 3.0)
    """How often networks of 1, 2, 3 branches are drawn (rho)."""
    adaptive: bool = True
    """Raise the ratio of those branch counts whose networks lag behind the largest one most."""
    random_networks: Annotated[int, Range(0, 64)] = 2
    """Random networks per step, besides the largest and the smallest."""
    max_gmacs: Annotated[float, Range(above=0, at_most=1e6)] | None = None
    """Largest network trained, in GMAC at the crop's size; none: the largest of the space."""
    distillation: Share = 0.5
    """Weight of following the largest network, against the labels."""
    fit_steps: Annotated[int, Range(0, 10**6)] | None = None
    """Steps that fit operators without trained weights to trained blocks, before the budget; none: 300 where there are such."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not any(self.ratios):
            raise InvalidInput("ratios are all 0; give at least one number of branches a ratio above 0")
