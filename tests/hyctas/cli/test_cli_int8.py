"""int8: from a run and images to a file and a bundle, what they cost, where they run, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from export.bundle.bundle import read_bundle
from export.codec import decode
from export.errors import CorruptFile
from export.int8.loss import Int8Loss
from export.trt.engine_file import read_manifest
from export.trt.engine_precision import check_graph
from hyctas.data import Labels, default_colours, open_source
from tests.export.trt.rtx_builds import missing, needs_rtx
from tests.hyctas.cli.conftest import RECORD, SIZE, Command, expect, run_command, write_run

STREETS = "scenes:train=16,val=2,size=48x64"
TARGET = "onnxruntime-cpu:int8"
LOOSE = "calibration_images = 4\njudged_images = 2\nmin_agreement = 0.0\nmax_miou_loss = 1.0\n"
"""The weights of the tests' network are random, and so are the labels it gives."""


@pytest.fixture(scope="session")
def streets_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose network has the classes of generated streets, and whose record says so."""
    folder = write_run(tmp_path_factory.mktemp("int8"), Labels(open_source(STREETS).labels.names, default_colours(10)))
    line = ["hyctas-train", "network", "--data", STREETS]
    record = RECORD | {"config": {"recipe": {"size": list(SIZE)}, "data": {}}, "command_line": line}
    (folder / "train-network.json").write_text(json.dumps(record))
    (folder / "loose.toml").write_text(LOOSE)
    return folder


@pytest.fixture(scope="session")
def int8_bundle(streets_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with an int8 model, calibrated with what its run was trained on."""
    folder = tmp_path_factory.mktemp("int8") / "b"
    config = streets_run / "loose.toml"
    assert run_command("export", f"{folder}/", "--network", streets_run, "--target", TARGET, "--config", config) == 0
    return folder


def test_bundle(int8_bundle: Path) -> None:
    bundle = read_bundle(int8_bundle)
    assert bundle.int8_model is not None and bundle.manifest.target == TARGET
    loss = decode(Int8Loss, int8_bundle / "int8.json")
    assert loss.target == TARGET and loss.calibration_images == 4 and loss.judged_images == 2 and loss.passed
    assert set(loss.splits) == {"choose", "val"} and loss.splits["val"].images == 2 and not loss.float_layers
    model = onnx.load(bundle.int8_model)
    products = sum(node.op_type == "MatMul" for node in model.graph.node)
    assert products and check_graph(model, "int8") == {"fp32": loss.layers + products}, "symmetric, and no bias is quantised"
    assert {item.key: item.value for item in model.metadata_props}["precision"] == "int8"
    assert bundle.int8_model.stat().st_size < bundle.model.stat().st_size
    assert "QuantizeLinear" not in {node.op_type for node in onnx.load(bundle.model).graph.node}


def test_bench_compares_int8_with_fp32(command: Command, int8_bundle: Path, tmp_path: Path) -> None:
    models = (int8_bundle / "model.onnx", int8_bundle / "model.int8.onnx")
    text = expect(command("bench", *models, "--seconds", 0.05, "--out", tmp_path / "r.json"), 0, f"target: {TARGET}")
    report = json.loads((tmp_path / "r.json").read_text())
    assert [model["file"] for model in report["models"]] == ["model.onnx", "model.int8.onnx"]
    assert "no layer of it is quantised" in text + (tmp_path / "r.md").read_text()
    assert report["target"] == TARGET


def test_predict_takes_the_bundles_int8_model(command: Command, int8_bundle: Path, streets_run: Path, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / "a.png")
    options = ("--target", TARGET, "--out", tmp_path / "out", "--threads", 1)
    expect(command("predict", tmp_path / "a.png", "--model", int8_bundle, *options), 0, TARGET)
    assert (tmp_path / "out" / "a.overlay.png").exists()
    expect(command("predict", tmp_path / "a.png", "--model", streets_run, *options), 2, "whose network is not quantised")


def test_a_bundle_without_int8_says_how(command: Command, bundle: Path, tmp_path: Path) -> None:
    ended = command("bench", bundle, "--target", TARGET, "--out", tmp_path / "r.json")
    expect(ended, 2, "has no model.int8.onnx", "hyctas-export NEW_BUNDLE/", "--data DATA")


def test_file_with_a_folder_of_images(command: Command, streets_run: Path, tmp_path: Path) -> None:
    """Images of another size, without labels; one of them alone will do."""
    (tmp_path / "images").mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 90, 3), dtype=np.uint8)).save(tmp_path / "images" / "a.png")
    options = ("--network", streets_run, "--target", TARGET, "--data", tmp_path / "images", "--config", streets_run / "loose.toml")
    expect(command("export", tmp_path / "m.onnx", *options), 0, "images of 80x90 are resized to 64x64", "before quantising")
    manifest = json.loads((tmp_path / "m.onnx.manifest.json").read_text())
    noted = manifest["extra"]["int8"]
    assert noted["splits"] == {} and noted["max_miou_loss"] is None and noted["calibration_images"] == 1
    assert manifest["files"]["m.onnx"]["size_bytes"] == (tmp_path / "m.onnx").stat().st_size


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--data", "nowhere"), "nowhere"),
        (("--data", "scenes:train=0,val=1,size=48x64"), "its train is empty"),
        (("--data", "EMPTY"), "EMPTY"),
        (("--target", "onnxruntime-cpu:fp32", "--data", STREETS), "--data is for int8"),
    ],
)
def test_refused(command: Command, streets_run: Path, tmp_path: Path, arguments: tuple[str, ...], reason: str) -> None:
    (tmp_path / "EMPTY").mkdir()
    given = [str(tmp_path / word) if word == "EMPTY" else word for word in arguments]
    target = () if "--target" in given else ("--target", TARGET)
    expect(command("export", tmp_path / "m.onnx", "--network", streets_run, *target, *given), 2, reason)
    assert [path.name for path in tmp_path.iterdir()] == ["EMPTY"]


def test_classes_and_images_that_do_not_fit(command: Command, bundle: Path, tmp_path: Path) -> None:
    options = ("--network", bundle, "--target", TARGET)
    expect(command("export", tmp_path / "m.onnx", *options, "--data", STREETS), 2, "has 10 classes, the network 5")
    expect(command("export", tmp_path / "m.onnx", *options), 2, "needs images to calibrate with", "give --data DATA")


def test_a_bound_that_cannot_be_kept(command: Command, streets_run: Path, tmp_path: Path) -> None:
    config = tmp_path / "strict.toml"
    config.write_text(LOOSE.replace("min_agreement = 0.0", "min_agreement = 1.0"))
    ended = command("export", tmp_path / "m.onnx", "--network", streets_run, "--target", TARGET, "--config", config)
    expect(ended, 1, "int8 loses more than the bound allows", "layers in float")
    assert [path.name for path in tmp_path.iterdir()] == ["strict.toml"]


def test_a_damaged_loss_is_noticed(int8_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(int8_bundle, tmp_path / "b")
    (tmp_path / "b" / "int8.json").write_text("{}")
    with pytest.raises(CorruptFile, match=r"int8\.json: differs from the manifest"):
        read_bundle(tmp_path / "b")


@needs_rtx
def test_the_real_builder_takes_the_bundles_int8_model(command: Command, int8_bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(int8_bundle, tmp_path / "b"))
    options = ("--target", "tensorrt-rtx:int8", "--gpu", "sm_89")
    expect(command("export", folder / "model.engine", *options, "--data", STREETS), 2, "the engine is built from", "leave it out")
    expect(command("export", folder / "model.engine", *options), 0, "int8; model.engine.json; built from model.int8.onnx")
    built = read_manifest(folder / "model.engine")
    assert built is not None and (built.precision, built.onnx) == ("int8", "model.int8.onnx")
    assert read_bundle(folder).engine == folder / "model.engine"


@needs_rtx
def test_an_engine_of_its_own(command: Command, streets_run: Path, tmp_path: Path) -> None:
    options = ("--network", streets_run, "--target", "tensorrt-rtx:int8", "--gpu", "sm_89", "--config", streets_run / "loose.toml")
    expect(command("export", tmp_path / "m.engine", *options), 0, "int8 on onnxruntime-cpu:fp32", "built from m.onnx")
    assert {path.name for path in tmp_path.iterdir()} == {"m.engine", "m.engine.json", "m.onnx", "m.onnx.manifest.json"}


def test_a_bundle_without_int8_has_no_int8_engine(command: Command, bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundle, tmp_path / "b"))
    ended = command("export", folder / "model.engine", "--target", "tensorrt-rtx:int8", "--gpu", "sm_89")
    expect(ended, 2 if not missing() else 3, "model.int8.onnx" if not missing() else "tensorrt-rtx")
