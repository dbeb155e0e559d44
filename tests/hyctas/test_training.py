"""Training: losses against formulas, the schedule, exact continuation after a stop, and checkpoints."""

from __future__ import annotations

import ctypes
import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from export.bundle.imaging import Preprocessing
from export.errors import CheckFailed, CorruptFile, Give, InvalidInput, StartOver
from hyctas.data import PREPROCESSING, Frames, Scenes
from hyctas.network import build
from hyctas.nn.supernet import Supernet
from hyctas.space import tiny
from hyctas.training.config import Recipe, SupernetRecipe
from hyctas.training.evaluate import estimation_batches, evaluate, reestimate_norms, whole_images
from hyctas.training.feed import CropFeed
from hyctas.training.loop import Trainer
from hyctas.training.losses import class_weights, distillation_loss, segmentation_loss
from hyctas.training.sandwich import Sandwich
from hyctas.training.single import Single
from tests.hyctas.stopping import run_until

TINY = tiny()
LITE = Preprocessing(mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
"""What EfficientNet-Lite was trained with."""


@pytest.fixture(scope="module")
def frames() -> Frames:
    scenes = Scenes(seed=0, train=16, val=4, size=(48, 64))
    return Frames(scenes, "train", scenes.samples("train"))


def recipe(steps: int, **other: object) -> Recipe:
    return Recipe(steps=steps, crop=(48, 64), batch=4, warmup_steps=2, amp=False, **other)  # type: ignore[arg-type]


def test_cross_entropy_ignores_and_weighs() -> None:
    logits = torch.randn(1, 3, 2, 2)
    labels = torch.tensor([[[0, 1], [255, 2]]])
    weights = torch.tensor([1.0, 2.0, 4.0])
    moved = logits + 0.5 * weights.log()[:, None, None]  # half of what weights do to logits
    expected = torch.nn.functional.cross_entropy(moved, labels, weights, ignore_index=255)
    torch.testing.assert_close(segmentation_loss(logits, labels, weights), expected)
    nothing = segmentation_loss(logits, torch.full_like(labels, 255), weights)
    assert nothing.item() == 0


def test_ohem_keeps_hard_pixels_only() -> None:
    logits = torch.zeros(1, 2, 1, 4)
    logits[0, 0, 0] = torch.tensor([9.0, 9.0, 9.0, -1.0])  # three easy pixels, one hard
    labels = torch.zeros(1, 1, 4, dtype=torch.int64)
    hard = torch.nn.functional.cross_entropy(logits, labels, reduction="none")[0, 0, 3]
    torch.testing.assert_close(segmentation_loss(logits, labels, None, "ohem"), hard)


def test_class_weights_prefer_rare_classes() -> None:
    weights = class_weights(torch.tensor([900, 90, 10]))
    assert weights[0] < weights[1] < weights[2]
    assert abs(float((weights * torch.tensor([0.9, 0.09, 0.01])).sum()) - 1) < 1e-5


def test_distillation_is_least_at_the_teacher() -> None:
    teacher = torch.randn(1, 3, 4, 4)
    at_teacher, elsewhere = distillation_loss(teacher, teacher), distillation_loss(torch.zeros_like(teacher), teacher)
    assert at_teacher < elsewhere
    assert torch.isfinite(distillation_loss(torch.randn(1, 3, 2, 2), teacher))


def test_crops_depend_on_the_step_only(frames: Frames) -> None:
    one, two = CropFeed(frames, recipe(9), PREPROCESSING), CropFeed(frames, recipe(9), PREPROCESSING)
    one.batch(0)
    one.batch(1)
    assert torch.equal(one.batch(5)[0], two.batch(5)[0])
    seen = {index for step in range(4) for index in (two._index(step * 4 + i) for i in range(4))}
    assert seen == set(range(16)), "an epoch shows every image once"
    one.close()
    two.close()


def test_crops_and_whole_images_are_normalised_alike(frames: Frames) -> None:
    """A grey image, at a scale and light that change nothing, is the same number everywhere: (value - mean) / std."""
    grey = Frames(frames.source, "train", frames.samples[:4])
    grey._frames = [(np.full_like(image, 255), label) for image, label in grey]
    feed = CropFeed(grey, recipe(1, scale=(1.0, 1.0)), LITE)
    feed.augmentation = dataclasses.replace(feed.augmentation, brightness=0.0, offset=0.0)
    crops, _ = feed.batch(0)
    feed.close()
    whole, _ = whole_images(grey, [0, 1], LITE)
    (estimated,) = estimation_batches(grey, 0, 1, 4, LITE)
    for images in (crops, whole, estimated):
        torch.testing.assert_close(images, torch.ones_like(images))


def test_processes_share_the_crops_of_one(frames: Frames) -> None:
    feeds = [CropFeed(frames, recipe(9, colour=0.2), PREPROCESSING, rank, world) for world in (1, 2, 4) for rank in range(world)]
    batches = [feed.batch(3) for feed in feeds]
    for shares in (batches[1:3], batches[3:]):
        for whole, *parts in zip(batches[0], *shares, strict=True):
            assert torch.equal(whole, torch.cat(parts))
    for feed in feeds:
        feed.close()


def test_micro_batches_are_as_equal_as_can_be() -> None:
    sizes = [recipe(1, device_batch=size).micro_batches(1) for size in (None, 3, 4, 9)]
    assert sizes == [[4], [2, 2], [4], [4]]
    seven = Recipe(steps=1, batch=7, device_batch=3)
    assert seven.micro_batches(1) == [3, 2, 2] and seven.micro_batches(7) == [1]
    with pytest.raises(InvalidInput, match="7, which 2 processes cannot share") as found:
        seven.micro_batches(2)
    assert found.value.remedies == ("start 1 or 7 processes", Give("batch", "6"), Give("batch", "8"))
    with pytest.raises(InvalidInput, match="set it to 3,"):
        dataclasses.replace(seven, device_batch=2).micro_batches(1)
    assert seven.identity() == Recipe(steps=1, batch=7).identity(), "a run may be continued with another device_batch"


@pytest.mark.parametrize("kind", ["network", "supernet"])
def test_micro_batches_add_up_to_the_batch(kind: str, frames: Frames, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and gradients of a step are the same, norms aside, whose statistics are a micro-batch's: here they only scale."""

    def scaled(*arguments: object, **_: object) -> torch.Tensor:
        x, _, _, weight, bias, *_ = arguments
        return 0.1 * x * weight[:, None, None] + bias[:, None, None]  # type: ignore[operator, index, no-any-return]

    monkeypatch.setattr("torch.nn.functional.batch_norm", scaled)
    found = []
    for device_batch in (None, 3):
        torch.manual_seed(0)
        shared = {"steps": 1, "crop": (48, 64), "batch": 5, "amp": False, "scale": (0.5, 2.0), "device_batch": device_batch}
        if kind == "supernet":
            settings: Recipe = SupernetRecipe(**shared, random_networks=1)  # type: ignore[arg-type]
            model: torch.nn.Module = Supernet(TINY, 10)
            step = Sandwich(model, settings, frames, PREPROCESSING)  # type: ignore[arg-type]
        else:
            settings, model = Recipe(**shared), build(TINY.smallest(), 10, auxiliary=True)  # type: ignore[arg-type]
            step = Single(model, settings, frames, PREPROCESSING, 0.4)  # type: ignore[assignment]
        loss = step(0)["loss"]
        step.feed.close()
        found.append((loss, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])))
    (loss, gradient), (loss_in_parts, gradient_in_parts) = found
    assert loss_in_parts == pytest.approx(loss, rel=1e-6)
    torch.testing.assert_close(gradient_in_parts, gradient, rtol=1e-3, atol=1e-5)
    assert gradient.abs().max() > 1e-2


def train(frames: Frames, path: Path, steps: int, stop: int | None = None, **other: object) -> Trainer:
    torch.manual_seed(1)
    network = build(TINY.smallest(), 10)
    settings = recipe(steps, **other)
    step = Single(network, settings, frames, PREPROCESSING)
    trainer = Trainer(network, settings, path)

    run_until(trainer, step, stop)
    step.feed.close()
    return trainer


@pytest.mark.parametrize("other", [{}, {"ema": 0.9, "schedule": "cosine", "colour": 0.3}], ids=["plain", "all"])
def test_a_stopped_run_continues_exactly(frames: Frames, tmp_path: Path, other: dict[str, object]) -> None:
    whole = train(frames, tmp_path / "a", 6, **other)
    train(frames, tmp_path / "b", 6, stop=3, **other)
    continued = train(frames, tmp_path / "b", 6, **other)
    assert continued.step == whole.step == 6
    for one, two in zip(whole.model.parameters(), continued.model.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)


def test_training_ends_with_averaged_weights(frames: Frames, tmp_path: Path) -> None:
    """Average after step n: decay(n) * average + (1 - decay(n)) * weights, decay(n) = min(ema, (1 + n) / (10 + n))."""
    torch.manual_seed(1)
    network, settings = build(TINY.smallest(), 10), recipe(5, ema=0.2)
    step, trainer = Single(network, settings, frames, PREPROCESSING), Trainer(network, settings, tmp_path / "x")
    seen = [[p.detach().clone() for p in network.parameters()]]
    trainer.run(step, lambda progress: seen.append([p.detach().clone() for p in network.parameters()]))
    step.feed.close()
    expected = seen[0]
    for n, weights in enumerate(seen[1:]):
        decay = min(0.2, (1 + n) / (10 + n))
        expected = [decay * mean + (1 - decay) * now for mean, now in zip(expected, weights, strict=True)]
    assert not torch.equal(seen[-1][0], expected[0])
    torch.testing.assert_close([p.detach() for p in network.parameters()], expected)


def test_a_step_with_infinite_gradients_leaves_the_average(tmp_path: Path) -> None:
    network = build(TINY.smallest(), 3)
    trainer = Trainer(network, recipe(2, ema=0.5), tmp_path / "x")
    before = [p.detach().clone() for p in network.parameters()]

    def step(number: int) -> dict[str, float]:
        for parameter in network.parameters():
            parameter.grad = torch.full_like(parameter, float("inf"))
        return {"loss": 1.0}

    trainer.run(step)
    assert all(map(torch.equal, before, network.parameters()))


def test_the_trunk_learns_at_its_own_rate(frames: Frames, tmp_path: Path) -> None:
    moved: dict[float, dict[str, float]] = {}
    for factor in (0.0, 0.1, 1.0):
        torch.manual_seed(1)
        network, settings = build(TINY.smallest(), 10), recipe(1, trunk_rate=factor)
        trunk = {name for name, _ in network.named_parameters() if name.startswith("stem")}
        step = Single(network, settings, frames, PREPROCESSING)
        before = {name: p.detach().clone() for name, p in network.named_parameters()}
        Trainer(network, settings, tmp_path / f"{factor}", pretrained=trunk).run(step)
        step.feed.close()
        moved[factor] = {name: float((p - before[name]).detach().abs().sum()) for name, p in network.named_parameters()}
    assert trunk and all(moved[0.0][name] == 0 < moved[1.0][name] for name in trunk)
    assert all(abs(moved[0.1][name] / moved[1.0][name] - 0.1) < 0.01 for name in trunk)
    assert all(moved[0.0][name] == moved[1.0][name] for name in moved[0.0].keys() - trunk)
    with pytest.raises(InvalidInput, match="nowhere"):
        Trainer(network, settings, tmp_path / "y", pretrained=["stem.nowhere"])


def test_damaged_checkpoint_is_named(frames: Frames, tmp_path: Path) -> None:
    path = tmp_path / "c"
    train(frames, path, 4, stop=2)
    whole = path.read_bytes()
    for damaged in (whole[:-2000], whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 1]) + whole[len(whole) // 2 + 1 :]):
        path.write_bytes(damaged)
        with pytest.raises(CorruptFile) as found:
            train(frames, path, 4)
        assert found.value.remedies == (StartOver(),)
    path.write_bytes(whole[:-32])  # as it was written before checkpoints had a hash
    train(frames, path, 4)
    path.write_bytes(b"")
    with pytest.raises(CorruptFile):
        train(frames, path, 4)


def test_full_disk_keeps_the_old_checkpoint(frames: Frames, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c"
    trainer = train(frames, path, 4, stop=2)
    before = path.read_bytes()

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        trainer.save()
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_infinite_loss_stops_with_advice(tmp_path: Path) -> None:
    network = build(TINY.smallest(), 3)
    trainer = Trainer(network, recipe(9), tmp_path / "x")
    with pytest.raises(CheckFailed, match="set a lower learning_rate"):
        trainer.run(lambda step: {"loss": float("nan")})


@pytest.mark.parametrize(("schedule", "middle"), [("poly", 0.5**0.9), ("cosine", 0.5)])
def test_learning_rate_warms_up_and_falls(tmp_path: Path, schedule: str, middle: float) -> None:
    trainer = Trainer(build(TINY.smallest(), 3), recipe(10, schedule=schedule), tmp_path / "x")
    rates = []
    for step in range(11):
        trainer.step = step
        rates.append(trainer.learning_rate)
    assert rates[0] < rates[1] and rates[1:] == sorted(rates[1:], reverse=True) and rates[10] == 0
    assert abs(rates[5] / trainer.recipe.learning_rate - middle) < 1e-9


@pytest.mark.slow
def test_supernet_learns_and_notes_its_ratios(frames: Frames, tmp_path: Path) -> None:
    settings = SupernetRecipe(steps=5, crop=(32, 48), batch=4, warmup_steps=1, learning_rate=5e-3, ema=0.9)
    supernet = Supernet(TINY, 10)
    step = Sandwich(supernet, settings, frames, PREPROCESSING)
    losses: list[float] = []
    trainer = Trainer(supernet, settings, tmp_path / "s", step.state)
    trainer.run(step, lambda p: losses.append(p.numbers["loss"]))
    step.feed.close()
    assert trainer.average is not None and all(map(torch.equal, trainer.average.values, supernet.parameters()))
    assert losses[-1] < losses[0]
    assert abs(sum(step.ratios) - 1) < 1e-9 and any(step.state["lag"])
    network = supernet.extract(TINY.smallest())
    reestimate_norms(network, [whole_images(frames, range(8), PREPROCESSING)[0]])
    assert 0 <= evaluate(network, frames, 10, PREPROCESSING).miou <= 1


def test_lagging_branch_counts_are_drawn_more(frames: Frames) -> None:
    settings = SupernetRecipe(steps=1, crop=(48, 64), batch=4, ratios=(1, 1, 1))
    step = Sandwich(Supernet(TINY, 10), settings, frames, PREPROCESSING)
    step.state["lag"] = [0.0, 0.0, 0.5]
    assert step.ratios[2] > step.ratios[0] == step.ratios[1]


@pytest.mark.parametrize("bad", [{}, {"steps": 1, "minutes": 1.0}, {"steps": 1, "loss": "mse"}, {"steps": 1, "ema": 1.0}])
def test_bad_recipes(bad: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        Recipe(**bad)  # type: ignore[arg-type]


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")
def test_freed_memory_is_kept_while_training() -> None:
    code = """
import resource
from hyctas.training.freed_memory import freed_memory_kept
with freed_memory_kept():
    bytearray(b"x") * 2**26
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(b"y") * 2**26  # 16,384 pages, which are new by default
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    assert int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout) < 100
