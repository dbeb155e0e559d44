"""Build empty shared libraries with the names that TensorRT's bindings are linked to, so that they load without TensorRT.

The extension module needs about nine functions of NVIDIA's; each becomes one that returns NULL, which the bindings report as a
TypeError ("factory function returned nullptr") when something is constructed that would need the real library.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

NVIDIA_FUNCTION = re.compile(r"(create(Infer|NvOnnx)|get(Builder)?PluginRegistry|getNvOnnx|getInferLib|initLibNvInfer)\w*")
"""What `tensorrt.so` takes from NVIDIA's libraries, by the start of the name; all else comes from Python and the C library."""


def make_stub_libraries(binding: Path, out: Path) -> list[str]:
    """Write a library into a folder for each of NVIDIA's that an extension module needs.

    Args:
        binding: the extension module (`tensorrt.so`).
        out: an existing folder.

    Returns:
        The names written, for instance `libnvinfer.so.10`.

    Raises:
        FileNotFoundError: `readelf`, `nm` or `cc` is not installed; `filename` says which.
        subprocess.CalledProcessError: one of them failed.
    """
    needed = re.findall(r"\(NEEDED\).*\[(libnv\w+\.so\.\d+)\]", _output("readelf", "--dynamic", "--wide", str(binding)))
    undefined = _output("nm", "--dynamic", "--undefined-only", str(binding)).split()
    functions = sorted({name for name in undefined if NVIDIA_FUNCTION.fullmatch(name)})
    source = out / "functions.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in functions))
    for index, name in enumerate(needed):
        content = str(source) if index == 0 else "/dev/null"
        _output("cc", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(out / name), "-x", "c", content)
    return needed


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
