import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.codec import convert
from export.errors import InvalidInput
from hyctas.data.labels import CAMVID, CITYSCAPES, CITYSCAPES_IDS, Labels, default_colours


@pytest.mark.parametrize("labels", [CAMVID, CITYSCAPES])
def test_json_round_trip(labels: Labels) -> None:
    assert convert(Labels, labels.to_json()) == labels


def test_tables() -> None:
    assert CAMVID.num_classes == 11 and CAMVID.names[6] == "SignSymbol"
    assert CITYSCAPES.num_classes == len(CITYSCAPES_IDS) == 19
    assert CITYSCAPES.names[6] == "traffic light" and CITYSCAPES.colours[13] == (0, 0, 142)


@given(st.integers(0, 255))
def test_default_colours_differ(count: int) -> None:
    colours = default_colours(count)
    assert len(colours) == count == len(set(colours))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([], "object"),
        ({"names": ["a"]}, "lacks the field `colours`"),
        ({"names": "a", "colours": []}, "names is 'a'; expected `array`"),
        ({"names": ["a"], "colours": [1]}, r"colours\[0\] is 1; expected `array`"),
        ({"names": ["a"], "colours": [[1, 2]]}, "expected `array` of length 3"),
        ({"names": ["a"], "colours": [[1, 2, 300]]}, "three integers"),
        ({"names": [], "colours": []}, "1 to 255"),
        ({"names": ["a", "b"], "colours": [[1, 2, 3]]}, "as many colours"),
        ({"names": ["a"], "colours": [[1, 2, 3]], "ignore": 0}, "must lie above"),
        ({"names": ["a"], "colours": [[1, 2, 3]], "ignore": "x"}, "ignore is 'x'; expected `int`"),
    ],
)
def test_bad_labels(value: object, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        convert(Labels, value)
