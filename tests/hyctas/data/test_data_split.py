import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.errors import InvalidInput
from hyctas.data.sample import Sample
from hyctas.data.split import honest_split


def clips(*lengths: int) -> list[Sample]:
    return [Sample(f"{c}_{i}", f"clip{c:03d}", i) for c, n in enumerate(lengths) for i in range(n)]


@given(st.lists(st.integers(1, 90), min_size=1, max_size=25), st.floats(0.1, 0.5), st.integers(0, 4), st.integers(0, 5))
def test_nothing_leaks(lengths: list[int], share: float, gap: int, seed: int) -> None:
    samples = clips(*lengths)
    try:
        split = honest_split(samples, share, gap, seed)
    except InvalidInput as error:
        assert "too few" in str(error)
        return
    parts = [set(split.weights), set(split.choosing), set(split.dropped)]
    assert parts[0] | parts[1] | parts[2] == set(samples) and sum(map(len, parts)) == len(samples)
    assert split.weights and split.choosing
    assert split == honest_split(samples, share, gap, seed)
    if split.method == "clips":
        assert not split.dropped
        assert not {s.clip for s in split.weights} & {s.clip for s in split.choosing}
        assert len({s.clip for s in split.weights}) >= 2
        assert abs(len(split.choosing) / len(samples) - share) <= 0.1 + 1e-9
    else:
        held: dict[str, list[int]] = {}
        for sample in split.choosing:
            held.setdefault(sample.clip, []).append(sample.index)
        assert all(abs(s.index - i) > gap for s in split.weights for i in held.get(s.clip, []))


def test_camvid_like_clips_are_cut_whole() -> None:
    split = honest_split(clips(62, 101, 204))
    assert split.method == "clips" and {s.clip for s in split.choosing} == {"clip001"}
    assert split == honest_split(clips(62, 101, 204))


def test_order_of_the_samples_does_not_matter() -> None:
    samples = clips(*[4] * 20)
    one, two = honest_split(samples, seed=3), honest_split(samples[::-1], seed=3)
    assert set(one.choosing) == set(two.choosing) and one.choosing == two.choosing[::-1]
    assert len(one.choosing) == 20
    assert one.choosing != honest_split(samples, seed=4).choosing


def test_one_long_clip_is_cut_in_several_blocks() -> None:
    split = honest_split(clips(367), gap=3)
    starts = [s for s in split.choosing if Sample(f"0_{s.index - 1}", s.clip, s.index - 1) not in split.choosing]
    assert split.method == "blocks" and 3 <= len(starts) <= 6
    assert 0.15 <= len(split.choosing) / 367 <= 0.35


@pytest.mark.parametrize(
    ("samples", "options", "words"),
    [
        (clips(3), {}, "too few"),
        ([], {}, "too few"),
        (clips(9, 9, 9), {"share": 1.0}, "share"),
        (clips(9, 9, 9), {"share": float("nan")}, "share"),
        (clips(9, 9, 9), {"gap": -1}, "gap"),
        (clips(9) + clips(9), {}, "same clip and index"),
    ],
)
def test_refusals(samples: list[Sample], options: dict[str, float], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        honest_split(samples, **options)  # type: ignore[arg-type]
