"""The figure of the front and the overlays."""

from __future__ import annotations

import io
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.errors import InvalidInput
from hyctas.report.collect import collect
from hyctas.report.overlays import GAP, PANEL_WIDTH, ROWS, overlays
from hyctas.report.plot import pareto_figure, svg

COLOURS = [(200, 30, 30), (30, 200, 30)]


def test_figure_shows_front_limit_and_chosen(whole_run: Path) -> None:
    data = collect(whole_run)
    assert data.outcome
    figure = pareto_figure(data)
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    for name in ("front", "measured"):
        assert name in names
    choice = data.outcome.choice
    assert f"chosen: {100 * choice.evaluation.miou:.1f} %, {choice.measured_ms:.3g} ms measured" in names
    assert any(name.startswith("limit ") for name in names) and any(name.startswith("searched, ") for name in names)
    axes = figure.axes[0]
    assert "ms" in axes.get_xlabel() and "%" in axes.get_ylabel()
    star = next(line for line in axes.get_lines() if str(line.get_label()).startswith("chosen"))
    x, y = star.get_data()
    assert (float(x[0]), float(y[0])) == (choice.measured_ms, 100 * choice.evaluation.miou)


def test_figure_is_deterministic_and_well_formed(whole_run: Path) -> None:
    data = collect(whole_run)
    first, second = (svg(pareto_figure(data)) for _ in range(2))
    assert first == second
    ET.fromstring(first)
    assert "date" not in first.lower()


def test_figure_without_history_or_measurements(run: Path) -> None:
    import json

    (run / "history.jsonl").unlink()
    value = json.loads((run / "pareto.json").read_text())
    value["limits"]["latency_ms"] = None
    for member in (*value["front"], *value["finalists"]):
        member["measured_ms"] = None
    (run / "pareto.json").write_text(json.dumps(value))
    names = [text.get_text() for text in pareto_figure(collect(run)).legends[0].get_texts()]
    assert names[0] == "front" and names[1].endswith("ms predicted") and len(names) == 2


def test_no_search_no_figure(run: Path) -> None:
    (run / "pareto.json").unlink()
    with pytest.raises(InvalidInput, match="no front to draw"):
        pareto_figure(collect(run))


def example(height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    image = np.full((height, width, 3), 100, np.uint8)
    label = np.zeros((height, width), np.uint8)
    label[:, : width // 2] = 255
    return image, label, np.ones((height, width), np.uint8)


def test_three_panels_side_by_side() -> None:
    image, label, prediction = example(220, 440)
    (jpeg,) = overlays([image], [label], [prediction], COLOURS)
    pixels = np.asarray(Image.open(io.BytesIO(jpeg))).astype(int)
    assert pixels.shape == (220, 3 * 440 + 2 * GAP, 3)
    assert abs(pixels[110, 200] - 100).max() <= 4
    middle, right = pixels[110, 440 + GAP + 330], pixels[110, 2 * (440 + GAP) + 110]
    assert middle[0] > middle[1] + 60 and right[1] > right[0] + 60  # red by the label, green by the prediction
    ignored = pixels[60:160, 440 + GAP + 60 : 440 + GAP + 160]
    assert ignored.std() > 15 and abs(ignored[..., 0] - ignored[..., 1]).max() < 12  # grey stripes


def test_large_images_shrink_and_small_ones_grow() -> None:
    painted = overlays(*zip(example(500, 2000), example(24, 32), strict=True), COLOURS)
    sizes = [Image.open(io.BytesIO(jpeg)).size for jpeg in painted]
    assert sizes == [(3 * PANEL_WIDTH + 2 * GAP, 110), (3 * 32 * 13 + 2 * GAP, 24 * 13)]


def test_at_most_six_rows_and_equal_numbers() -> None:
    images, labels, predictions = (list(part) for part in zip(*[example(32, 48)] * 9, strict=True))
    assert len(overlays(images, labels, predictions, COLOURS)) == ROWS
    with pytest.raises(InvalidInput, match="9 images, 8 labels"):
        overlays(images, labels[:8], predictions, COLOURS)
    with pytest.raises(InvalidInput, match="example 1"):
        overlays(images[:2], [labels[0], labels[0][:8]], predictions[:2], COLOURS)


def test_overlays_are_deterministic_and_take_values_beyond_the_classes() -> None:
    image, _, _ = example(32, 48)
    label = np.arange(32 * 48).reshape(32, 48) - 5
    assert overlays([image], [label], [label], COLOURS) == overlays([image], [label], [label], COLOURS)
