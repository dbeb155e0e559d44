"""hyctas-export: files, bundles, their proof, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from export.bundle.bundle import read_bundle
from export.bundle.imaging import Preprocessing
from export.errors import InvalidInput
from export.target import Target
from hyctas.arch.genotype import Arithmetic, Genotype
from hyctas.artifacts import bundling
from hyctas.artifacts.bundling import RUN_FILES, Trained, bundle_network, load_trained, prove, write_file
from hyctas.cli import export as cli
from hyctas.data import Labels, default_colours
from hyctas.network import build, save_weights
from hyctas.space import tiny

SIZE = (64, 64)
LITE = Preprocessing(mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
"""What EfficientNet-Lite was trained with."""
LABELS = Labels(tuple("abcde"), default_colours(5))


def genotype(seed: int = 16) -> Genotype:
    """Draw a network of the tiny space; 16 gives one of its smallest, which export quickly."""
    return tiny().sample(np.random.default_rng(seed))


RECORD = {
    "format_version": 1, "command": "train-network", "state": "running", "started": "", "command_line": [], "config": {},
    "versions": {}, "machine": {},
}  # fmt: skip


def write_run(folder: Path, network: Genotype, size: list[int] | None) -> Path:
    """Write what hyctas-train network leaves, without the training."""
    torch.manual_seed(0)
    save_weights(build(network, 5), folder / "network.safetensors", {"genotype": network.id})
    (folder / "genotype.json").write_text(network.to_json())
    (folder / "labels.json").write_text(json.dumps(LABELS.to_json()))
    config = {"recipe": {"size": size}, "data": {}, "preprocessing": LITE.to_json()}
    record = RECORD | {"config": config}
    (folder / "train-network.json").write_text(json.dumps(record))
    choose, val = ({"miou": miou, "iou": [miou] * 5, "pixel_accuracy": 0.5} for miou in (0.5, 0.25))
    scores = {"format_version": 1, "choose": choose, "val": val}
    (folder / "scores.json").write_text(json.dumps(scores))
    return folder


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work") / "runs" / "one"
    folder.mkdir(parents=True)
    return write_run(folder, genotype(), list(SIZE))


@pytest.fixture(scope="module")
def bundle(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "b"
    bundle_network(load_trained(run_folder), folder, SIZE)
    return folder


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    """Run the command in this process and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["hyctas-export", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_help_needs_no_torch() -> None:
    code = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        assert name.partition('.')[0] not in ('torch', 'onnx', 'onnxruntime'), name\n"
        "sys.meta_path.insert(0, Block())\n"
        "sys.argv = ['hyctas-export', '--help']\n"
        "from hyctas.cli.export import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"COLUMNS": "120"})
    assert done.returncode == 0, done.stderr
    flags = "--network --target --output --size --classes --threads --random-weights".split()
    assert all(flag in done.stdout for flag in flags) and "OUTPUT" in done.stdout


@pytest.mark.usefixtures("bundle")  # the exporter's first call takes seconds: there, not here
def test_bundle_of_the_newest_run(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(run_folder.parents[1])
    folder = tmp_path / "v1.2"
    assert call(monkeypatch, f"{folder}/", "--threads", "2") == 0
    out = capsys.readouterr().out
    assert "runs/one (the newest run)" in out and genotype().id in out
    assert "parity of 'native' over 5 inputs" in out and "limit 1.00e-03" in out
    assert f"next: hyctas-bench {folder} --target onnxruntime-cpu:fp32 --threads 2" in out
    found = read_bundle(folder)
    assert (found.manifest.size, found.manifest.output, found.parity.passed) == (SIZE, "native", True)
    assert found.labels == LABELS.to_json() and Genotype.from_json(found.genotype_json) == genotype()
    assert found.manifest.extra == {
        "genotype": genotype().id, "weights": "trained", "miou": {"choose": 0.5, "val": 0.25}, "threads": 2,
    }  # fmt: skip
    metadata = {p.key: p.value for p in onnx.load(found.model).metadata_props}
    assert json.loads(metadata["preprocessing"]) == LITE.to_json()
    assert load_trained(folder).preprocessing == LITE


def test_onnx_file_from_a_bundle(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "deep" / "m.onnx"
    assert call(monkeypatch, path, "--network", bundle, "--output", "logits", "--size", "48x72") == 0
    assert "(the newest run)" not in capsys.readouterr().out
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
def test_torch_export_file(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str) -> None:
    path = tmp_path / "m.pt2"
    assert call(monkeypatch, path, "--network", bundle, "--output", output) == 0
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
    network = genotype(194)
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


def test_genotype_needs_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "g.json"
    path.write_text(genotype().to_json())
    arguments = (tmp_path / "m.onnx", "--network", path, "--size", "64x64", "--classes", "3")
    assert call(monkeypatch, *arguments) == 2
    assert "has no weights" in capsys.readouterr().err
    assert call(monkeypatch, *arguments[:3], "--random-weights") == 2
    assert "give --size" in capsys.readouterr().err
    assert call(monkeypatch, *arguments, "--random-weights") == 0
    assert "3 classes, random weights" in capsys.readouterr().out
    first, second = (load_trained(path, 3, random_weights=True).network.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (("--target", "tensorrt:fp16"), 3, "tensorrt:fp16 is unavailable"),
        (("--target", "onnxruntime-cuda:fp32"), 3, "onnxruntime-cuda:fp32 is unavailable"),
        (("--target", "nothing:fp32"), 2, "unknown runtime"),
        (("--target", "onnxruntime-cpu"), 2, "names no precision"),
        (("--target", "torch-cpu:fp32"), 2, "write {path}/m.pt2"),
        (("--size", "16x16"), 2, "too small"),
        (("--size", "big"), 2, "HEIGHTxWIDTH"),
        (("--classes", "7"), 2, "has 5 classes, asked for 7"),
        (("--threads", "0"), 2, "threads is 0; allowed"),
        (("--random-weights",), 2, "has its own"),
        (("--output", "pixels"), 2, ""),
    ],
)
def test_refused_arguments(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...], code: int, reason: str,
) -> None:  # fmt: skip
    assert call(monkeypatch, tmp_path / "m.onnx", "--network", bundle, *arguments) == code
    assert reason.format(path=tmp_path) in capsys.readouterr().err and list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="the target is available here")
def test_gpu_target_is_never_replaced(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(monkeypatch, tmp_path / "m.pt2", "--network", bundle, "--target", "torch-cuda:fp32") == 3


def _no_such(work: Path) -> str:
    return "missing"


def _plain_folder(work: Path) -> str:
    (work / "folder").mkdir()
    return "folder"


def _tampered(work: Path) -> str:
    path = work / "b" / "labels.json"
    path.write_text(path.read_text().replace('"a"', '"A"'))
    return "b"


def _truncated_weights(work: Path) -> str:
    path = work / "r" / "network.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    return "r"


def _other_genotype(work: Path) -> str:
    (work / "r" / "genotype.json").write_text(genotype(7).to_json())
    return "r"


def _other_activation(work: Path) -> str:
    changed = replace(genotype(), arithmetic=Arithmetic(linear_stem=True))  # equal shapes, another network
    (work / "r" / "genotype.json").write_text(changed.to_json())
    return "r"


def _wrong_json(work: Path) -> str:
    (work / "g.json").write_text('{"format_version": 1}')
    return "g.json"


def _no_json(work: Path) -> str:
    (work / "g.json").write_bytes(b"\xff\xfe")
    return "g.json"


def _onnx_as_source(work: Path) -> str:
    return "b/model.onnx"


def _odd_labels(work: Path) -> str:
    (work / "r" / "labels.json").write_text('{"names": ["a"]}')
    return "r"


def _odd_size(work: Path) -> str:
    (work / "r" / "pareto.json").write_text('{"size": [64]}')
    return "r"


def _odd_scores(work: Path) -> str:
    (work / "r" / "scores.json").write_text('{"format_version": 1}')
    return "r"


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_no_such, "no such file or folder"),
        (_plain_folder, "holds neither manifest.json (a bundle) nor network.safetensors"),
        (_tampered, "labels.json: differs from the manifest"),
        (_truncated_weights, "not a whole safetensors file"),
        (_other_genotype, "network.safetensors: "),
        (_other_activation, f"was written for the genotype {genotype().id}"),
        (_wrong_json, "lacks the field"),
        (_no_json, "not a text file"),
        (_onnx_as_source, "is no genotype"),
        (_odd_labels, "labels.json: "),
        (_odd_size, "$.size is [64]"),
        (_odd_scores, "a score of neither part"),
    ],
)
def test_unusable_sources(
    run_folder: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path], str], reason: str,
) -> None:  # fmt: skip
    shutil.copytree(run_folder, tmp_path / "r")
    shutil.copytree(bundle, tmp_path / "b")
    source = spoil(tmp_path)
    assert call(monkeypatch, tmp_path / "out.onnx", "--network", tmp_path / source) == 2
    assert reason in capsys.readouterr().err and not (tmp_path / "out.onnx").exists()


def test_no_run_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "m.onnx") == 2
    assert "no trained network under runs/" in capsys.readouterr().err


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
def test_refused_outputs(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], output: str, reason: str
) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "notes.txt").write_text("mine")
    (tmp_path / "theirs.onnx").write_text("mine")
    before = tree(tmp_path)
    assert call(monkeypatch, output if output == "/" else f"{tmp_path}/{output}", "--network", bundle) == 2
    assert reason in capsys.readouterr().err and tree(tmp_path) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o500)
    assert call(monkeypatch, tmp_path / "m.onnx", "--network", bundle) == 2


def test_links_in_a_circle_are_named(command: Callable[..., tuple[int, str]], bundle: Path, tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    train = ("train", "network", "--network", bundle / "genotype.json", "--data", "scenes:train=16,val=4,size=32x32", "--run")
    for arguments in (("export", f"{loop}/", "--network", bundle), ("export", loop / "m.onnx", "--network", bundle),
                      ("bench", bundle, "--out", loop / "r.json"), ("profile", "--space", "tiny", "--run", loop / "x"),
                      ("bench", bundle, "--target", "tensorrt:fp16", "--kit", loop / "kit"), (*train, loop),
                      (*train, tmp_path / "run", "--teacher", loop)):  # fmt: skip
        code, text = command(*arguments)
        assert code == 2 and text.splitlines()[-1].startswith("error: ") and str(loop) in text, text


@pytest.mark.parametrize("name", ["m.onnx", "m.pt2"])
def test_parity_is_the_exit_code(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
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
    monkeypatch.setattr(bundling, "load_trained", lambda *_, **__: trained)
    assert call(monkeypatch, tmp_path / name, "--network", bundle) == 1
    assert "labels agree on" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_prove_counts_examples(bundle: Path) -> None:
    trained: Trained = load_trained(bundle)
    images = cli.street_scenes((50, 70), 2)
    assert images[0].shape == (50, 70, 3)
    report = prove(trained, bundle / "model.onnx", Target("onnxruntime-cpu", "fp32"), SIZE, "native", images)
    assert report.passed and report.inputs == 5


def test_write_file_takes_two_kinds(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"\.onnx or \.pt2"):
        write_file(load_trained(bundle), tmp_path / "m.bin", SIZE)
    assert list(tmp_path.iterdir()) == []
