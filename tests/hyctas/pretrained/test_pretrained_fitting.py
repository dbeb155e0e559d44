"""Fitting operators to trained blocks: errors fall, a killed run continues exactly, a fitted operator hurts less than a random one.

The trained trunk is EfficientNet-Lite0's shape with weights from `named_weights.py`, in the space `tiny`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import named_weights
import pytest
import torch
from torch import Tensor

from hyctas.arch.genotype import Cell
from hyctas.arch.operators import Conv, DownUp, Residual
from hyctas.data import PREPROCESSING, Frames, Scenes
from hyctas.nn.supernet import Supernet
from hyctas.plan import lower
from hyctas.pretrained.staging import sorted_by_importance, trunk_cells, trunk_weights
from hyctas.pretrained.weights import Loaded, start_supernet
from hyctas.space import tiny
from hyctas.training.config import SupernetRecipe
from hyctas.training.evaluate import whole_images
from hyctas.training.fitting import fit, places, summary
from hyctas.training.loop import Progress

TINY = tiny()
RECIPE = SupernetRecipe(steps=1, crop=(48, 64), batch=4, amp=False, threads=1)
STEPS = 30


@pytest.fixture(scope="module")
def frames() -> Frames:
    scenes = Scenes(seed=0, train=16, val=4, size=(48, 64))
    return Frames(scenes, "train", scenes.samples("train"))


def started() -> tuple[Supernet, Loaded, tuple[Cell, ...]]:
    trunk = sorted_by_importance(named_weights.trunk("timm_lite0"))
    torch.manual_seed(0)
    supernet = Supernet(TINY, 5)
    return supernet, start_supernet(supernet, trunk_weights(trunk), same_classes=False), trunk_cells(trunk)


def fitted(frames: Frames, path: Path, stop: int | None = None) -> tuple[Supernet, dict[str, list[float]]]:
    supernet, loaded, cells = started()

    def watch(progress: Progress) -> None:
        if progress.step == stop:
            raise InterruptedError

    recipe = replace(RECIPE, save_seconds=0.0)
    return supernet, fit(supernet, places(supernet, loaded, cells), recipe, STEPS, frames, PREPROCESSING, path, watch)


@pytest.fixture(scope="module")
def done(frames: Frames, tmp_path_factory: pytest.TempPathFactory) -> tuple[Supernet, dict[str, list[float]]]:
    return fitted(frames, tmp_path_factory.mktemp("fit") / "fitting.checkpoint.pt")


def test_places_follow_the_trained_trunk() -> None:
    supernet, loaded, cells = started()
    found = places(supernet, loaded, cells)
    assert [(p.stage, p.ordinal) for p in found if p.trained is None] == [("8", 2)], "all other cells of `tiny` are Lite0's"
    assert {name for p in found for name in p.slots} == {
        name for name in loaded.random if name.startswith("stage.") and not any(op in name for op in ("attention", "context"))
    } - {"stage.s8.2.inverted.1", "stage.s8.2.residual.1"}
    assert {"stage.s8.2.inverted.1", "stage.s8.2.residual.1"} <= set(loaded.identity)
    assert all(op.sources[0] in (40, 80) and op.out == 80 for p in found if p.stage == "16a" for op in p.slots.values())
    assert not places(supernet, loaded, ())


def test_operators_behind_an_inverted_residual_are_fitted_without_relu() -> None:
    supernet, loaded, cells = started()
    later = [op for p in places(supernet, loaded, cells) if p.ordinal for op in p.slots.values()]
    assert {type(op) for op in later} == {Conv, DownUp, Residual}
    assert not any(op.relu for op in later if isinstance(op, Conv)) and all(op.linear for op in later if isinstance(op, DownUp))


def test_errors_fall_and_trained_blocks_stay(done: tuple[Supernet, dict[str, list[float]]]) -> None:
    supernet, errors = done
    before, loaded, _ = started()
    assert all(after < first for first, after in errors.values()), errors
    assert f"fitted {len(errors)} operators" in summary(errors, STEPS)
    for name in (*loaded.whole, *loaded.sliced):
        pairs = zip(before.get_submodule(name).parameters(), supernet.get_submodule(name).parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_a_killed_fit_continues_exactly(
    done: tuple[Supernet, dict[str, list[float]]], frames: Frames, tmp_path: Path
) -> None:  # fmt: skip
    with pytest.raises(InterruptedError):
        fitted(frames, tmp_path / "x", stop=STEPS // 2)
    supernet, errors = fitted(frames, tmp_path / "x")
    assert errors == done[1]
    assert all(map(torch.equal, supernet.parameters(), done[0].parameters()))


def test_a_fitted_operator_hurts_less_than_a_random_one(done: tuple[Supernet, dict[str, list[float]]], frames: Frames) -> None:
    """Swap one trained block of a network: its last feature moves less where the other operator was fitted."""
    images, _ = whole_images(frames, range(8), PREPROCESSING)
    trained = {f"stem.{stage}.first": "inverted" for stage in ("4", "8")} | {
        "stem.kind": "separable", "branches": (16,), "b16.8.1.op": "inverted", "b16.16a.first": "inverted",
        "b16.16a.1.op": "inverted", "stem.2.width": 16, "stem.4.width": 16, "stem.8.width": 24, "b16.16a.width": 32,
    }  # fmt: skip

    def last_feature(supernet: Supernet, **swap: str) -> Tensor:
        plan = lower(TINY.network(trained | swap), (48, 64), 5)
        values = {"image": images}
        for node in plan.nodes:
            if node.part in ("stem", "trunk"):
                values[node.name] = supernet.slot(node).run(node.operator, node.blocks, [values[name] for name in node.inputs])
        return list(values.values())[-1]

    fresh, *_ = started()
    with torch.no_grad():
        whole = last_feature(fresh)
        assert torch.equal(whole, last_feature(done[0]))
        for swap in ({"b16.16a.1.op": "conv"}, {"b16.8.1.op": "downup"}, {"b16.16a.first": "residual"}):
            random, less = ((last_feature(supernet, **swap) - whole).square().mean() for supernet in (fresh, done[0]))
            assert less < random, swap
