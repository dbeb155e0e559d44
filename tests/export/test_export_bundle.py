"""Bundles: complete, verified, replaced whole; run.py runs on its own."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from export import swap
from export.bundle import bundle
from export.bundle.bundle import CONTENT, BundleReport, read_bundle, write_bundle
from export.bundle.imaging import head_stride, upsample_argmax
from export.bundle.manifest import entry_of
from export.errors import CheckFailed, CorruptFile, InvalidInput
from export.files import sha256

LABELS = {"names": list("abcde"), "colours": [[i * 50, 0, 255 - i * 50] for i in range(5)], "ignore": 255}
PREPROCESSING = {"mean": [0.4, 0.5, 0.45], "std": [0.2, 0.25, 0.3], "layout": "NCHW"}


class Net(nn.Module):
    """Five classes at stride 2; any size."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.head = nn.Conv2d(8, 5, 1)
        nn.init.constant_(self.head.bias, scale)  # type: ignore[arg-type]

    def forward_native(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.stem(x)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = nn.functional.interpolate(self.forward_native(x), scale_factor=2.0, mode="bilinear", align_corners=False)
        return y[..., : x.shape[2], : x.shape[3]]


def picture(height: int = 40, width: int = 60) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write(folder: Path, **changes: Any) -> BundleReport:
    arguments: dict[str, Any] = {
        "module": Net(),
        "size": (17, 25),
        "labels": LABELS,
        "preprocessing": PREPROCESSING,
        "genotype_json": '{"format_version": 1}',
        "weights": b"safetensors",
        "target": "onnxruntime-cpu:fp32",
    }
    return write_bundle(folder, **(arguments | changes))


def state(folder: Path) -> dict[str, str]:
    return {path.name: sha256(path) for path in folder.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> BundleReport:
    return write(tmp_path_factory.mktemp("b") / "bundle", examples=[picture()], extra={"run": "r1"})


@pytest.fixture()
def copied(written: BundleReport, tmp_path: Path) -> Path:
    target = tmp_path / "bundle"
    target.mkdir()
    for path in written.folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def test_content(written: BundleReport) -> None:
    assert {path.name for path in written.folder.iterdir()} == {*CONTENT, "manifest.json"}
    found = read_bundle(written.folder)
    assert found.labels == LABELS
    assert found.genotype_json == '{"format_version": 1}'
    assert found.parity.passed and found.parity.inputs == 4
    assert found.weights.read_bytes() == b"safetensors"
    assert (found.manifest.size, found.manifest.target, found.manifest.extra) == ((17, 25), "onnxruntime-cpu:fp32", {"run": "r1"})
    metadata = {p.key: p.value for p in onnx.load(found.model).metadata_props}
    assert json.loads(metadata["preprocessing"]) == PREPROCESSING
    assert json.loads(metadata["labels"]) == LABELS
    assert (metadata["size"], metadata["output"], metadata["genotype"]) == ("17x25", "native", '{"format_version": 1}')
    assert written.size_bytes == sum(path.stat().st_size for path in written.folder.iterdir())
    json.dumps(written.to_json(), allow_nan=False)


@pytest.mark.parametrize("name", CONTENT)
def test_tampering_names_the_file(copied: Path, name: str) -> None:
    path = copied / name
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    with pytest.raises(CorruptFile, match="differs from the manifest") as caught:
        read_bundle(copied)
    assert caught.value.path == path
    path.unlink()
    with pytest.raises(CorruptFile, match="missing"):
        read_bundle(copied)


@pytest.mark.parametrize(
    "change",
    [
        {"format_version": 99},
        {"size": "17"},
        {"files": {}},
        {"files": {"../x": {"sha256": "", "size_bytes": 1}}},
        {"files": {"model.onnx": {"sha256": "", "size_bytes": float("inf")}}},
        {"files": {"model.onnx": {"sha256": "0" * 64, "size_bytes": -1}}},
        {"files": {"model.onnx": {"sha256": "f", "size_bytes": 1}}},
        {"versions": {"torch": 2}},
        {"output": "mask"},
        {"target": "cpu"},
        {"extra": [1]},
    ],
)
def test_bad_manifests(copied: Path, change: dict[str, Any]) -> None:
    path = copied / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CorruptFile) as caught:
        read_bundle(copied)
    assert caught.value.path == path


def _changed(name: str, **values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def _written(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(data) and None


def _metadata(**values: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        model = onnx.load(folder / "model.onnx")
        for item in model.metadata_props:
            item.value = values.get(item.key, item.value)
        onnx.save(model, folder / "model.onnx")

    return change


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (_changed("parity.json", label_agreement=float("-inf")), "parity.json"),
        (_changed("parity.json", label_agreement=-1), "parity.json"),
        (_changed("parity.json", label_agreement=None), "parity.json"),
        (_changed("parity.json", label_agreement=0.5), "parity.json"),
        (_changed("parity.json", passed=False), "parity.json"),
        (_changed("parity.json", inputs=0), "parity.json"),
        (_changed("parity.json", output="logits"), "parity.json"),
        (_changed("parity.json", more=1), "parity.json"),
        (_changed("labels.json", colours="red"), "labels.json"),
        (_changed("labels.json", ignore="none"), "labels.json"),
        (_written("genotype.json", b"\xff"), "genotype.json"),
        (_written("genotype.json", b"{}"), "model.onnx"),
        (_written("model.onnx", b"\xff\xff"), "model.onnx"),
        (_changed("labels.json", names=list("vwxyz")), "model.onnx"),
        (_changed("manifest.json", size="360x480"), "model.onnx"),
        (_changed("manifest.json", output="labels"), "parity.json"),
        (_metadata(preprocessing="imagenet"), "model.onnx"),
    ],
)
def test_what_lies_under_a_right_hash(copied: Path, change: Callable[[Path], None], name: str) -> None:
    """Whoever changes a file can hash it: what the files say is compared with what can be, and with one another."""
    change(copied)
    path = copied / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"] = {file: entry_of(copied / file) for file in manifest["files"]}
    path.write_text(json.dumps(manifest))
    with pytest.raises(CorruptFile) as caught:
        read_bundle(copied)
    assert caught.value.path == copied / name


def test_missing_or_torn_manifest(copied: Path) -> None:
    path = copied / "manifest.json"
    path.write_text(path.read_text()[:50])
    with pytest.raises(CorruptFile, match="not valid JSON"):
        read_bundle(copied)
    path.unlink()
    with pytest.raises(CorruptFile, match="no bundle"):
        read_bundle(copied)
    with pytest.raises(InvalidInput, match="no bundle at"):
        read_bundle(copied / "none")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"output": "mask"}, "mask"),
        ({"target": "cpu"}, "precision"),
        ({"labels": {"names": ["a"], "colours": [[0, 0, 0]], "ignore": None}}, "5 classes; labels name 1"),
        ({"labels": {**LABELS, "colours": [[0, 0, 300]] * 5}}, r"colours\[0\]\[2\] is 300; expected `int` <= 255"),
        ({"labels": {"names": []}}, "lacks the field `colours`"),
        ({"preprocessing": {"mean": [0, 0, 0], "std": [1, 1, 0], "layout": "NCHW"}}, "positive"),
        ({"preprocessing": {**PREPROCESSING, "layout": "NHWC"}}, "NHWC"),
        ({"preprocessing": {"mean": 1}}, "preprocessing"),
        ({"genotype_json": "{"}, "not JSON"),
        ({"weights": b""}, "weights are empty"),
        ({"examples": [np.zeros((4, 4, 3))]}, "uint8"),
    ],
)
def test_bad_arguments_write_nothing(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        write(tmp_path / "b", **change)
    assert list(tmp_path.iterdir()) == []


def test_failed_parity_keeps_the_old_bundle(copied: Path) -> None:
    before = state(copied)
    broken = Net()
    nn.init.constant_(broken.head.weight, float("nan"))  # type: ignore[arg-type]
    with pytest.raises(CheckFailed, match="not finite"):
        write(copied, module=broken)
    assert state(copied) == before
    assert [path.name for path in copied.parent.iterdir()] == ["bundle"]


def test_full_disk_keeps_the_old_bundle(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = state(copied)

    def full(path: Path, value: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(bundle, "write_json", full)
    with pytest.raises(OSError, match="No space"):
        write(copied)
    assert state(copied) == before
    assert [path.name for path in copied.parent.iterdir()] == ["bundle"]


def test_replacing_keeps_the_users_files_and_other_folders_are_refused(copied: Path, tmp_path: Path) -> None:
    (copied / "overlays").mkdir()
    (copied / "overlays" / "a.png").write_bytes(b"mine")
    write(copied, genotype_json="[]")
    assert read_bundle(copied).genotype_json == "[]"
    assert (copied / "overlays" / "a.png").read_bytes() == b"mine"
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(InvalidInput, match="not a bundle"):
        write(tmp_path / "other")
    with pytest.raises(InvalidInput, match="is a file"):
        write(tmp_path / "other" / "thesis.txt")


@pytest.mark.parametrize("kill_at", [1, 2, 3])
def test_kill_during_the_swap(copied: Path, monkeypatch: pytest.MonkeyPatch, kill_at: int) -> None:
    """A kill before rename 1, 2 (the swap) or 3 (the user's file) loses nothing, and the next write recovers."""
    (copied / "notes.txt").write_text("mine")
    real, calls = os.rename, []

    def rename(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) >= kill_at:
            os._exit(9)
        real(source, target)

    child = os.fork() if hasattr(os, "fork") else pytest.skip("needs fork")
    if child == 0:
        monkeypatch.setattr(swap.os, "rename", rename)
        with swap.replaced_folder(copied, bundle._unlisted) as building:
            for name in (*CONTENT, "manifest.json"):
                (building / name).write_bytes((copied / name).read_bytes())
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    if not copied.exists():
        with pytest.raises(InvalidInput, match=r"\.bundle\.previous"):
            read_bundle(copied)
    else:
        read_bundle(copied)
    write(copied, genotype_json="[]")
    assert read_bundle(copied).genotype_json == "[]"
    assert (copied / "notes.txt").read_text() == "mine"
    assert not swap.previous_of(copied).exists()


@pytest.mark.parametrize("output", ["native", "labels"])
def test_run_py(tmp_path: Path, output: str) -> None:
    report = write(tmp_path / "bundle", output=output)
    images = tmp_path / "images"
    images.mkdir()
    Image.fromarray(picture()).save(images / "a.png")
    Image.fromarray(picture(17, 25)).save(images / "b.jpg")
    (images / "notes.txt").write_text("not an image")
    env = {"PATH": os.environ["PATH"], "PYTHONWARNINGS": "error"}
    command = [sys.executable, str(report.folder / "run.py"), str(images), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "FPS" in done.stdout and done.stdout.count(" ms") == 3
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.overlay.png", "b.overlay.png"]
    drawn = np.asarray(Image.open(tmp_path / "out" / "a.overlay.png"))
    assert drawn.shape == (40, 60, 3)
    with torch.no_grad():  # the overlay must show the labels that the network gives
        pixels = np.asarray(Image.fromarray(picture()).resize((25, 17), Image.Resampling.BILINEAR), np.float32) / 255
        x = (pixels - np.float32(PREPROCESSING["mean"])) / np.float32(PREPROCESSING["std"])
        labels = Net().eval()(torch.from_numpy(x.transpose(2, 0, 1)[None])).argmax(1)[0].numpy()
    labels = np.asarray(Image.fromarray(labels.astype(np.int32)).resize((60, 40), Image.Resampling.NEAREST))
    colours = Image.fromarray(np.array(LABELS["colours"], np.uint8)[labels])
    wanted = np.asarray(Image.blend(Image.fromarray(picture()), colours, 0.5))
    assert (wanted == drawn).all(-1).mean() > 0.99


def test_run_py_without_images(written: BundleReport, tmp_path: Path) -> None:
    command = [sys.executable, str(written.folder / "run.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert "no images" in done.stderr


@given(height=st.integers(1, 40), width=st.integers(1, 40), stride=st.sampled_from([1, 2, 4, 8]), seed=st.integers(0, 99))
def test_upsampling_equals_torch(height: int, width: int, stride: int, seed: int) -> None:
    native = (-(-height // stride), -(-width // stride))
    logits = np.random.default_rng(seed).standard_normal((4, *native)).astype(np.float32)
    used = head_stride(native, (height, width))
    if used != stride:  # a tiny image fits several strides; the smallest is taken
        return
    resized = nn.functional.interpolate(torch.from_numpy(logits)[None], scale_factor=stride, mode="bilinear")
    wanted = resized[0, :, :height, :width].argmax(0).numpy()
    assert (upsample_argmax(logits, (height, width)) == wanted).mean() > 0.99
