"""Panoptic quality: against a loop over segments, numbers worked by hand, and the rules for void and groups."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.errors import InvalidInput
from hyctas.panoptic import PanopticQuality, QualityMean, QualityResult

CLASSES, THINGS, VOID = 4, (2, 3), 255
Maps = tuple[np.ndarray, np.ndarray]


def random_maps(rng: np.random.Generator, shape: tuple[int, int], groups: bool) -> Maps:
    """Return classes and instances of a coarse random image; thing pixels without an instance only where `groups`."""
    height, width = shape
    coarse = rng.integers(0, 9, (height // 2 + 1, width // 2 + 1))
    segment = np.kron(coarse, np.ones((2, 2), int))[:height, :width]
    classes = np.array([0, 1, 2, 2, 2, 3, 3, VOID, 3 if groups else 1])[segment]
    instances = np.array([0, 0, 11, 5, 7, 900, 2, 0, 0])[segment]
    return classes, instances


def segments(maps: Maps) -> dict[tuple[int, int], set[int]]:
    """Return the pixels of each (class, instance), void included."""
    found: dict[tuple[int, int], set[int]] = {}
    for at, key in enumerate(zip(maps[0].ravel().tolist(), maps[1].ravel().tolist(), strict=True)):
        found.setdefault(key, set()).add(at)
    return found


def by_loops(pred: Maps, true: Maps) -> dict[int, list[float]]:
    """Return [sum of IoU, TP, FP, FN] per class by the words of the paper, one pair of segments after the other."""
    predicted, truth = segments(pred), segments(true)
    void = truth.pop((VOID, 0), set())
    groups = {key[0]: truth.pop(key) for key in list(truth) if key[0] in THINGS and key[1] == 0}
    predicted.pop((VOID, 0), None)
    counts = {c: [0.0, 0, 0, 0] for c in range(CLASSES)}
    matched = set()
    for t, t_pixels in truth.items():
        partners = []
        for p, p_pixels in predicted.items():
            iou = len(t_pixels & p_pixels) / len(t_pixels | (p_pixels - void))
            if p[0] == t[0] and iou > 0.5:
                partners.append((p, iou))
        assert len(partners) <= 1
        for p, iou in partners:
            matched.add(p)
            counts[t[0]][0] += iou
            counts[t[0]][1] += 1
        counts[t[0]][3] += not partners
    for p, p_pixels in predicted.items():
        excused = len(p_pixels & (void | groups.get(p[0], set()))) > len(p_pixels) / 2
        counts[p[0]][2] += p not in matched and not excused
    return counts


def scored(*images: tuple[Maps, Maps]) -> QualityResult:
    """Score pairs of (prediction, truth)."""
    quality = PanopticQuality(CLASSES, THINGS, VOID)
    for pred, true in images:
        quality.update(*pred, *true)
    return quality.result()


@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 9))
def test_equals_loops_over_segments(seed: int, height: int, width: int) -> None:
    rng, images, expected = np.random.default_rng(seed), [], {c: np.zeros(4) for c in range(CLASSES)}
    for _ in range(3):
        true = random_maps(rng, (height, width), groups=True)
        pred = random_maps(rng, (height, width), groups=False)
        # Copy a part of the truth so that segments match, but no group; other numbers for the rest keep classes apart.
        group = np.isin(true[0], THINGS) & (true[1] == 0)
        keep = (rng.random((height, width)) < rng.random()) & ~group
        pred = np.where(keep, true[0], pred[0]), np.where(keep, true[1], pred[1] + 1000 * (pred[1] > 0))
        images.append((pred, true))
        for c, counts in by_loops(pred, true).items():
            expected[c] += counts
    result = scored(*images)
    for c, (iou, tp, fp, fn) in expected.items():
        assert (result.tp[c], result.fp[c], result.fn[c]) == (tp, fp, fn)
        if tp + fp + fn:
            assert result.pq[c] == pytest.approx(iou / (tp + fp / 2 + fn / 2), abs=1e-12)
            assert result.sq[c] == pytest.approx(iou / max(tp, 1), abs=1e-12)
            assert result.pq[c] == pytest.approx(result.sq[c] * result.rq[c], abs=1e-12)  # type: ignore[operator]
        else:
            assert result.pq[c] is result.sq[c] is result.rq[c] is None


@given(st.integers(0, 10**6))
def test_permuted_instances_change_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    true, pred = random_maps(rng, (8, 10), groups=True), random_maps(rng, (8, 10), groups=False)

    def renamed(maps: Maps) -> Maps:
        names = np.concatenate([[0], rng.permutation(2000)[:1000] + 1])
        return maps[0], names[maps[1]]

    assert scored((renamed(pred), renamed(true))) == scored((pred, true))


@given(st.integers(0, 10**6))
def test_merged_parts_equal_the_whole(seed: int) -> None:
    rng = np.random.default_rng(seed)
    images = [(random_maps(rng, (6, 7), False), random_maps(rng, (6, 7), True)) for _ in range(4)]
    whole, parts = PanopticQuality(CLASSES, THINGS), [PanopticQuality(CLASSES, THINGS) for _ in range(2)]
    for i, (pred, true) in enumerate(images):
        whole.update(*pred, *true)
        parts[i % 2].update(*pred, *true)
    parts[0].merge(parts[1])
    merged, expected = parts[0].result(), whole.result()
    assert (merged.tp, merged.fp, merged.fn) == (expected.tp, expected.fp, expected.fn)
    assert [x or 0 for x in merged.pq] == pytest.approx([x or 0 for x in expected.pq], abs=1e-12)
    with pytest.raises(InvalidInput, match="things is"):
        whole.merge(PanopticQuality(CLASSES, (1, 2)))


def row(text: str, instances: str) -> Maps:
    """Read a one-row image: a digit per pixel, `.` = void."""
    classes = [VOID if c == "." else int(c) for c in text]
    return np.array([classes], np.uint8), np.array([[int(i) for i in instances]], np.int32)


def test_by_hand() -> None:
    """Stuff 0: IoU 4/5. Thing 2: one match of IoU 3/4, one missed, one invented. Stuff 1: only predicted. Thing 3: nowhere."""
    true = row("0000222222", "0000111122")
    pred = row("0000022212", "0000055506")
    result = scored((pred, true))
    assert (result.tp, result.fp, result.fn) == ((1, 0, 1, 0), (0, 1, 1, 0), (0, 0, 1, 0))
    assert result.pq == (4 / 5, 0.0, 0.75 / 2, None)
    assert result.sq == (4 / 5, 0.0, 0.75, None)
    assert result.rq == (1.0, 0.0, 0.5, None)
    assert result.things == QualityMean(0.375, 0.75, 0.5, 1)
    assert result.stuff == QualityMean(0.4, 0.4, 0.5, 2)
    assert result.all is not None and result.all.classes == 3
    assert result.all.pq == pytest.approx((0.8 + 0.375) / 3)


@pytest.mark.parametrize(
    ("pred", "true", "counts", "pq"),
    [
        pytest.param(row("2222", "1111"), row("22..", "1100"), (1, 0, 0), 1.0, id="1: void leaves the union"),
        pytest.param(row("2222", "1111"), row("2...", "1000"), (1, 0, 0), 1.0, id="2: a match is not excused"),
        pytest.param(row("2222", "1111"), row("0...", "0000"), (0, 0, 0), None, id="3: mostly on void is excused"),
        pytest.param(row("2222", "1111"), row("00..", "0000"), (0, 1, 0), 0.0, id="4: half on void is not more than half"),
        pytest.param(row("..22", "0011"), row("2222", "1111"), (0, 1, 1), 0.0, id="5: IoU of one half is no match"),
        pytest.param(row("....", "0000"), row("2222", "1111"), (0, 0, 1), 0.0, id="6: nothing predicted"),
        pytest.param(row("2222", "1111"), row("2222", "0000"), (0, 0, 0), None, id="7: on a group of its class is excused"),
        pytest.param(row("2222", "1111"), row("3333", "0000"), (0, 1, 0), 0.0, id="8: on a group of another class is not"),
        pytest.param(row("2222", "1111"), row("22.0", "0000"), (0, 0, 0), None, id="9: void and group add up"),
        pytest.param(row("22222", "11111"), row("22222", "11100"), (1, 0, 0), 0.6, id="10: a group stays in the union"),
        pytest.param(row("....", "0000"), row("....", "0000"), (0, 0, 0), None, id="11: all void"),
    ],
)
def test_rules(pred: Maps, true: Maps, counts: tuple[int, int, int], pq: float | None) -> None:
    result = scored((pred, true))
    assert (result.tp[2], result.fp[2], result.fn[2]) == counts and result.pq[2] == pq


def test_nothing_to_score() -> None:
    empty = scored()
    assert empty.all is empty.things is empty.stuff is None and empty.pq == (None,) * CLASSES
    none = np.zeros((0, 5), int)
    assert scored(((none, none), (none, none))) == empty
    no_things = PanopticQuality(1, ())
    no_things.update(*(np.zeros((2, 2), np.uint8),) * 4)
    assert no_things.result().pq == (1.0,) and no_things.result().things is None


GOOD = row("0022", "0012")


@pytest.mark.parametrize(
    ("pred", "true", "message"),
    [
        ((GOOD[0], GOOD[1][:, :3]), GOOD, r"one shape \(H, W\); got \(1, 4\), \(1, 3\)"),
        (row("0042", "0011"), GOOD, r"prediction holds the classes \[4\]; wanted 0..3, or 255"),
        (row("0023", "0011"), GOOD, r"prediction: instance 1 has the classes \[2, 3\]"),
        (GOOD, row("0122", "0112"), "truth holds instance 1 on class 1, which is stuff or void"),
        (row("0022", "0010"), GOOD, r"prediction holds pixels of the thing classes \[2\] with instance 0"),
        ((GOOD[0], -GOOD[1]), GOOD, "prediction holds instance -2"),
        ((GOOD[0] / 1.0, GOOD[1]), GOOD, "prediction: classes must be integers; got float64"),
    ],
)
def test_bad_input_is_a_sentence(pred: Maps, true: Maps, message: str) -> None:
    quality = PanopticQuality(CLASSES, THINGS)
    with pytest.raises(InvalidInput, match=message):
        quality.update(*pred, *true)
    assert quality.result() == scored(), "nothing was counted"


@pytest.mark.parametrize(("classes", "things", "ignore"), [(0, (), 255), (4, (4,), 255), (4, (-1,), 255), (4, (2,), 3)])
def test_bad_classes(classes: int, things: tuple[int, ...], ignore: int) -> None:
    with pytest.raises(InvalidInput, match="wanted 1 class or more"):
        PanopticQuality(classes, things, ignore)
