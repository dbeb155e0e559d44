"""Build one ONNX file with TensorRT-RTX, in a process of its own: python -m benchmarks.tensorrt_case FILE OPTIONS.

A failed build can change what the next one in its process gives, so every case has its own. Prints one line of JSON. No torch here.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, kw_only=True)
class Built:
    """What the parser and builder made of a file."""

    error: str
    """Their own words; empty where an engine was built."""
    size_bytes: int = 0
    sha256: str = ""
    layers: int = 0
    softmaxes: int = 0
    """Softmaxes of the graph: one per attention, or per chunk of one."""
    fused: int = 0
    """How many of them are in a kernel that computes the whole attention."""


def build_all(cases: Sequence[tuple[Path, dict[str, Any]]], at_once: int = 2) -> list[Built]:
    """Build files with `export.trt.options.BuildOptions` as JSON, each in a process of its own."""
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(lambda case: build_one(*case), cases))


def build_one(file: Path, options: dict[str, Any], checked: bool = True) -> Built:
    """Build one file.

    Args:
        file: of one file, in its precision.
        options: as `BuildOptions.to_json` gives them.
        checked: False leaves out what our code refuses beforehand, to hear it from the builder.
    """
    command = [sys.executable, "-m", "benchmarks.tensorrt_case", str(file), json.dumps(options), "" if checked else "unchecked"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        return Built(error=f"the process ended with {done.returncode}: {done.stderr[-800:]}")
    return Built(**json.loads(done.stdout.splitlines()[-1]))


def _case(file: Path, options: dict[str, Any], checked: bool) -> dict[str, Any]:
    import onnx

    from export.errors import HyctasError
    from export.trt import build
    from export.trt.layers import fused_attention, softmax_nodes
    from export.trt.options import BuildOptions

    if not checked:
        build.check_buildable = lambda options, attention: None
    try:
        built = build.build_engine(file, BuildOptions.from_json(options))
    except HyctasError as error:
        return {"error": str(error)}
    fused = fused_attention(built.engine_layers, softmax_nodes(onnx.load(file)))
    counts = {"layers": len(built.engine_layers), "softmaxes": len(fused.kernels), "fused": len(fused.fused)}
    return {"error": "", "size_bytes": len(built.plan), "sha256": built.sha256, **counts}


if __name__ == "__main__":
    print(json.dumps(_case(Path(sys.argv[1]), json.loads(sys.argv[2]), not sys.argv[3])))
