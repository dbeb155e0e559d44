"""Panoptic targets, losses and grouping: ideal outputs come back as the segments they were made from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from export.errors import InvalidInput
from hyctas.panoptic import (
    Panoptic,
    PanopticQuality,
    assign_pixels,
    centre_loss,
    find_centres,
    grouping,
    make_targets,
    offset_loss,
    panoptic,
    resize_outputs,
)

THINGS, VOID = (2, 3, 4), 255
SIZES = st.integers(1, 45)


def scene(seed: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return classes and instances: ellipses, bars and crosses over two kinds of stuff, with gaps in the numbers.

    Later shapes cover earlier ones. An instance whose peak would lie in the NMS window of another's is painted over by stuff.
    """
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    classes, instances = (x > rng.integers(0, width + 1)).astype(np.int64), np.zeros((height, width), np.int64)
    for number in rng.choice(np.arange(1, 60), rng.integers(0, 8), replace=False):
        dy, dx, a, b = abs(y - rng.integers(height)), abs(x - rng.integers(width)), *rng.integers(1, 9, 2)
        shape = [(dy / a) ** 2 + (dx / b) ** 2 <= 1, (dy <= a) & (dx <= b), (dy <= a) & (dx < 1) | (dy < 1) & (dx <= b)]
        instances[shape[rng.integers(3)]] = number
    peaks: list[np.ndarray] = []
    for number in np.unique(instances[instances > 0]):
        peak = np.floor(np.argwhere(instances == number).mean(0) + 0.5)
        if any(abs(peak - other).max() <= 3 for other in peaks):
            instances[instances == number] = 0
        else:
            peaks.append(peak)
            classes[instances == number] = rng.choice(THINGS)
    return classes, instances


def grouped(classes: np.ndarray, instances: np.ndarray, **options: int) -> Panoptic:
    """Group the ideal outputs for a scene."""
    targets = make_targets(instances)
    centre, offset = torch.from_numpy(targets.centre), torch.from_numpy(targets.offset)
    return panoptic(torch.from_numpy(classes), centre, offset, things=THINGS, **{"stuff_area": 1, **options})


@given(st.integers(0, 10**6), SIZES, SIZES)
def test_ideal_outputs_have_quality_1(seed: int, height: int, width: int) -> None:
    classes, instances = scene(seed, height, width)
    found = grouped(classes, instances)
    assert (found.classes.dtype, found.instances.dtype) == (torch.int64, torch.int32)
    numbers = np.unique(found.instances[found.instances > 0])
    assert numbers.tolist() == list(range(1, len(np.unique(instances[instances > 0])) + 1))
    quality = PanopticQuality(5, THINGS)
    quality.update(found.classes.numpy(), found.instances.numpy(), classes, instances)
    result = quality.result()
    assert result.all is not None and result.all.pq == 1 and sum(result.fp) == sum(result.fn) == 0
    quality = PanopticQuality(5, THINGS)
    quality.update(np.full_like(classes, VOID), np.zeros_like(instances), classes, instances)
    assert (missed := quality.result().all) is not None and missed.pq == 0


@given(st.integers(0, 10**6), SIZES, SIZES)
def test_targets_equal_the_formula(seed: int, height: int, width: int) -> None:
    rng, (_, instances) = np.random.default_rng(seed), scene(seed, height, width)
    ignored = rng.random((height, width)) < 0.2
    sigma = float(rng.uniform(0.5, 9))
    targets = make_targets(instances.astype(np.uint16), ignored, sigma)
    heat, offset = np.zeros((height, width)), np.zeros((2, height, width))
    y, x = np.mgrid[:height, :width]
    for number in np.unique(instances[(instances > 0) & ~ignored]):
        mask = (instances == number) & ~ignored
        cy, cx = y[mask].mean(), x[mask].mean()
        offset[:, mask] = cy - y[mask], cx - x[mask]
        py, px = np.floor(cy + 0.5), np.floor(cx + 0.5)
        near = np.maximum(abs(y - py), abs(x - px)) <= np.ceil(3 * sigma) + 1
        heat = np.maximum(heat, near * np.exp(-((y - py) ** 2 + (x - px) ** 2) / (2 * sigma**2)))
        assert targets.centre[0, int(py), int(px)] == 1
    np.testing.assert_allclose(targets.centre[0], heat, atol=1e-6)
    np.testing.assert_allclose(targets.offset, offset, atol=1e-5)
    assert (targets.centre_weight[0] == ~ignored).all()
    assert (targets.offset_weight[0] == ((instances > 0) & ~ignored)).all()
    assert {getattr(targets, name).dtype for name in vars(targets)} == {np.dtype(np.float32)}


def test_crowds_draw_no_peak() -> None:
    instances = np.zeros((20, 30), int)
    instances[2:8, 3:9], instances[10:18, 12:25] = 4, 9
    alone = make_targets(np.where(instances == 4, 4, 0))
    targets = make_targets(instances, ignored=instances == 9)
    assert (targets.centre == alone.centre).all() and (targets.offset == alone.offset).all()
    assert targets.centre[0, 5, 6] == 1 and tuple(targets.offset[:, 2, 3]) == (2.5, 2.5)
    assert not targets.centre_weight[0, 10:18, 12:25].any() and targets.centre_weight.sum() == 600 - 8 * 13
    nothing = make_targets(np.zeros((3, 4), np.uint8))
    assert not nothing.centre.any() and not nothing.offset.any() and nothing.centre_weight.all()


@pytest.mark.parametrize(
    ("instances", "ignored", "sigma", "message"),
    [
        (np.zeros((2, 3, 4), int), None, 8, r"shape \(H, W\); got int64 of shape \(2, 3, 4\)"),
        (np.full((3, 4), -1), None, 8, "holds -1"),
        (np.zeros((3, 4), int), np.zeros((4, 3), bool), 8, r"bool of shape \(3, 4\); got bool of shape \(4, 3\)"),
        (np.zeros((3, 4), int), None, float("nan"), "sigma is nan"),
    ],
)
def test_wrong_targets_are_a_sentence(instances: np.ndarray, ignored: np.ndarray | None, sigma: float, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        make_targets(instances, ignored, sigma)


def centres_by_loops(heat: np.ndarray, threshold: float, kernel: int, top_k: int) -> list[tuple[int, int]]:
    """Find peaks pixel by pixel."""
    half, peaks, first = kernel // 2, np.zeros(heat.shape, bool), []
    for y, x in np.ndindex(heat.shape):
        window = heat[max(0, y - half) : y + half + 1, max(0, x - half) : x + half + 1]
        peaks[y, x] = heat[y, x] > threshold and heat[y, x] == window.max()
    found = [(int(y), int(x)) for y, x in np.argwhere(peaks)]
    for y, x in found:
        if not any((v, u) < (y, x) and abs(v - y) <= half and abs(u - x) <= half for v, u in found):
            first.append((y, x))
    return sorted(first, key=lambda at: (-heat[at], at))[:top_k]


@given(st.integers(0, 10**6), st.integers(1, 14), st.integers(1, 14), st.sampled_from([1, 3, 7]), st.integers(1, 6))
def test_centres_equal_loops(seed: int, height: int, width: int, kernel: int, top_k: int) -> None:
    heat = np.random.default_rng(seed).integers(0, 6, (height, width)).astype(np.float32) / 8  # few values, many ties
    centres = find_centres(torch.from_numpy(heat)[None], 0.25, kernel, top_k)
    assert [tuple(at) for at in centres.tolist()] == centres_by_loops(heat, 0.25, kernel, top_k)


def test_a_plateau_is_one_centre() -> None:
    heat = torch.zeros(1, 20, 30)
    heat[0, 4:7, 8:11], heat[0, 15, 20], heat[0, 15, 26] = 0.5, 0.5, 0.75
    heat[0, 10, 15], heat[0, 0, 0] = torch.nan, 0.1  # neither NaN nor the threshold itself is a peak
    assert find_centres(heat).tolist() == [[15, 26], [4, 8], [15, 20]]
    assert find_centres(heat.half(), top_k=2).tolist() == [[15, 26], [4, 8]]
    assert find_centres(torch.ones(1, 5, 9)).tolist() == [[0, 0]]


@given(st.integers(0, 10**6), SIZES, SIZES, st.integers(0, 12))
def test_assignment_is_to_the_nearest(seed: int, height: int, width: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    centres = np.stack([rng.integers(0, height, count), rng.integers(0, width, count)], 1)  # with repetitions: ties
    offset = rng.integers(-60, 60, (2, height, width)).astype(np.float32)  # most lead outside
    mask = rng.random((height, width)) < 0.7
    expected = np.zeros((height, width), int)
    if count:
        points = np.moveaxis(offset + np.mgrid[:height, :width], 0, -1)[:, :, None]
        expected = np.where(mask, ((points - centres) ** 2).sum(-1).argmin(-1) + 1, 0)
    got = assign_pixels(torch.from_numpy(centres), torch.from_numpy(offset), torch.from_numpy(mask))
    assert got.dtype == torch.int32 and (got.numpy() == expected).all()


def test_chunks_bound_the_memory_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    centres, offset = torch.randint(0, 90, (23, 2)), 20 * torch.randn(2, 70, 90)
    whole = assign_pixels(centres, offset)
    sizes = []
    square = torch.Tensor.square

    def watched(x: torch.Tensor) -> torch.Tensor:
        sizes.append(x.numel())
        return square(x)

    monkeypatch.setattr(torch.Tensor, "square", watched)
    for most in (1, 500, 23 * 70 * 90 - 1):
        sizes.clear()
        monkeypatch.setattr(grouping, "CHUNK_ELEMENTS", most)
        if most > 1:
            assert torch.equal(assign_pixels(centres, offset), whole)
        else:  # fewer than the centres of one pixel: one pixel at a time
            assert torch.equal(assign_pixels(centres, offset[:, :4, :5]), whole[:4, :5])
        assert sizes and max(sizes) <= max(most, len(centres))


def test_offsets_that_are_not_finite_are_void() -> None:
    offset = torch.zeros(2, 3, 4)
    offset[0, 0, 0], offset[1, 1, 1], offset[0, 2, 2], offset[1, 2, 3] = torch.nan, torch.inf, 1e30, -1e6
    heat = torch.zeros(1, 3, 4)
    heat[0, 1, 2] = 1
    found = panoptic(torch.full((3, 4), 3), heat, offset, things=THINGS)
    void = torch.zeros(3, 4, dtype=torch.bool)
    void[0, 0] = void[1, 1] = void[2, 2] = True
    assert torch.equal(found.instances == 0, void) and torch.equal(found.classes == VOID, void)


def test_majority_vote_and_numbers_without_gaps() -> None:
    """Row 0 is an instance of 3, 3, 2 and stuff; row 4 one of 4, 2 (a tie: the lower); the centre in between gets no pixel."""
    labels = torch.tensor([[3, 3, 2, 0], [0] * 4, [0] * 4, [0] * 4, [1, VOID, 4, 2]], dtype=torch.uint8)
    heat, offset = torch.zeros(1, 5, 4), torch.zeros(2, 5, 4)
    heat[0, 0, 0], heat[0, 2, 0], heat[0, 4, 0] = 0.7, 0.9, 0.8
    found = panoptic(labels, heat, offset, things=THINGS, stuff_area=13, nms_kernel=1)
    assert found.instances.tolist() == [[2, 2, 2, 0], [0] * 4, [0] * 4, [0] * 4, [0, 0, 1, 1]]
    assert found.classes.tolist() == [[3, 3, 3, 0], [0] * 4, [0] * 4, [0] * 4, [VOID, VOID, 2, 2]], "stuff 1 is too small"
    assert (panoptic(labels, heat, offset, things=THINGS, stuff_area=14, nms_kernel=1).classes[1:4] == VOID).all()


def test_no_centres_no_things_nothing() -> None:
    labels, heat, offset = torch.tensor([[0, 0, 2], [1, 3, VOID]]), torch.zeros(1, 2, 3), torch.zeros(2, 2, 3)
    none = panoptic(labels, heat, offset, things=THINGS, stuff_area=1)
    assert none.classes.tolist() == [[0, 0, VOID], [1, VOID, VOID]] and not none.instances.any()
    stuff = panoptic(labels, heat + 1, offset, things=(), stuff_area=0)
    assert torch.equal(stuff.classes, labels) and not stuff.instances.any()
    void = panoptic(torch.full((2, 3), VOID), heat + 1, offset, things=THINGS, stuff_area=0)
    assert (void.classes == VOID).all() and not void.instances.any()


LABELS, HEAT, OFFSET = torch.zeros(2, 3, dtype=torch.int64), torch.zeros(1, 2, 3), torch.zeros(2, 2, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: find_centres(HEAT[0]), r"shape \(1, H, W\).*got \(2, 3\)"),
        (lambda: find_centres(HEAT, nms_kernel=4), "nms_kernel is 4; wanted an odd"),
        (lambda: assign_pixels(torch.zeros(2, 2), OFFSET, torch.ones(3, 2) > 0), r"mask of shape \(2, 3\); got \(3, 2\)"),
        (lambda: panoptic(LABELS, HEAT, OFFSET[:1], things=()), r"got \(2, 3\), \(1, 2, 3\) and \(1, 2, 3\)"),
        (lambda: panoptic(LABELS - 1, HEAT, OFFSET, things=()), r"hold \[-1, -1\]; a class is 0\.\.254"),
        (lambda: panoptic(LABELS + 9, HEAT, OFFSET, things=(), ignore=5), r"a label may be 5 \(void\)"),
        (lambda: resize_outputs(HEAT, OFFSET, (4, 6)), r"centre \(N, 1, h, w\)"),
        (lambda: centre_loss(HEAT[None], HEAT[None], OFFSET[None]), "centre loss: output"),
        (lambda: offset_loss(OFFSET[None], OFFSET[None], OFFSET[None]), r"wanted \(N, 2, H, W\) twice"),
    ],
)
def test_wrong_input_is_a_sentence(call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(InvalidInput, match=message):
        call()


@pytest.mark.parametrize(
    ("old", "new"), [((32, 64), (1024, 2048)), ((3, 5), (24, 40)), ((3, 5), (20, 41)), ((2, 3), (7, 90)), ((9, 8), (4, 3))]
)
def test_resized_offsets_lead_to_the_same_point(old: tuple[int, int], new: tuple[int, int]) -> None:
    def towards(point: tuple[float, float], size: tuple[int, int]) -> torch.Tensor:
        """Return offsets to a point given as fractions of height and width."""
        y, x = torch.meshgrid(*(torch.arange(n) + 0.5 for n in size), indexing="ij")
        return torch.stack([point[0] * size[0] - y, point[1] * size[1] - x])[None]

    centre, offset = resize_outputs(torch.ones(1, 1, *old).half(), towards((0.3, 0.6), old), new)
    assert centre.dtype == offset.dtype == torch.float32
    torch.testing.assert_close(centre, torch.ones(1, 1, *new))
    # At the border bilinear sampling holds the last value, so the test stays half an old pixel inside.
    inside = tuple(slice(n // (2 * o) + 1, n - n // (2 * o) - 1) for n, o in zip(new, old, strict=True))
    torch.testing.assert_close(offset[:, :, *inside], towards((0.3, 0.6), new)[:, :, *inside], rtol=0, atol=new[1] * 1e-5)
    constant = resize_outputs(torch.ones(2, 1, *old), torch.ones(2, 2, *old), new)[1]
    for channel in range(2):
        torch.testing.assert_close(constant[:, channel], torch.full((2, *new), new[channel] / old[channel]))


def test_sizes_that_are_no_multiple_of_the_stride_are_cropped() -> None:
    """As a network crops its logits: outputs of 21x38 at stride 8 are those of 24x40, cut."""
    centre, offset = torch.rand(1, 1, 3, 5), torch.rand(1, 2, 3, 5)
    whole, cut = resize_outputs(centre, offset, (24, 40)), resize_outputs(centre, offset, (21, 38))
    for full, part in zip(whole, cut, strict=True):
        assert torch.equal(part, full[:, :, :21, :38])


def test_losses_by_hand_and_their_gradients() -> None:
    output = torch.tensor([[[[1.0, 0.5], [0.0, 3.0]]]], requires_grad=True)
    target, weight = torch.tensor([[[[0.5, 0.5], [1.0, 9.0]]]]), torch.tensor([[[[1.0, 1.0], [1.0, 0.0]]]])
    loss = centre_loss(output, target, weight)
    assert loss.item() == pytest.approx(200 * (0.25 + 1) / 3)
    loss.backward()
    assert output.grad is not None
    torch.testing.assert_close(output.grad, 200 / 3 * torch.tensor([[[[1.0, 0.0], [-2.0, 0.0]]]]))
    both = torch.cat([output, 2 * output], 1).detach().requires_grad_()
    loss = offset_loss(both, torch.zeros_like(both), weight)
    assert loss.item() == pytest.approx(0.01 * (1.5 + 3) / 6)
    loss.backward()
    assert both.grad is not None
    torch.testing.assert_close(both.grad, 0.01 / 6 * torch.tensor([[[[1.0, 1], [0, 0]], [[1, 1], [0, 0]]]]))


@given(st.integers(0, 10**6))
def test_losses_of_nothing_and_of_ideal_outputs_are_0(seed: int) -> None:
    _, instances = scene(seed, 12, 17)
    assume(instances.any())
    targets = make_targets(instances)
    centre, offset, counts, on_instances = (torch.from_numpy(getattr(targets, name))[None] for name in vars(targets))
    assert centre_loss(centre, centre, counts) == offset_loss(offset, offset, on_instances) == 0
    half = offset.half().requires_grad_()
    loss = offset_loss(half, offset + 1, torch.zeros_like(counts))
    loss.backward()
    assert loss == 0 and loss.dtype == torch.float32 and half.grad is not None and not half.grad.any()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_groups_as_a_cpu() -> None:
    labels, heat, offset = torch.randint(0, 5, (211, 333)), torch.rand(1, 211, 333).half(), 30 * torch.randn(2, 211, 333).round()
    expected = panoptic(labels, heat, offset, things=THINGS)
    got = panoptic(labels.cuda(), heat.cuda(), offset.cuda(), things=THINGS)
    assert torch.equal(got.classes.cpu(), expected.classes) and torch.equal(got.instances.cpu(), expected.instances)
