"""What a data set lacks stops a training before its first step, and nothing that was trained is lost at its end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.errors import InvalidInput
from export.files import write_json
from hyctas.commands import network_training
from hyctas.commands.datasets import open_dataset
from hyctas.space import tiny
from tests.hyctas.cli.conftest import Command, expect

CLIPS = ("a", "b", "c", "d")


def write(root: Path, split: str, name: str, label: np.ndarray) -> None:
    for folder, pixels in (("images", np.random.default_rng(0).integers(0, 255, (*label.shape, 3))), ("labels", label)):
        path = root / folder / split / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path)


def mask(size: tuple[int, int] = (48, 64), low: int = 0, high: int = 1) -> np.ndarray:
    return np.where(np.arange(size[1]) < size[1] // 2, low, high)[None].repeat(size[0], axis=0)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    for clip in CLIPS:
        for frame in (1, 2):
            write(root, "train", f"{clip}_{frame}", mask())
    write(root, "val", "v_1", mask())
    (root / "classes.txt").write_text("bg\nfg\n")
    return root


@pytest.fixture
def network(tmp_path: Path) -> Path:
    path = tmp_path / "genotype.json"
    path.write_text(tiny().sample(np.random.default_rng(0)).to_json())
    return path


def train(command: Command, data: Path, network: Path, *more: object) -> tuple[int, str]:
    return command(
        "train", "network", "--network", network, "--data", data, "--run", data.parent / "run", "--init", "none",
        "--steps", 2, "--batch", 2, "--crop", "32x32", *more,
    )  # fmt: skip


def test_what_is_ignored_and_absent_is_printed(command: Command, data: Path, network: Path) -> None:
    write(data, "val", "v_1", mask(high=255))
    text = expect(train(command, data, network), 0)
    assert "data: data (plain layout): 6 images to train on, 2 to choose by (cut by clips), 1 to report" in text
    assert "to train on: 0.0% of the pixels ignored\n" in text
    assert "to report: 50.0% of the pixels ignored; no pixel of fg\n" in text


def test_masks_of_0_and_255_stop(command: Command, data: Path, network: Path) -> None:
    for path in (data / "labels").rglob("*.png"):
        write(data, path.parent.name, path.stem, mask(high=255))
    text = expect(train(command, data, network), 2, "no pixel of train is of 'fg'; 50.0% of its pixels are ignored")
    assert "hold 0 (bg), 255 (ignored)" in text and "absent_classes = true" in text and not (data.parent / "run").exists()
    settings = data.parent / "settings.toml"
    settings.write_text("absent_classes = true\n")
    assert train(command, data, network, "--config", settings)[0] == 0
    config = json.loads((data.parent / "run/train-network.json").read_text())["config"]
    assert "absent_classes" not in config["recipe"]  # it decides nothing, so it is no new training


def test_train_ids_in_files_named_label_ids_stop(command: Command, tmp_path: Path, network: Path) -> None:
    root = tmp_path / "cities"
    for split, city in (("train", "ulm"), ("train", "bonn"), ("train", "jena"), ("val", "lindau")):
        ids = Image.fromarray(np.arange(200, dtype=np.uint8).reshape(10, 20) % 19)
        files = {"leftImg8bit/{}/{}_leftImg8bit.png": Image.new("RGB", ids.size), "gtFine/{}/{}_gtFine_labelIds.png": ids}
        for name, picture in files.items():
            path = root / name.format(f"{split}/{city}", f"{city}_000000_000019")
            path.parent.mkdir(parents=True)
            picture.save(path)
    text = expect(train(command, root, network), 2, "'sky'", "18 (ignored)")
    assert "'pole'" not in text


@pytest.mark.parametrize(("split", "part"), [("val", "to report"), ("train", "to train on")])
def test_a_part_without_a_labelled_pixel_stops(command: Command, data: Path, network: Path, split: str, part: str) -> None:
    for path in (data / "labels" / split).iterdir():
        write(data, split, path.stem, mask(low=255, high=255))
    expect(train(command, data, network), 2, f"images {part} are ignored", "255 (ignored)")
    assert not (data.parent / "run").exists()


def test_a_choosing_part_without_a_labelled_pixel_stops(command: Command, data: Path, network: Path) -> None:
    for sample in open_dataset(str(data), check=False).choose:
        write(data, "train", sample.name, mask(low=255, high=255))
    expect(train(command, data, network), 2, "images to choose by are ignored")
    assert not (data.parent / "run").exists()


def test_images_of_two_sizes_are_trained_on_and_scored(command: Command, data: Path, network: Path) -> None:
    for clip in CLIPS[:2]:
        write(data, "train", f"{clip}_1", mask((40, 72)))
    write(data, "val", "v_2", mask((33, 65)))
    text = expect(train(command, data, network), 0, "images of 3 sizes: 48x64 (7 images), 40x72 (2 images), 33x65 (1 images)")
    assert "mIoU" in text and (data.parent / "run/network.safetensors").exists()


def test_a_supernet_is_trained_on_images_of_two_sizes(command: Command, data: Path) -> None:
    write(data, "train", "a_1", mask((40, 72)))
    code, text = command(
        "train", "supernet", "--data", data, "--run", data.parent / "run", "--space", "tiny", "--steps", 1, "--batch", 2,
        "--crop", "32x32", "--init", "none",
    )  # fmt: skip
    assert code == 0 and "images of 2 sizes" in text and (data.parent / "run/supernet.safetensors").exists(), text


def test_a_training_ends_in_a_checkpoint_and_a_failed_scoring_is_repeated_alone(
    command: Command, data: Path, network: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(network_training, "evaluate", lambda *_, **__: (_ for _ in ()).throw(InvalidInput("the disk is gone")))
        code, text = train(command, data, network)
    run = data.parent / "run"
    assert code == 2 and "the disk is gone" in text and (run / "network.safetensors").exists()
    weights = (run / "network.safetensors").stat().st_size
    expect(train(command, data, network), 0, "continuing at step 2")
    assert (run / "network.safetensors").stat().st_size == weights


def test_a_changed_val_is_scored_again_and_not_trained_again(command: Command, data: Path, network: Path) -> None:
    assert train(command, data, network)[0] == 0
    run = data.parent / "run"
    before, weights = json.loads((run / "scores.json").read_text()), (run / "network.safetensors").read_bytes()
    write(data, "val", "v_2", mask(low=1, high=1))
    expect(train(command, data, network), 0, "already trained", "val is another than before: mIoU")
    after = json.loads((run / "scores.json").read_text())
    assert after["choose"] == before["choose"] and after["val"] != before["val"]
    assert (run / "network.safetensors").read_bytes() == weights
    code, text = train(command, data, network)
    assert code == 0 and "another than before" not in text
    write(data, "train", "a_1", mask(low=1, high=1))
    expect(train(command, data, network), 2, "data.files_sha256")


def test_a_run_of_an_earlier_version_is_continued(command: Command, data: Path, network: Path) -> None:
    assert train(command, data, network)[0] == 0
    path = data.parent / "run" / "train-network.json"
    record = json.loads(path.read_text())
    record["config"]["data"] = open_dataset(str(data), check=False).identity()  # val's files in it
    del record["results"]["scored"]
    write_json(path, record)
    text = expect(train(command, data, network), 0, "already trained with this configuration")
    assert "another than before" not in text


def test_equal_trainings_give_equal_weights_on_any_number_of_cores(command: Command, data: Path, network: Path) -> None:
    import torch

    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)  # as many as the process may use cores, where nothing else is said
            assert train(command, data, network, "--restart")[0] == 0
            found.append([(data.parent / "run" / name).read_bytes() for name in ("network.safetensors", "scores.json")])
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1]
