"""Teachers: what they are, what they say of an image, how it is kept and cut, and what following one does to training."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from export import export_onnx
from export.errors import CorruptFile, InvalidInput, StartOver
from export.files import write_json, write_text
from hyctas.data import PREPROCESSING, Augment, Frames, Labels, Scenes, View, augment_view, default_colours, draw_view, normalise
from hyctas.network import Network, build, save_weights
from hyctas.space import tiny
from hyctas.training.config import Recipe
from hyctas.training.feed import CropFeed
from hyctas.training.loop import Trainer
from hyctas.training.losses import soft_label_loss
from hyctas.training.single import Single
from hyctas.training.soft_labels import SoftLabels, frame_file, label_frames
from hyctas.training.soft_map import Grid, SoftMap, average, coarsened, cut
from hyctas.training.teacher import check_classes, find_teachers, open_teachers

SCENES = Scenes(seed=0, train=6, val=4, size=(48, 64))
LABELS = SCENES.labels
ABOUT = {"preprocessing": json.dumps(PREPROCESSING.to_json()), "labels": json.dumps(LABELS.to_json())}


@pytest.fixture(scope="module")
def frames() -> Frames:
    return Frames(SCENES, "train", SCENES.samples("train"))


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(5)
    made = build(tiny().smallest(), LABELS.num_classes)
    with torch.no_grad():
        for name, tensor in made.named_parameters():
            if name.endswith("predict.conv.weight"):
                tensor.mul_(5)  # decided opinions
    return made.eval()


@pytest.fixture(scope="module")
def onnx_file(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "teacher.onnx"
    export_onnx(network, (48, 64), path, metadata=ABOUT)
    return path


@pytest.fixture(scope="module")
def run_folder(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    save_weights(network, folder / "network.safetensors", {"genotype": network.genotype.id})
    write_text(folder / "genotype.json", network.genotype.to_json())
    write_json(folder / "labels.json", LABELS.to_json())
    return folder


def small(path: Path, *, channels: int = LABELS.num_classes, softmax: bool = False, labels: bool = False,
          metadata: dict[str, str] = ABOUT) -> Path:  # fmt: skip
    """Write somebody's ONNX file of dynamic size: a 1x1 convolution at stride 4."""
    weight = np.random.default_rng(0).normal(size=(channels, 3, 1, 1)).astype(np.float32)
    nodes, last = [helper.make_node("Conv", ["x", "w"], ["y"], strides=[4, 4])], "y"
    kind, shape = TensorProto.FLOAT, [1, channels, "h", "w_"]
    if softmax:
        nodes, last = [*nodes, helper.make_node("Softmax", ["y"], ["p"], axis=1)], "p"
    if labels:
        nodes, last = [*nodes, helper.make_node("ArgMax", ["y"], ["l"], axis=1, keepdims=0)], "l"
        kind, shape = TensorProto.INT64, [1, "h", "w_"]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, "H", "W"])],
        [helper.make_tensor_value_info(last, kind, shape)], [onnx.numpy_helper.from_array(weight, "w")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, path)
    return path


def think(paths: list[Path], image: np.ndarray, temperature: float = 2.0) -> SoftMap:
    with open_teachers(find_teachers(paths), LABELS) as teacher:
        return teacher.soft_map(image, temperature)


def test_every_kind_says_the_same(network: Network, onnx_file: Path, run_folder: Path, frames: Frames) -> None:
    image = frames[0][0]
    tensor = torch.from_numpy(normalise(image.astype(np.float32) / 255, PREPROCESSING).transpose(2, 0, 1)[None])
    with torch.no_grad():
        wanted = (network.forward_native(tensor)[0] / 2).softmax(0).numpy()
    for path in (onnx_file, run_folder):
        found = think([path], image)
        assert found.grid == Grid(size=wanted.shape[1:], cell=(network.output_stride,) * 2)  # type: ignore[arg-type]
        np.testing.assert_allclose(found.probabilities, wanted, atol=1e-4)


def test_a_file_of_fixed_size_sees_the_image_resized(onnx_file: Path, network: Network) -> None:
    found = think([onnx_file], np.zeros((96, 64, 3), np.uint8))
    stride = network.output_stride
    assert found.grid.size == (48 // stride, 64 // stride) and found.grid.cell == (2 * stride, stride)


def test_dynamic_sizes_softmax_and_ensembles(tmp_path: Path, frames: Frames) -> None:
    image = frames[0][0][:47, :61]
    one, two = small(tmp_path / "a.onnx"), small(tmp_path / "b.onnx", softmax=True)
    logits, probabilities = think([one], image), think([two], image)
    assert logits.grid == Grid(size=(12, 16), cell=(4, 4))
    np.testing.assert_allclose(logits.probabilities, probabilities.probabilities, atol=1e-5)
    both = think([one, two], image)
    np.testing.assert_allclose(both.probabilities, logits.probabilities, atol=1e-5)


def test_an_ensemble_takes_the_finest_grid() -> None:
    coarse = SoftMap(probabilities=np.full((2, 2, 3), [[[1.0]], [[0.0]]], np.float32), grid=Grid(size=(2, 3), cell=(16, 16)))
    fine = SoftMap(probabilities=np.full((2, 4, 6), [[[0.0]], [[1.0]]], np.float32), grid=Grid(size=(4, 6), cell=(8, 8)))
    found = average([coarse, fine])
    assert found.grid == fine.grid
    np.testing.assert_allclose(found.probabilities, 0.5)
    p = np.random.default_rng(0).dirichlet([1, 1, 1], (9, 6)).transpose(2, 0, 1).astype(np.float32)
    less = coarsened(SoftMap(probabilities=p, grid=Grid(size=(9, 6), cell=(1, 2))))
    assert less.grid == Grid(size=(3, 3), cell=(4, 4))
    np.testing.assert_allclose(less.probabilities[:, 0, 0], p[:, :4, :2].mean((1, 2)), rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: folder / "none.onnx", "no such file"),
        (lambda folder: folder, "network.safetensors"),
        (lambda folder: small(folder / "a.onnx", channels=7, metadata={"preprocessing": ABOUT["preprocessing"]}), "these 10"),
        (lambda folder: small(folder / "a.onnx", labels=True), "argmax"),
        (lambda folder: small(folder / "a.onnx", metadata={}), "normalised"),
    ],
)
def test_what_is_no_teacher(make: Callable[[Path], Path], said: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=said) as error:
        think([make(tmp_path)], np.zeros((48, 64, 3), np.uint8))
    assert str(tmp_path) in str(error.value)


def test_other_classes_are_refused() -> None:
    def names(*given: str) -> Labels:
        return Labels(given, default_colours(len(given)))

    check_classes(Path("t"), ("Road", "class 1"), names("road", "sky"))
    with pytest.raises(InvalidInput, match="3 classes, the data set 2"):
        check_classes(Path("t"), ("a", "b", "c"), names("road", "sky"))
    with pytest.raises(InvalidInput, match="'sky', the data set's is 'road'"):
        check_classes(Path("t"), ("sky", "road"), names("road", "sky"))


@pytest.mark.parametrize(("scales", "agreeing"), [((0.4, 1.0), 0.85), ((1.0, 2.0), 0.97)])
def test_soft_labels_are_cut_as_the_labels_are(scales: tuple[float, float], agreeing: float) -> None:
    """A teacher that is the labels themselves, one cell per pixel, agrees with the labels of every crop."""
    rows, columns = np.arange(96)[:, None] // 16, np.arange(128)[None] // 16
    label = ((rows * 5 + columns * 3) % 12).astype(np.uint8)
    probabilities = np.eye(12, dtype=np.float32)[label].transpose(2, 0, 1)
    grid = Grid(size=(96, 128), cell=(1, 1))
    image = np.zeros((96, 128, 3), np.uint8)
    for seed in range(40):
        rng = np.random.default_rng(seed)
        config = Augment(crop=(64, 81), scale_min=scales[0], scale_max=scales[1])
        view = draw_view((96, 128), config, rng)
        seen = augment_view(image, label, view, config, rng, PREPROCESSING)[1]
        soft = cut(probabilities.__getitem__, grid, view, (64, 81))
        kept = seen != 255
        assert np.array_equal(soft.sum(0) > 0.5, kept) and np.allclose(soft.sum(0)[kept], 1, atol=1e-5)
        assert (soft.argmax(0) == seen)[kept].mean() > agreeing, seed


def test_a_coarse_map_is_read_bilinearly_where_the_crop_is() -> None:
    ramp = (np.arange(16) + 0.5) * 4  # the value of a cell is the place of its centre on the frame, in pixels
    grid = Grid(size=(12, 16), cell=(4, 4))
    view = View(crop=(24, 32), rows=(10, 22), columns=(20, 36), into_rows=slice(0, 24), into_columns=slice(0, 32), mirror=True)
    found = cut(np.broadcast_to(ramp, (1, 12, 16)).__getitem__, grid, view, (6, 8))
    np.testing.assert_allclose(found[0, 0], 36 - (np.arange(8) + 0.5) * 2, rtol=1e-5)


def test_labels_are_kept_and_made_once(run_folder: Path, frames: Frames, tmp_path: Path) -> None:
    files, folder, seen = find_teachers([run_folder]), tmp_path / "soft", list[tuple[int, int]]()
    label_frames(frames, files, folder, 2.0, lambda done, total: seen.append((done, total)))
    assert seen == [(n, 6) for n in range(1, 7)]
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    frame_file(folder, 3).unlink()
    soft = label_frames(frames, files, folder, 2.0, lambda done, total: seen.append((done, total)))
    assert seen[6:] == [(6, 6)], "only what is missing is made again"
    assert [p for p, t in before.items() if p.stat().st_mtime_ns != t] == [frame_file(folder, 3)]
    view = View(crop=(48, 64), rows=(0, 48), columns=(0, 64), into_rows=slice(0, 48), into_columns=slice(0, 64), mirror=False)
    np.testing.assert_allclose(soft.cut(3, view), think([run_folder], frames[3][0]).probabilities, atol=1e-3)

    later = replace(SCENES, val=5)
    label_frames(Frames(later, "train", later.samples("train")), files, folder, 2.0, lambda *counts: seen.append(counts))
    assert len(seen) == 7, "another val is no reason to label train again"
    with pytest.raises(InvalidInput, match="another temperature"):
        label_frames(frames, files, folder, 3.0)
    other = Frames(SCENES, "train", SCENES.samples("train")[:5])
    with pytest.raises(InvalidInput, match="other images"):
        label_frames(other, files, folder, 2.0)
    with pytest.raises(InvalidInput, match="another teacher"):
        label_frames(frames, files * 2, folder, 2.0)


def test_damaged_labels_are_named(run_folder: Path, frames: Frames, tmp_path: Path) -> None:
    files, path = find_teachers([run_folder]), frame_file(tmp_path, 2)
    soft = label_frames(frames, files, tmp_path, 2.0)
    whole = path.read_bytes()
    view = draw_view((48, 64), Augment(crop=(48, 64)), np.random.default_rng(0))
    for damaged in (whole[:-10], whole[:-1] + b"\x33", b"", whole[:20]):
        path.write_bytes(damaged)
        with pytest.raises(CorruptFile) as error:
            label_frames(frames, files, tmp_path, 2.0)
        assert error.value.path == path and StartOver() in error.value.remedies
    with pytest.raises(CorruptFile):
        soft.cut(2, view)


KILLED = """
import os, signal, sys
from pathlib import Path
from hyctas.data import Frames, Scenes
from hyctas.training.soft_labels import label_frames
from hyctas.training.teacher import find_teachers
scenes = Scenes(seed=0, train=6, val=4, size=(48, 64))
frames = Frames(scenes, "train", scenes.samples("train"))
stop = lambda done, total: os.kill(os.getpid(), signal.SIGKILL) if done == 3 else None
label_frames(frames, find_teachers([Path(sys.argv[1])]), Path(sys.argv[2]), 2.0, stop)
"""


def test_a_killed_job_continues_with_the_next_image(run_folder: Path, frames: Frames, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(run_folder), str(tmp_path)], env=dict(os.environ), timeout=60)
    assert done.returncode == -signal.SIGKILL
    seen: list[int] = []
    label_frames(frames, find_teachers([run_folder]), tmp_path, 2.0, lambda done, total: seen.append(done))
    assert seen == [4, 5, 6]


def test_loss_is_zero_at_the_teacher_and_ignores_padding() -> None:
    logits = torch.randn(2, 3, 4, 4)
    soft = (logits / 2).softmax(1)
    assert abs(float(soft_label_loss(logits, soft, 2.0))) < 1e-6
    other = torch.randn(2, 3, 4, 4)
    p, q = soft.double(), (other.double() / 2).softmax(1)
    expected = 4 * (p * (p / q).log()).sum(1)
    torch.testing.assert_close(soft_label_loss(other, soft, 2.0), expected.mean().float())
    soft[:, :, :2] = 0
    torch.testing.assert_close(soft_label_loss(other, soft, 2.0), expected[:, 2:].mean().float())
    assert float(soft_label_loss(other, torch.zeros_like(soft), 2.0)) == 0


def test_a_network_learns_from_its_teacher_alone(run_folder: Path, frames: Frames, tmp_path: Path) -> None:
    soft = label_frames(frames, find_teachers([run_folder]), tmp_path / "soft", 2.0)
    recipe = Recipe(steps=30, crop=(48, 64), batch=4, warmup_steps=1, learning_rate=5e-3, amp=False)
    student = build(tiny().smallest(), LABELS.num_classes)
    step = Single(student, recipe, frames, PREPROCESSING, teacher=soft, distillation=1.0)
    losses: list[float] = []
    Trainer(student, recipe, tmp_path / "c").run(step, lambda p: losses.append(p.numbers["distillation"]))
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:3])
    assert all(torch.equal(one, two) for one, two in zip(step.feed.batch(3), step.feed.batch(3), strict=True))
    assert step.feed.batch(3)[2].shape == (4, LABELS.num_classes, 48 // soft.stride, 64 // soft.stride)
    step.feed.close()


def test_crops_do_not_depend_on_the_teacher(run_folder: Path, frames: Frames, tmp_path: Path) -> None:
    soft: SoftLabels = label_frames(frames, find_teachers([run_folder]), tmp_path, 2.0)
    recipe = Recipe(steps=1, crop=(48, 64), batch=4)
    plain, taught = CropFeed(frames, recipe, PREPROCESSING), CropFeed(frames, recipe, PREPROCESSING, soft_labels=soft)
    assert all(torch.equal(one, two) for one, two in zip(plain.batch(7), taught.batch(7), strict=False))
    plain.close()
    taught.close()
