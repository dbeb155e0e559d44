"""Run our code against TensorRT's real Python bindings, where there is neither TensorRT nor a GPU.

NVIDIA's wheel `tensorrt-cu1x-bindings` (1.3 MB) holds the extension module and none of the libraries it is linked to. Empty
libraries of the right names satisfy the loader, and then every class, enumeration and docstring is there, as is the whole Python
package `tensorrt.plugin`; what needs the real library does not work: `Builder(...)` raises.

What is fetched and made lies in $XDG_CACHE_HOME/hyctas-tests (or ~/.cache/hyctas-tests), never in the repository: the wheels are
NVIDIA's, and their licence does not let us pass them on. Delete that folder at any time.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
RECIPE = 1
"""Raise it when `_build` changes, so that what an earlier recipe made is not taken from the cache."""
NVIDIA_FUNCTION = re.compile(r"(create(Infer|NvOnnx)|get(Builder)?PluginRegistry|getNvOnnx|getInferLib|initLibNvInfer)\w*")
"""What `tensorrt.so` takes from NVIDIA's libraries, by the start of the name; all else comes from Python and the C library."""


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
    """One release's bindings."""

    release: Release
    folder: Path

    def call(self, function: str, *arguments: Any) -> Any:
        """Call a function in a fresh process that has these bindings, and return what it returned, through JSON.

        Args:
            function: as `package.module:function`; the module is imported there.
            arguments: what JSON can hold.

        Raises:
            RuntimeError: it raised, or the process died (a crash of the extension module among others); with its stderr.
        """
        libraries = [str(self.folder / "lib"), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
        paths = {"LD_LIBRARY_PATH": os.pathsep.join(libraries), "PYTHONPATH": f"{self.folder / 'site'}{os.pathsep}{ROOT}"}
        with tempfile.TemporaryDirectory() as scratch:
            answer = Path(scratch) / "answer.json"
            command = [sys.executable, "-m", "tests.export.trt.inside", function, json.dumps(arguments), str(answer)]
            done = subprocess.run(command, cwd=ROOT, env={**os.environ, **paths}, capture_output=True, text=True, timeout=120)
            if done.returncode or not answer.exists():
                said = f"{done.stdout}{done.stderr}".strip()
                raise RuntimeError(f"{function} under TensorRT {self.release.version} ended with {done.returncode}:\n{said}")
            return json.loads(answer.read_text())

    def evaluate_launch(self, register: str, plugin: str, inputs: Sequence[tuple[Sequence[int], str]]) -> dict[str, Any]:
        """Return what a plugin would launch, in numbers, driven by NVIDIA's own plugin classes as a build would; see `inside`."""
        return dict(self.call("tests.export.trt.inside:evaluate_launch", register, plugin, inputs))


def obtain(release: Release) -> Bindings:
    """Return the bindings of a release, from the cache where they are there; a folder of it appears whole or not at all.

    Raises:
        Unobtainable: this is not Linux, the wheel cannot be fetched, a tool is missing, or the cache cannot be written.
    """
    if platform.system() != "Linux":
        raise Unobtainable(f"the bindings' stub libraries are made for Linux, and this is {platform.system()}")
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    name = f"tensorrt-{release.version}-{sys.implementation.cache_tag}-{platform.machine()}-{RECIPE}"
    folder = Path(base) / "hyctas-tests" / name
    if folder.is_dir():
        return Bindings(release, folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as scratch:
            built = Path(scratch) / "built"
            built.mkdir()
            _build(release, built)
            try:
                built.rename(folder)
            except OSError:
                if not folder.is_dir():  # else another process was first
                    raise
    except FileNotFoundError as error:
        raise Unobtainable(f"{error.filename} is not installed") from error
    except (OSError, subprocess.SubprocessError) as error:
        raise Unobtainable(f"the bindings cannot be made: {error}") from error
    return Bindings(release, folder)


def _build(release: Release, folder: Path) -> None:
    """Fetch a wheel, and put what an import of it needs into `site` and `lib`."""
    site, lib = folder / "site", folder / "lib"
    lib.mkdir()
    with zipfile.ZipFile(_fetch(release, folder)) as wheel:
        wheel.extractall(site)
    # NVIDIA's package `tensorrt` comes as a source archive that downloads the rest when built; its content is these lines.
    (site / "tensorrt").mkdir()
    (site / "tensorrt/__init__.py").write_text("from tensorrt_bindings import *\nfrom tensorrt_bindings import __version__\n")
    if (site / "tensorrt_bindings/plugin").is_dir():
        (site / "tensorrt/plugin").mkdir()
        (site / "tensorrt/plugin/__init__.py").write_text("from tensorrt_bindings.plugin import *\n")
    (site / "tensorrt_libs.py").write_text('"""Hide libraries that are installed on this machine."""\n')
    binding = str(site / "tensorrt_bindings/tensorrt.so")
    needed = re.findall(r"\(NEEDED\).*\[(libnv\w+\.so\.\d+)\]", _output("readelf", "--dynamic", "--wide", binding))
    undefined = _output("nm", "--dynamic", "--undefined-only", binding).split()
    source = lib / "functions.c"  # each returns NULL: "factory function returned nullptr" where the real library would be needed
    functions = sorted({name for name in undefined if NVIDIA_FUNCTION.fullmatch(name)})
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in functions))
    for index, name in enumerate(needed):
        content = str(source) if index == 0 else "/dev/null"
        _output("cc", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(lib / name), "-x", "c", content)


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def _fetch(release: Release, folder: Path) -> Path:
    options = ["--no-deps", "--only-binary=:all:", "--progress-bar=off", "--retries=1", "--timeout=20", f"--dest={folder}"]
    command = [sys.executable, "-m", "pip", "download", *options, release.requirement]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        said = [line for line in done.stderr.splitlines() if line.strip() and "notice" not in line]
        raise Unobtainable(f"pip download {release.requirement} failed: {said[-1] if said else 'it said nothing'}")
    return wheels[0]
