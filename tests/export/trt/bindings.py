"""Run our code against TensorRT's real Python bindings, where there is neither TensorRT nor a GPU.

NVIDIA's wheel `tensorrt-cu1x-bindings` (1.3 MB) holds the extension module and none of the libraries it is linked to. Empty
libraries of the right names satisfy the loader (`make_stub_libraries`), and then every class, enumeration, signature and docstring
is there, as is the whole Python package `tensorrt.plugin`; what needs the real library does not work: `Builder(...)` raises.

| call                           | does                                                                                |
|--------------------------------|-------------------------------------------------------------------------------------|
| `obtain(release)`              | take a release from the cache, or fetch and build it; `Unobtainable` says why not   |
| `Bindings.call("module:function", ...)` | call a function in a fresh process that has these bindings                 |
| `Bindings.evaluate_launch(...)`  | see what a plugin would launch for given inputs, in numbers                       |

What is fetched and made lies in $XDG_CACHE_HOME/hyctas-tests (or ~/.cache/hyctas-tests), never in the repository: the wheels are
NVIDIA's, and their licence does not let us pass them on. Delete that folder at any time.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.export.trt.make_stub_libraries import make_stub_libraries

ROOT = Path(__file__).parents[3]
RECIPE = 1
"""Raise it when `_build` changes, so that what an earlier recipe made is not taken from the cache."""


class Unobtainable(Exception):
    """The bindings cannot be had here; the text says why."""


@dataclass(frozen=True)
class Release:
    """A release of TensorRT whose bindings our code is held against."""

    version: str
    """As our documents name it."""
    requirement: str
    """The wheel, for pip."""
    plugins: bool
    """Whether we rely on its ahead-of-time plugins (`export.trt.versions.PLUGINS_FROM`)."""


RELEASES = (
    Release("10.3.0", "tensorrt-cu12-bindings==10.3.0", False),
    Release("10.16.1", "tensorrt-cu12-bindings==10.16.1.11", True),
    Release("11.4.0", "tensorrt-cu13-bindings==11.4.0.106", True),
)
"""The oldest we support, which JetPack 6 has; the last of 10.x; the newest that was looked at."""


@dataclass(frozen=True)
class Bindings:
    """One release's bindings, importable by processes that are started with `environment`."""

    release: Release
    folder: Path

    def environment(self) -> dict[str, str]:
        """Return this process's environment with these bindings, and our packages, put first."""
        paths = [str(self.folder / "site"), str(ROOT)]
        libraries = [str(self.folder / "lib"), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
        return {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(libraries), "PYTHONPATH": os.pathsep.join(paths)}

    def call(self, function: str, *arguments: Any, timeout_s: float = 120) -> Any:
        """Call a function in a fresh process.

        Args:
            function: as `package.module:function`; the module is imported there.
            arguments: what JSON can hold.
            timeout_s: seconds until the process is ended.

        Returns:
            What the function returned, through JSON.

        Raises:
            RuntimeError: it raised, or the process died (a crash of the extension module among others); with its stderr.
        """
        with tempfile.TemporaryDirectory() as scratch:
            answer = Path(scratch) / "answer.json"
            command = [sys.executable, "-m", "tests.export.trt.inside", function, json.dumps(arguments), str(answer)]
            done = subprocess.run(command, cwd=ROOT, env=self.environment(), capture_output=True, text=True, timeout=timeout_s)
            if done.returncode or not answer.exists():
                said = f"{done.stdout}{done.stderr}".strip()
                raise RuntimeError(f"{function} under TensorRT {self.release.version} ended with {done.returncode}:\n{said}")
            return json.loads(answer.read_text())

    def evaluate_launch(self, register: str, plugin: str, inputs: Sequence[tuple[Sequence[int], str]]) -> dict[str, Any]:
        """Return what a plugin would launch, in numbers, driven by NVIDIA's own plugin classes as a build would.

        A module of this folder that registers plugins and has a dict `ACCEPTED`, as `sample_plugin.py` has, is put through this
        by `test_trt_contracts.py`; a test that knows the grid to expect takes the fixture `plugin_bindings` and calls this itself.

        Args:
            register: what registers the plugin: `package.module` (by being imported) or `package.module:function` (by being
                called without arguments). The functions' annotations must be real ones, not strings: NVIDIA reads them.
            plugin: its name, `namespace::name`.
            inputs: per input its shape, and its type as `trt.DataType` names it (`"HALF"`).

        Returns:
            `outputs`: [shape, type] per output. `attributes`: names of the plugin's attributes. `found_by_parser`: whether the
            ONNX parser finds it. `launches`: per combination of types and tactic a dict with `types` and `formats` (inputs, then
            outputs), `tactic`, `kernel` (name), `code` (PTX as text, or the length in bytes of a cubin), `grid` and `block` (x, y,
            z), `shared_bytes`, and `scalars` (the int32 between input and output pointers).

        Raises:
            RuntimeError: NVIDIA's validators, or our functions, raised.
        """
        return dict(self.call("tests.export.trt.inside:evaluate_launch", register, plugin, inputs))


def obtain(release: Release) -> Bindings:
    """Return the bindings of a release, from the cache where they are there.

    Raises:
        Unobtainable: this is not Linux, the wheel cannot be fetched, or a tool is missing; with the reason.
    """
    if platform.system() != "Linux":
        raise Unobtainable(f"the bindings' stub libraries are made for Linux, and this is {platform.system()}")
    name = f"tensorrt-{release.version}-{sys.implementation.cache_tag}-{platform.machine()}-{RECIPE}"
    return Bindings(release, made_once(name, lambda folder: _build(release, folder)))


def made_once(name: str, make: Callable[[Path], None]) -> Path:
    """Return a folder of the cache, calling `make` on a new one if there is none; it appears whole or not at all.

    Raises:
        Unobtainable: `make` raised it, or the cache cannot be written.
    """
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(base) / "hyctas-tests" / name
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as scratch:
            built = Path(scratch) / "built"
            built.mkdir()
            make(built)
            try:
                built.rename(folder)
            except OSError:
                if not folder.is_dir():  # else another process was first
                    raise
    except OSError as error:
        raise Unobtainable(f"the cache of the tests cannot be written: {error}") from error
    return folder


def _build(release: Release, folder: Path) -> None:
    """Fetch a wheel, and put what an import of it needs into `site` and `lib`."""
    site, lib = folder / "site", folder / "lib"
    lib.mkdir()
    with zipfile.ZipFile(_fetch(release, folder)) as wheel:
        wheel.extractall(site)
    # NVIDIA's package `tensorrt` comes as a source archive that downloads the rest when built; its content is these lines.
    (site / "tensorrt").mkdir()
    (site / "tensorrt/__init__.py").write_text(
        "from tensorrt_bindings import *\nfrom tensorrt_bindings import __version__\n"
    )
    if (site / "tensorrt_bindings/plugin").is_dir():
        (site / "tensorrt/plugin").mkdir()
        (site / "tensorrt/plugin/__init__.py").write_text("from tensorrt_bindings.plugin import *\n")
    (site / "tensorrt_libs.py").write_text('"""Hide libraries that are installed on this machine."""\n')
    try:
        make_stub_libraries(site / "tensorrt_bindings/tensorrt.so", lib)
    except FileNotFoundError as error:
        raise Unobtainable(f"{error.filename} is not installed") from error
    except subprocess.CalledProcessError as error:
        raise Unobtainable(f"{error.cmd[0]} failed: {error.stderr.strip()}") from error


def _fetch(release: Release, folder: Path) -> Path:
    options = ["--no-deps", "--only-binary=:all:", "--progress-bar=off", "--retries=1", "--timeout=20", f"--dest={folder}"]
    command = [sys.executable, "-m", "pip", "download", *options, release.requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    except subprocess.TimeoutExpired:
        raise Unobtainable(f"pip download {release.requirement} took over 180 s") from None
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        said = [line for line in done.stderr.splitlines() if line.strip() and "notice" not in line]
        raise Unobtainable(f"pip download {release.requirement} failed: {said[-1] if said else 'it said nothing'}")
    return wheels[0]
