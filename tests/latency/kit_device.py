"""A device for kits: runs their script with a fake trtexec, and knows what the fake's times are."""

from __future__ import annotations

import atexit
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx

from tests.export import foreign_files as foreign

SOURCE = Path(__file__).with_name("fake_trtexec.py")
CACHE = tempfile.mkdtemp(prefix="fake-trtexec-")
atexit.register(shutil.rmtree, CACHE, ignore_errors=True)


def _load_fake() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fake_trtexec", SOURCE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FAKE = _load_fake()


def environment(kit: Path, **settings: object) -> dict[str, str]:
    """Set up a fake trtexec for a kit."""
    state = kit.parent / "state"
    state.mkdir(exist_ok=True)
    program = state / "trtexec"
    if not program.exists():
        program.write_text(f"#!{sys.executable}\n" + SOURCE.read_text())
        program.chmod(0o755)
    given = {"TRTEXEC": program, "FAKE_STATE": state, "FAKE_CACHE": CACHE, "MIN_FREE_MB": 1, "FAKE_VERSION": 100300} | settings
    return {**os.environ, **{name: str(value) for name, value in given.items()}}


def run_script(kit: Path, code: int | None = 0, *, shell: str = "sh", **settings: object) -> subprocess.CompletedProcess[str]:
    """Run a kit's script; hold its exit code against `code`."""
    command, env = [*shell.split(), "run.sh"], environment(kit, **settings)
    done = subprocess.run(command, cwd=kit, env=env, capture_output=True, text=True, timeout=300)
    assert code is None or done.returncode == code, done.stdout + done.stderr
    return done


def convolution(channels: int, size: tuple[int | str, int | str] = (32, 24)) -> onnx.ModelProto:
    """Make a small network."""
    weight = np.random.default_rng(channels).standard_normal((channels, 3, 3, 3), dtype=np.float32)
    node = onnx.helper.make_node("Conv", ["image", "w"], ["y"], name="n0")
    return foreign.model(
        [node], [foreign.info("image", [1, 3, *size])], [foreign.info("y", [1, channels, "a", "b"])], {"w": weight}
    )
