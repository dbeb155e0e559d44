"""The wheel holds the three packages with their data, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("hyctas", "latency", "export")
BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Build the wheel from a copy: a build folder left in the tree would let deleted files live on in the next wheel."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, tree)
    for name in (*PACKAGES, "benchmarks", "tests", "docs"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
    command = [sys.executable, "-c", BUILD, str(out)]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(out / done.stdout.splitlines()[-1])


def info(wheel: zipfile.ZipFile) -> str:
    """Return the name of the metadata folder."""
    return next(name.partition("/")[0] for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))


def test_top_level_names(wheel: zipfile.ZipFile) -> None:
    assert {name.partition("/")[0] for name in wheel.namelist()} - {info(wheel)} == set(PACKAGES)
    assert set(wheel.read(f"{info(wheel)}/top_level.txt").decode().split()) == set(PACKAGES)


def test_every_file_of_the_packages_is_in_it(wheel: zipfile.ZipFile) -> None:
    expected = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert {"export/bundle/run.py.txt", *(f"{package}/py.typed" for package in PACKAGES)} <= expected
    assert {name for name in wheel.namelist() if not name.startswith(info(wheel))} == expected


def test_licence_and_commands(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    assert {f"{info(wheel)}/licenses/{name}" for name in ("LICENSE", "NOTICE")} <= set(names)
    scripts = wheel.read(f"{info(wheel)}/entry_points.txt").decode()
    for command in ("profile", "train", "search", "export", "bench", "predict", "doctor", "demo"):
        assert f"hyctas-{command} = hyctas.cli.{command}:main" in scripts
    assert "License-Expression: Apache-2.0" in wheel.read(f"{info(wheel)}/METADATA").decode()
