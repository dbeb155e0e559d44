"""Learn, find and score instances beside semantic classes, after Panoptic-DeepLab (Cheng et al. 2020).

A network gives semantic logits and, whatever the class, a heat map of instance centres (N, 1, h, w) and offsets (N, 2, h, w)
that lead from each pixel to its instance's centre: (dy, dx) in pixels.

| step                 | what does it                                     | on    |
|----------------------|--------------------------------------------------|-------|
| label -> targets     | `make_targets`                                   | numpy |
| train                | `centre_loss`, `offset_loss`                     | torch |
| output -> its parts  | `split`                                          | torch |
| parts -> input size  | `resize_outputs`                                 | torch |
| output -> segments   | `panoptic`, from `find_centres`, `assign_pixels` | torch |
| score                | `PanopticQuality`                                | numpy |
"""

from hyctas.panoptic.grouping import Panoptic, assign_pixels, find_centres, panoptic, resize_outputs, split
from hyctas.panoptic.panoptic_losses import centre_loss, offset_loss
from hyctas.panoptic.quality import PanopticQuality, QualityMean, QualityResult
from hyctas.panoptic.target_maps import Targets, make_targets

__all__ = [
    "Panoptic",
    "PanopticQuality",
    "QualityMean",
    "QualityResult",
    "Targets",
    "assign_pixels",
    "centre_loss",
    "find_centres",
    "make_targets",
    "offset_loss",
    "panoptic",
    "resize_outputs",
    "split",
]
