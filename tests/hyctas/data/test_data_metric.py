import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from export.errors import InvalidInput
from hyctas.data.metric import confusion, score

IMAGES = arrays(np.uint8, (4, 5), elements=st.sampled_from([0, 1, 2, 255]))
GUESSES = arrays(np.uint8, (4, 5), elements=st.integers(0, 2))


@given(IMAGES, GUESSES)
def test_against_the_definition(label: np.ndarray, guess: np.ndarray) -> None:
    matrix = confusion(label, guess, 3)
    assert matrix.dtype == np.int64 and matrix.sum() == (label != 255).sum()
    if not matrix.sum():
        with pytest.raises(InvalidInput, match="nothing to score"):
            score(matrix)
        return
    result, kept = score(matrix), label != 255
    for c in range(3):
        union = (((label == c) | (guess == c)) & kept).sum()
        expected = ((label == c) & (guess == c)).sum() / union if union else None
        assert result.iou[c] == (None if expected is None else pytest.approx(expected))
        assert result.present[c] == (label == c).any()
    assert result.miou == pytest.approx(np.mean([v for v in result.iou if v is not None]))
    assert result.pixel_accuracy == pytest.approx((label == guess)[kept].mean())


def test_absent_classes() -> None:
    label, guess = np.array([0, 0, 255]), np.array([0, 2, 1])
    result = score(confusion(label, guess, 4))
    # 1 and 3 are nowhere (the guess of 1 is ignored); 2 is only predicted.
    assert result.iou == (0.5, None, 0.0, None) and result.miou == 0.25
    assert result.present == (True, False, False, False) and "counts 0" in result.policy


def test_confusions_add_up() -> None:
    rng = np.random.default_rng(0)
    label, guess = rng.integers(0, 3, (2, 6, 6)), rng.integers(0, 3, (2, 6, 6))
    assert np.array_equal(confusion(label, guess, 3), sum(confusion(a, b, 3) for a, b in zip(label, guess, strict=True)))


@pytest.mark.parametrize(
    ("label", "guess", "words"),
    [([0, 1], [0], "must be equal"), ([0, 5], [0, 0], "label holds"), ([0, 1], [0, 7], "prediction holds")],
)
def test_bad_input(label: list[int], guess: list[int], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        confusion(np.array(label), np.array(guess), 2)


@pytest.mark.parametrize("matrix", [np.zeros((2, 3), int), -np.eye(2, dtype=int)])
def test_bad_matrix(matrix: np.ndarray) -> None:
    with pytest.raises(InvalidInput, match="square"):
        score(matrix)
