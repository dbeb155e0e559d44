"""Turn the three outputs of a panoptic network into segments (Panoptic-DeepLab, arXiv 1911.10194, section 3.3).

Peaks of the heat map are the centres; a pixel of a thing class belongs to the centre nearest to where its offset leads; each
instance takes the class that most of its pixels have. All of it is deterministic and runs where its tensors are.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from export.bundle.imaging import exact_stride
from export.errors import InvalidInput
from hyctas.nn.blocks import upsample

THRESHOLD, NMS_KERNEL, TOP_K, STUFF_AREA = 0.1, 7, 200, 2048
"""The released configuration for Cityscapes; the released one for COCO has an NMS kernel of 41 and a stuff area of 4096."""
LARGEST_STRIDE = 32
"""Of any output."""
CHUNK_ELEMENTS = 1 << 20
"""Most distances (centres x pixels) held at a time: 4 MiB in fp32."""


@dataclass(frozen=True, eq=False)
class Panoptic:
    """The segments of one image."""

    classes: Tensor
    """int64 (H, W): class of each pixel, or the ignore label for void."""
    instances: Tensor
    """int32 (H, W): 1..n without gaps on things, best centre first; 0 on stuff and void."""


def split(output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Take a network's joined output (`Network.forward_panoptic`, an ONNX file's `panoptic`) apart.

    Args:
        output: (N, classes + 3, h, w).

    Returns:
        Logits (N, classes, h, w), centres (N, 1, h, w), offsets (N, 2, h, w).

    Raises:
        InvalidInput: another rank, or no channel left for classes.
    """
    if output.dim() != 4 or output.shape[1] < 4:
        raise InvalidInput(f"a joined output has shape (N, classes + 3, h, w); got {tuple(output.shape)}")
    return output[:, :-3], output[:, -3:-2], output[:, -2:]


def find_centres(heatmap: Tensor, threshold: float = THRESHOLD, nms_kernel: int = NMS_KERNEL, top_k: int = TOP_K) -> Tensor:
    """Find the peaks of a heat map.

    A peak lies above the threshold and is the largest value in the window around it; of equal ones in a window the first in
    reading order stays, so that a plateau, as low precision makes them, is one centre and not one per pixel. (The published
    code keeps all of them, and where there are more than `top_k` it ranks by coordinate instead of by score.)

    Args:
        heatmap: (1, H, W), any float; NaN is no peak.
        threshold: what a peak must exceed.
        nms_kernel: side of the window in pixels, odd.
        top_k: how many to keep at most, at least 1.

    Returns:
        int64 (K, 2) as (y, x), the highest first; equals in reading order.

    Raises:
        InvalidInput: another shape, no pixel, an even window, or `top_k` below 1.
    """
    if heatmap.dim() != 3 or heatmap.shape[0] != 1 or not heatmap.numel():
        raise InvalidInput(f"the heat map of one image has shape (1, H, W) and a pixel at least; got {tuple(heatmap.shape)}")
    if nms_kernel < 1 or nms_kernel % 2 == 0:
        raise InvalidInput(f"nms_kernel is {nms_kernel}; wanted an odd number of pixels, 1 or more")
    if top_k < 1:
        raise InvalidInput(f"top_k is {top_k}; wanted 1 or more")
    scores = heatmap.float()
    above = scores > threshold
    scores = scores.masked_fill(~above, -torch.inf)
    peaks = above & (scores == _window_max(scores, nms_kernel))
    # float64 counts pixels exactly. Earlier in reading order = larger.
    order = torch.arange(scores.numel(), 0, -1, dtype=torch.float64, device=scores.device).view_as(scores) * peaks
    peaks &= order == _window_max(order, nms_kernel)
    centres = peaks[0].nonzero()  # (K, 2), in reading order
    best = scores[0][centres[:, 0], centres[:, 1]].sort(descending=True, stable=True).indices[:top_k]
    return centres[best]


def _window_max(x: Tensor, kernel: int) -> Tensor:
    """Return the maximum of (1, H, W) over the window around each pixel: along one axis, then along the other."""
    half = kernel // 2
    return F.max_pool2d(F.max_pool2d(x, (kernel, 1), 1, (half, 0)), (1, kernel), 1, (0, half))


def assign_pixels(centres: Tensor, offset: Tensor, mask: Tensor | None = None) -> Tensor:
    """Give each pixel to the centre nearest to where its offset leads, be that inside the image or not.

    Args:
        centres: int64 (K, 2) as (y, x).
        offset: (2, H, W) as (dy, dx) in pixels, any float; computed in fp32.
        mask: bool (H, W), the pixels to assign; None = all.

    Returns:
        int32 (H, W): 1 + the row in `centres`, of equally near ones the first; 0 outside the mask, where the offset is not
        finite or leads further than fp32 can square (1e19 pixels), and everywhere if there is no centre.

    Raises:
        InvalidInput: the shapes do not fit together.
    """
    if offset.dim() != 3 or offset.shape[0] != 2 or centres.dim() != 2 or centres.shape[1] != 2:
        raise InvalidInput(f"wanted centres (K, 2) and offset (2, H, W); got {tuple(centres.shape)} and {tuple(offset.shape)}")
    height, width = offset.shape[1:]
    if mask is not None and tuple(mask.shape) != (height, width):
        raise InvalidInput(f"offset {tuple(offset.shape)} wants a mask of shape {(height, width)}; got {tuple(mask.shape)}")
    instances = torch.zeros(height * width, dtype=torch.int32, device=offset.device)
    if not len(centres):
        return instances.view(height, width)
    pixels = torch.arange(height * width, device=offset.device) if mask is None else mask.flatten().nonzero()[:, 0]
    y, x = offset.flatten(1)[:, pixels].float() + torch.stack([pixels // width, pixels % width])  # (P,) each
    centre_y, centre_x = centres.float()[:, :, None].unbind(1)  # (K, 1) each
    chunk = max(1, CHUNK_ELEMENTS // len(centres))
    for start in range(0, len(pixels), chunk):
        part = slice(start, start + chunk)
        distance, nearest = ((y[part] - centre_y).square() + (x[part] - centre_x).square()).min(0)  # (p,) each
        instances[pixels[part]] = ((nearest + 1) * distance.isfinite()).int()
    return instances.view(height, width)


def panoptic(
    labels: Tensor,
    heatmap: Tensor,
    offset: Tensor,
    *,
    things: Collection[int],
    stuff_area: int = STUFF_AREA,
    ignore: int = 255,
    threshold: float = THRESHOLD,
    nms_kernel: int = NMS_KERNEL,
    top_k: int = TOP_K,
) -> Panoptic:
    """Join the outputs for one image into segments.

    Void are: pixels labelled `ignore`, stuff classes with fewer pixels than `stuff_area`, and pixels of thing classes that
    no centre takes (there is none, or their offset is not finite).

    Args:
        labels: integers (H, W): the semantic class of each pixel, below `ignore`, or `ignore`.
        heatmap: (1, H, W), any float, at the size of the labels (`resize_outputs`).
        offset: (2, H, W) as (dy, dx) in pixels, any float.
        things: the classes that have instances; all others are stuff.
        stuff_area: fewest pixels of a stuff class.
        ignore: the label of void.
        threshold: see `find_centres`.
        nms_kernel: see `find_centres`.
        top_k: see `find_centres`.

    Returns:
        One class per instance (that of most of its pixels, of equals the lowest) and all that is left of the stuff.

    Raises:
        InvalidInput: shapes do not fit together, a label or thing lies outside the classes, or what `find_centres` raises.
    """
    size = tuple(labels.shape)
    if len(size) != 2 or tuple(heatmap.shape) != (1, *size) or tuple(offset.shape) != (2, *size):
        raise InvalidInput(
            f"wanted labels (H, W), heatmap (1, H, W) and offset (2, H, W); "
            f"got {size}, {tuple(heatmap.shape)} and {tuple(offset.shape)}"
        )
    centres = find_centres(heatmap, threshold, nms_kernel, top_k)
    labels = labels.long()
    wrong = [int(value) for value in (labels.min(), labels.max()) if not 0 <= value <= ignore]
    wrong += [thing for thing in things if not 0 <= thing < ignore]
    if wrong:
        raise InvalidInput(f"labels or things hold {wrong}; a class is 0..{ignore - 1}, and a label may be {ignore} (void)")
    thing_classes = torch.tensor(sorted(set(things)), dtype=torch.int64, device=labels.device)
    instances = assign_pixels(centres, offset, torch.isin(labels, thing_classes))
    classes = torch.full_like(labels, ignore)
    taken = instances > 0
    if taken.any():
        member = instances[taken].long() - 1  # (P,), rows of `centres`
        votes = torch.bincount(member * ignore + labels[taken], minlength=len(centres) * ignore).view(-1, ignore)
        classes[taken] = votes.argmax(1)[member]
        instances[taken] = votes.any(1).cumsum(0)[member].int()
    kept = torch.bincount(labels.flatten(), minlength=ignore + 1) >= stuff_area
    kept[thing_classes] = False
    return Panoptic(torch.where(kept[labels], labels, classes), instances)


def resize_outputs(centre: Tensor, offset: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Resize both heads' outputs bilinearly, and scale the offsets to the new pixels.

    Where h, w are H, W divided by a head's stride s and rounded up (s a power of two), the outputs are enlarged by exactly s
    and cropped, as a network's logits are; else they are stretched by the true ratios, H/h for dy and W/w for dx. The
    published code multiplies both by the integer (H-1)//(h-1), a known defect: at 1/32 that is 33 instead of 32 for 1024 rows
    and 34 for 512, and for h = 1 it fails.

    Args:
        centre: (N, 1, h, w), any float.
        offset: (N, 2, h, w) as (dy, dx) in pixels of h x w, any float.
        size: (H, W).

    Returns:
        centre (N, 1, H, W), and offset (N, 2, H, W) in pixels of H x W; fp32, as fp16 is coarser than a pixel above 2048.

    Raises:
        InvalidInput: the shapes do not fit together, or a size has no pixel.
    """
    n, _, *old = centre.shape if centre.dim() == 4 else (0, 0, 0, 0)
    if not all(old) or tuple(centre.shape) != (n, 1, *old) or tuple(offset.shape) != (n, 2, *old) or min(size) < 1:
        raise InvalidInput(
            f"wanted centre (N, 1, h, w), offset (N, 2, h, w) and a size (H, W) with a pixel at least; "
            f"got {tuple(centre.shape)}, {tuple(offset.shape)} and {tuple(size)}"
        )
    stride = exact_stride((old[0], old[1]), size, LARGEST_STRIDE)
    if stride is not None:
        return upsample(centre.float(), size, stride), upsample(offset.float(), size, stride) * stride
    centre, offset = (F.interpolate(x.float(), size, mode="bilinear", align_corners=False) for x in (centre, offset))
    ratio = torch.tensor([size[0] / old[0], size[1] / old[1]], device=offset.device)
    return centre, offset * ratio[:, None, None]
