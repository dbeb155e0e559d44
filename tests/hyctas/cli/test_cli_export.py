"""hyctas-export: files, bundles, their proof, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from PIL import Image

from export.bundle.bundle import read_bundle
from export.bundle.bundle_ladder import read_ladder
from export.errors import InvalidInput
from export.target import Target
from hyctas.arch.genotype import Arithmetic, Genotype
from hyctas.artifacts import bundling
from hyctas.artifacts.bundling import RUN_FILES, Trained, load_trained, prove, write_file
from hyctas.commands import export as work
from hyctas.commands.sample_images import street_scenes
from hyctas.space import tiny
from tests.hyctas.cli.conftest import LABELS, LITE, RECORD, SIZE, Command, expect, small_genotype

OTHER = replace(small_genotype(), arithmetic=Arithmetic(linear_stem=True))  # equal shapes, another network


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.usefixtures("bundle")  # the exporter's first call takes seconds: there, not here
def test_bundle_of_the_newest_run(command: Command, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run_folder.parents[1])
    folder = tmp_path / "v1.2"
    out = expect(command("export", f"{folder}/", "--threads", "2"), 0)
    assert "runs/one (the newest run)" in out and small_genotype().id in out
    assert "parity of 'native' over 5 inputs" in out and "limit 1.00e-03" in out
    assert f"next: hyctas-bench {folder} --target onnxruntime-cpu:fp32 --threads 2" in out
    found = read_bundle(folder)
    assert (found.manifest.size, found.manifest.output, found.parity.passed) == (SIZE, "native", True)
    assert found.labels == LABELS.to_json() and Genotype.from_json(found.genotype_json) == small_genotype()
    assert found.manifest.extra == {
        "genotype": small_genotype().id, "weights": "trained", "miou": {"choose": 0.5, "val": 0.25}, "threads": 2,
    }  # fmt: skip
    metadata = {p.key: p.value for p in onnx.load(found.model).metadata_props}
    assert json.loads(metadata["preprocessing"]) == LITE.to_json()
    assert load_trained(folder).preprocessing == LITE


def test_a_ladder(command: Command, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "large.json").write_text(tiny().largest().to_json())
    large = tmp_path / "large"
    random = ("--random-weights", "--classes", 5, "--size", "64x64")
    expect(command("export", f"{large}/", "--network", tmp_path / "large.json", *random), 0)
    folder = tmp_path / "ladder"
    other = tmp_path / "same"
    shutil.copytree(bundle, other)
    expect(command("export", f"{folder}/", "--network", other, bundle), 2, "GMAC are not less than")
    expect(command("export", tmp_path / "m.onnx", "--network", large, bundle), 2, "several make a ladder")
    expect(command("export", f"{folder}/", "--network", large, bundle), 2, "has other labels than")
    assert not folder.exists()
    monkeypatch.setattr(work, "load_trained", lambda source, *rest, **more: replace(load_trained(source), labels=LABELS))
    expect(command("export", f"{folder}/", "--network", large, bundle), 0, "is a ladder of 2 networks")
    rungs = read_ladder(folder)
    assert [rung.miou for rung in rungs] == [None, 0.25] and load_trained(rungs[1].folder).genotype == small_genotype()
    monkeypatch.chdir(tmp_path)
    out = expect(command("bench", folder, large / "model.onnx", "--pace", 40, "--seconds", 0.5), 0, "mIoU over time")
    assert "ladder/member-2" in out and "switch" in out
    photograph = tmp_path / "a.png"
    Image.new("RGB", (64, 64)).save(photograph)
    expect(command("predict", photograph, "--model", folder), 0, "share of the frames: ")


def test_onnx_file_from_a_bundle(command: Command, bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "m.onnx"
    ended, text = command("export", path, "--network", bundle, "--output", "logits", "--size", "48x72")
    assert ended == 0 and "(the newest run)" not in text
    model = onnx.load(path)
    assert [dim.dim_value for dim in model.graph.output[0].type.tensor_type.shape.dim] == [1, 5, 48, 72]
    assert {p.key: p.value for p in model.metadata_props}["size"] == "48x72"
    manifest = json.loads((tmp_path / "deep" / "m.onnx.manifest.json").read_text())
    assert set(manifest["files"]) == {"m.onnx"} and manifest["files"]["m.onnx"]["size_bytes"] == path.stat().st_size
    assert manifest["extra"]["parity"]["passed"] and manifest["extra"]["parity"]["output"] == "logits"
    assert manifest["extra"]["weights"] == "trained"
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["m.onnx", "m.onnx.manifest.json"]
    bundling.check_free(path)  # its own file may be replaced
    bundling.manifest_of(path).unlink()
    with pytest.raises(InvalidInput, match="was not written by this command"):
        bundling.check_free(path)


@pytest.mark.parametrize("output", ["native", "labels"])
def test_torch_export_file(command: Command, bundle: Path, tmp_path: Path, output: str) -> None:
    path = tmp_path / "m.pt2"
    assert command("export", path, "--network", bundle, "--output", output)[0] == 0
    extra = {"preprocessing": "", "labels": "", "genotype": "", "size": "", "output": ""}
    program = torch.export.load(path, extra_files=extra)
    assert (extra["output"], extra["size"]) == (output, "64x64")
    image = torch.randn(1, 3, *SIZE)
    network = load_trained(bundle).network
    with torch.no_grad():
        found = program.module()(image)
        wanted = network.forward_native(image) if output == "native" else network(image).argmax(1)
    assert (found == wanted).float().mean() > 0.999 if output == "labels" else torch.allclose(found, wanted, atol=1e-4)


@pytest.fixture(scope="module")
def attending(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trained, Path]:
    """A network with attention, as a .pt2 file."""
    network = small_genotype(333)
    assert any(cell.op == "attention" for branch in network.branches for cell in branch)
    folder = tmp_path_factory.mktemp("attending")
    (folder / "g.json").write_text(network.to_json())
    trained = load_trained(folder / "g.json", 5, random_weights=True)
    return trained, write_file(trained, folder / "m.pt2", SIZE).path


def test_torch_export_file_opens_without_us(attending: tuple[Trained, Path]) -> None:
    code = "import sys, torch; module = torch.export.load(sys.argv[1]).module(); "
    code += "print(tuple(module(torch.zeros(1, 3, 64, 64)).shape), 'hyctas' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, attending[1]], capture_output=True, text=True, cwd="/")
    assert done.stdout.split()[-1] == "False" and done.stdout.startswith("(1, 5, "), done.stderr


def test_torch_export_file_below_fp32(attending: tuple[Trained, Path]) -> None:
    rough = prove(*attending, Target("torch-cpu", "bf16"), SIZE, "native")
    assert rough.finite and rough.label_agreement > 0.9


def test_genotype_needs_a_word(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "g.json"
    path.write_text(small_genotype().to_json())
    arguments = (tmp_path / "m.onnx", "--network", path, "--size", "64x64", "--classes", "3")
    expect(command("export", *arguments), 2, "has no weights")
    expect(command("export", *arguments[:3], "--random-weights"), 2, "give --size")
    expect(command("export", *arguments, "--random-weights"), 0, "3 classes, random weights")
    first, second = (load_trained(path, 3, random_weights=True).network.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (("--target", "tensorrt:fp16"), 3, "tensorrt:fp16 is unavailable"),
        (("--target", "onnxruntime-cuda:fp32"), 3, "onnxruntime-cuda:fp32 is unavailable"),
        (("--target", "nothing:fp32"), 2, "unknown runtime"),
        (("--target", "torch-cpu:fp32"), 2, "write {path}/m.pt2"),
        (("--size", "16x16"), 2, "too small"),
        (("--classes", "7"), 2, "has 5 classes, asked for 7"),
        (("--random-weights",), 2, "has its own"),
    ],
)
def test_refused_arguments(
    command: Command, bundle: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, reason: str
) -> None:
    expect(command("export", tmp_path / "m.onnx", "--network", bundle, *arguments), code, reason.format(path=tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="the target is available here")
def test_gpu_target_is_never_replaced(command: Command, bundle: Path, tmp_path: Path) -> None:
    assert command("export", tmp_path / "m.pt2", "--network", bundle, "--target", "torch-cuda:fp32")[0] == 3


@pytest.mark.parametrize(
    ("source", "file", "content", "reason"),
    [
        ("missing", "x", "", "no such file or folder"),
        ("folder", "folder/x", "", "holds neither manifest.json (a bundle) nor network.safetensors"),
        ("b", "b/labels.json", lambda old: old.replace(b'"a"', b'"A"'), "labels.json: differs from the manifest"),
        ("r", "r/network.safetensors", lambda old: old[:-10], "not a whole safetensors file"),
        ("r", "r/genotype.json", small_genotype(7).to_json(), "network.safetensors: "),
        ("r", "r/genotype.json", OTHER.to_json(), f"was written for the genotype {small_genotype().id}"),
        ("g.json", "g.json", '{"format_version": 1}', "lacks the field"),
        ("g.json", "g.json", "\udcff\udcfe", "not a text file"),
        ("b/model.onnx", "x", "", "is no genotype"),
        ("r", "r/labels.json", '{"names": ["a"]}', "labels.json: "),
        ("r", "r/pareto.json", '{"size": [64]}', "size is [64]"),
        ("r", "r/scores.json", '{"format_version": 1}', "a score of neither part"),
    ],
)
def test_unusable_sources(
    command: Command, run_folder: Path, bundle: Path, tmp_path: Path, source: str, file: str, content: Any, reason: str
) -> None:
    shutil.copytree(run_folder, tmp_path / "r")
    shutil.copytree(bundle, tmp_path / "b")
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content(path.read_bytes()) if callable(content) else content.encode(errors="surrogateescape"))
    expect(command("export", tmp_path / "out.onnx", "--network", tmp_path / source), 2, reason)
    assert not (tmp_path / "out.onnx").exists()


def test_no_run_at_all(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    expect(command("export", "m.onnx"), 2, "no trained network under runs/")


@pytest.mark.parametrize("name", RUN_FILES)
def test_a_run_lacks_a_file(run_folder: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(run_folder, tmp_path / "r")
    (tmp_path / "r" / name).unlink()
    with pytest.raises(InvalidInput, match=name):
        load_trained(tmp_path / "r")


@pytest.mark.parametrize(
    ("files", "size"),
    [
        ({}, None),
        ({"train-network.json": {"config": {"recipe": {"size": None}, "data": {"size": "96x128"}}}}, (96, 128)),
        ({"train-network.json": {"config": {"recipe": {"size": [40, 48]}, "data": {"size": "96x128"}}}}, (40, 48)),
        ({"pareto.json": {"size": [32, 64]}, "train-network.json": {"config": {"recipe": {"size": [40, 48]}}}}, (32, 64)),
        ({"profile.json": {"config": {"size": [36, 48]}}, "train-network.json": {"config": {}}}, (36, 48)),
    ],
)
def test_size_of_a_run(run_folder: Path, tmp_path: Path, files: dict[str, dict[str, object]], size: tuple[int, int] | None) -> None:
    for name in RUN_FILES:
        shutil.copy(run_folder / name, tmp_path)
    for name, value in files.items():
        (tmp_path / name).write_text(json.dumps(RECORD | value))
    assert load_trained(tmp_path, 5).size == size


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("theirs.onnx", "was not written by this command"),
        ("theirs", "so it is not a bundle"),
        ("theirs.onnx/m.onnx", "it is no folder"),
        ("theirs.onnx/deeper/m.onnx", "it is no folder"),
        ("m.tflite", "suffix '.tflite' is unknown"),
        ("x" * 250, "1 to 200 bytes"),
        ("/", "1 to 200 bytes"),
    ],
)
def test_refused_outputs(command: Command, bundle: Path, tmp_path: Path, output: str, reason: str) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "notes.txt").write_text("mine")
    (tmp_path / "theirs.onnx").write_text("mine")
    before = tree(tmp_path)
    expect(command("export", output if output == "/" else f"{tmp_path}/{output}", "--network", bundle), 2, reason)
    assert tree(tmp_path) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder(command: Command, bundle: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert command("export", tmp_path / "m.onnx", "--network", bundle)[0] == 2


def test_links_in_a_circle_are_named(command: Command, bundle: Path, tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    train = ("train", "network", "--network", bundle / "genotype.json", "--data", "scenes:train=16,val=4,size=32x32", "--run")
    for arguments in (("export", f"{loop}/", "--network", bundle), ("export", loop / "m.onnx", "--network", bundle),
                      ("bench", bundle, "--out", loop / "r.json"), ("profile", "--space", "tiny", "--run", loop / "x"),
                      ("bench", bundle, "--target", "tensorrt:fp16", "--kit", loop / "kit"), (*train, loop),
                      (*train, tmp_path / "run", "--teacher", loop)):  # fmt: skip
        text = expect(command(*arguments), 2, str(loop))
        assert text.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize("name", ["m.onnx", "m.pt2"])
def test_parity_is_the_exit_code(
    command: Command, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A file that computes something else ends with 1 and the numbers, and what stood there before stays."""
    trained = load_trained(bundle)

    class Drifting(type(trained.network)):  # type: ignore[misc]
        """Exports a copy whose last bias differs."""

        def folded(self) -> torch.nn.Module:
            network = super().folded()
            with torch.no_grad():
                list(network.parameters())[-1].add_(torch.arange(5.0))
            return network  # type: ignore[no-any-return]

    trained.network.__class__ = Drifting
    monkeypatch.setattr(work, "load_trained", lambda *_, **__: trained)
    expect(command("export", tmp_path / name, "--network", bundle), 1, "labels agree on")
    assert list(tmp_path.iterdir()) == []


def test_prove_counts_examples(bundle: Path) -> None:
    trained: Trained = load_trained(bundle)
    images = street_scenes((50, 70), 2)
    assert images[0].shape == (50, 70, 3)
    report = prove(trained, bundle / "model.onnx", Target("onnxruntime-cpu", "fp32"), SIZE, "native", images)
    assert report.passed and report.inputs == 5


def test_write_file_takes_two_kinds(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"\.onnx or \.pt2"):
        write_file(load_trained(bundle), tmp_path / "m.bin", SIZE)
    assert list(tmp_path.iterdir()) == []
