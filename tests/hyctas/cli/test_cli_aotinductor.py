"""AOTInductor: one tiny network compiled to a package, proven, timed; and what is refused before anything of it is executed.

Compiling takes a C++ compiler and some 20 s of a core, so one package serves all tests.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import pytest
import torch

from export.backends import aotinductor_session
from export.backends.aotinductor_session import AOTInductorRuntime
from export.errors import CorruptFile, InvalidInput, Unavailable
from export.pt2_package import compiled_facts
from export.target import Target
from hyctas.commands.model_files import choose_target
from tests.hyctas.cli.conftest import Command, expect, run_command

FP32, BF16 = Target("aotinductor-cpu", "fp32"), Target("aotinductor-cpu", "bf16")
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, aotinductor_session.COMPILERS)), reason="no C++ compiler, which AOTInductor needs"
)


@pytest.fixture(scope="session")
def package(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compiled package of the tiny network."""
    path = tmp_path_factory.mktemp("aotinductor") / "m.pt2"
    assert run_command("export", path, "--network", bundle, "--target", str(FP32)) == 0
    return path


@needs_compiler
def test_package(package: Path, command: Command, tmp_path: Path) -> None:
    manifest = json.loads((package.parent / "m.pt2.manifest.json").read_text())
    assert manifest["target"] == str(FP32) and manifest["extra"]["parity"]["passed"]
    facts = compiled_facts(package)
    assert facts is not None and facts["hyctas_target"] == str(FP32) and facts["hyctas_inputs"] == "image:float32:1x3x64x64"
    assert choose_target(None, [(package, ".pt2")]) == FP32
    out = ("--out", tmp_path / "r.json", "--seconds", 0.05)
    expect(command("bench", package, *out), 2, "executes code", "--trust")
    expect(command("bench", package, *out, "--trust"), 0, "target: aotinductor-cpu:fp32")
    with AOTInductorRuntime(FP32).load_file(package) as session:
        assert session.inputs[0].shape == (1, 3, 64, 64) and set(session.metadata) >= {"preprocessing", "labels", "size"}


@needs_compiler
def test_another_target_is_refused(package: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"compiled for aotinductor-cpu:fp32, asked for aotinductor-cpu:bf16"):
        AOTInductorRuntime(BF16).load_file(package)
    other = tmp_path / "arm.pt2"
    with zipfile.ZipFile(package) as old, zipfile.ZipFile(other, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, data.replace(b"x86_64", b"riscv64") if name.endswith("_metadata.json") else data)
    with pytest.raises(InvalidInput, match="compiled for riscv64"):
        AOTInductorRuntime(FP32).load_file(other)


def test_files_that_are_no_packages(tmp_path: Path) -> None:
    runtime = AOTInductorRuntime(FP32)
    program, junk = tmp_path / "program.pt2", tmp_path / "junk.pt2"
    torch.export.save(torch.export.export(torch.nn.ReLU(), (torch.zeros(2),)), program)
    junk.write_bytes(b"junk")
    with pytest.raises(InvalidInput, match=r"not compiled \(torch\.export\.save\); torch-cpu:fp32 runs it"):
        runtime.load_file(program)
    with pytest.raises(CorruptFile, match="not a readable package"):
        runtime.load_file(junk)
    with pytest.raises(InvalidInput, match="no such file"):
        runtime.load_file(tmp_path / "none.pt2")
    (tmp_path / "m.onnx").write_bytes(b"")
    with pytest.raises(InvalidInput, match=r"runs \.pt2 packages"):
        runtime.load_file(tmp_path / "m.onnx")


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aotinductor_session.shutil, "which", lambda name: None)
    with pytest.raises(Unavailable, match=r"none is found \(g\+\+") as caught:
        AOTInductorRuntime(FP32).load_modules([(torch.nn.ReLU(), (torch.zeros(2),))])
    assert "apt install g++" in caught.value.install


def test_cuda_is_answered() -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    with pytest.raises(Unavailable, match="CUDA"):
        AOTInductorRuntime(Target("aotinductor-cuda", "fp16"))
