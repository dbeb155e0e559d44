"""Configure training: one recipe for a supernet and for a network. No torch here."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from export.errors import InvalidInput


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How weights are trained."""

    minutes: float | None = None
    """Time budget in minutes, pauses excluded; the schedule follows the share of it that is spent."""
    steps: int | None = None
    """Number of steps instead of a time budget; runs of equal steps and seed are equal."""
    batch: int = 12
    """Crops per step (and per process under torchrun)."""
    crop: tuple[int, int] = (240, 320)
    """Height and width of a training crop."""
    size: tuple[int, int] | None = None
    """Resize all images to this height and width first; none: as they are."""
    scale: tuple[float, float] = (0.6, 1.6)
    """Range of the random scale."""
    colour: float = 0.0
    """Strength of the jitter of contrast and saturation, each a factor of 1 +- this."""
    learning_rate: float = 2e-3
    """Peak learning rate of AdamW."""
    trunk_rate: float = 1.0
    """Factor on the learning rate of parameters that came from trained weights; 0 leaves them as they are."""
    schedule: str = "poly"
    """How the learning rate falls with the share of the budget that is spent: "poly", (1 - share) ** 0.9, or "cosine"."""
    weight_decay: float = 1e-2
    """Decoupled weight decay, on convolution weights only."""
    warmup_steps: int = 50
    """Steps over which the learning rate rises linearly first."""
    clip: float = 5.0
    """Largest norm of the gradient."""
    ema: float = 0.0
    """Decay of the running average of the weights that the training ends with; 0: it ends with the weights of the last step."""
    loss: str = "cross_entropy"
    """"cross_entropy" over all pixels, or "ohem" over the hardest ones."""
    class_weights: bool = True
    """Weight classes by 1 / ln(1.1 + share of pixels)."""
    amp: bool = True
    """Compute in bfloat16 where it is safe (autocast)."""
    seed: int = 0
    """Seed of data order, augmentation and drawing of networks."""
    threads: int = 2
    """Threads that torch computes with."""
    save_seconds: float = 60.0
    """Seconds between checkpoints."""
    absent_classes: bool = False
    """Train although a class has no pixel in train: the network never learns it."""

    def __post_init__(self) -> None:
        if (self.minutes is None) == (self.steps is None):
            raise InvalidInput("training takes a budget in minutes or in steps: give exactly one of --minutes and --steps")
        if (self.minutes or self.steps or 0) <= 0:
            raise InvalidInput("the training budget must be positive")
        if self.loss not in ("cross_entropy", "ohem"):
            raise InvalidInput(f'loss {self.loss!r} is unknown; allowed: "cross_entropy", "ohem"')
        if self.schedule not in ("poly", "cosine"):
            raise InvalidInput(f'schedule {self.schedule!r} is unknown; allowed: "poly", "cosine"')
        if not 0 < self.learning_rate < float("inf"):  # not a number fails such comparisons too
            raise InvalidInput(f"learning_rate is {self.learning_rate}; the peak learning rate must be positive and finite")
        if not 0 <= self.trunk_rate <= 1:
            raise InvalidInput(f"trunk_rate is {self.trunk_rate}; the factor must be between 0 (frozen) and 1")
        if not 0 <= self.ema < 1:
            raise InvalidInput(f"ema is {self.ema}; the decay of averaged weights must be 0 (off) or more, and below 1")
        if not 0 <= self.colour <= 1:
            raise InvalidInput(f"colour is {self.colour}; the strength of the jitter must be between 0 (off) and 1")
        if min(self.crop) < 32 or self.batch < 2:
            raise InvalidInput(f"crop {self.crop} must be at least 32x32 and batch {self.batch} at least 2 (batch norm)")

    def identity(self) -> dict[str, Any]:
        """Return what decides the weights, as a run's configuration records it: not what data is merely accepted."""
        return {name: value for name, value in asdict(self).items() if name != "absent_classes"}


@dataclass(frozen=True, kw_only=True)
class NetworkRecipe(Recipe):
    """How one network is trained."""

    auxiliary: float = 0.0
    """Weight of the losses of two more heads, at 1/16 and 1/32, which the finished network does not have (published: 0.2)."""
    distillation: float = 0.5
    """Weight of following the teacher's soft labels, against the labels; only with a teacher."""
    temperature: float = 2.0
    """Temperature that softens the teacher's and the network's probabilities; only with a teacher."""

    reparameterise: bool = False
    """Train each 3x3 convolution as parallel branches that are merged afterwards (RepVGG, Ding et al., CVPR 2021)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.auxiliary <= 10:
            raise InvalidInput(f"auxiliary is {self.auxiliary}; the weight of the auxiliary losses must be between 0 and 10")
        if not 0 <= self.distillation <= 1:
            raise InvalidInput(f"distillation is {self.distillation}; the weight of following a teacher must be between 0 and 1")
        if not 0.1 <= self.temperature <= 100:
            raise InvalidInput(f"temperature is {self.temperature}; it must be between 0.1 and 100 (1: probabilities as they are)")


@dataclass(frozen=True, kw_only=True)
class SupernetRecipe(Recipe):
    """How a supernet is trained: every step the largest network on the labels, then smaller ones that also follow it."""

    ratios: tuple[float, float, float] = (1.0, 2.0, 3.0)
    """How often networks of 1, 2, 3 branches are drawn (rho)."""
    adaptive: bool = True
    """Raise the ratio of those branch counts whose networks lag behind the largest one most."""
    random_networks: int = 2
    """Random networks per step, besides the largest and the smallest."""
    max_gmacs: float | None = None
    """Largest network trained, in GMAC at the crop's size; none: the largest of the space."""
    distillation: float = 0.5
    """Weight of following the largest network, against the labels."""
