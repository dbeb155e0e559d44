"""Check the real onnxruntime-gpu wheel on a machine without a GPU: asked for CUDA, everything must end with exit code 3.

The wheel lists CUDAExecutionProvider on every machine and silently goes on on the CPU where CUDA does not start, so fakes do not
prove much. The wheel (a few hundred MB) goes into a temporary folder that hides the installed onnxruntime from child processes:

    python -m benchmarks.check_onnxruntime_gpu                      # downloads it
    python -m benchmarks.check_onnxruntime_gpu --wheel FILE|FOLDER  # takes a wheel, or a folder it was installed into
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

TARGET = "onnxruntime-cuda:fp32"
ROOT = Path(__file__).parents[1]
_MODEL = """
from onnx import TensorProto, helper, save
infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 8, 8]) for name in ("x", "y")]
graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", infos[:1], infos[1:])
save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), {path!r})
"""
_LISTED = """
import onnxruntime
print(onnxruntime.__version__, *onnxruntime.get_available_providers())
"""
_OPENED = """
import sys
from pathlib import Path
from export.backends import onnxruntime_session
from export.errors import HyctasError
from export.backends.onnxruntime_session import OnnxRuntime
from export.target import Target
onnxruntime_session.nvidia_driver = lambda: True  # as on a machine with a driver, but without a device or CUDA
try:
    OnnxRuntime(Target.parse({target!r}), cuda_graph={graph}).load_file(Path({path!r}))
except HyctasError as error:
    sys.exit(print(f"error: {{error}}", file=sys.stderr) or error.exit_code)
"""


def main() -> None:
    """Run the command line: exit 0 where every child ended as it must, 1 where one did not, 3 on a machine with a GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=Path, help="a wheel file, or a folder that it was installed into")
    arguments = parser.parse_args()
    from export.platform import nvidia_driver

    if nvidia_driver():
        print("error: this machine has NVIDIA's driver; the check is about machines without", file=sys.stderr)
        sys.exit(3)
    with tempfile.TemporaryDirectory(prefix="hyctas-ortgpu-") as temporary:
        sys.exit(0 if check(_installed(arguments.wheel, Path(temporary)), Path(temporary)) else 1)


def check(wheel: Path, folder: Path) -> bool:
    """Start the children with an installed wheel in front of their path; print what each did."""
    model = str(folder / "relu.onnx")
    _child(wheel, ["-c", _MODEL.format(path=model)]).check_returncode()
    listed = _child(wheel, ["-c", _LISTED])
    print(f"onnxruntime-gpu {listed.stdout.strip()}")
    if "CUDAExecutionProvider" not in listed.stdout:
        print(f"FAILED: that is not a GPU wheel{listed.stderr}")
        return False
    opened = {graph: _OPENED.format(target=TARGET, graph=graph, path=model) for graph in (True, False)}
    asked = ["--target", TARGET]
    children = {
        "hyctas-profile": ["-m", "hyctas.cli.profile", "--space", "tiny", "--size", "64x96", *asked, "--run", str(folder / "p")],
        "hyctas-bench": ["-m", "hyctas.cli.bench", model, *asked, "--run", str(folder / "b")],
        "session, CUDA graph": ["-c", opened[True]],
        "session, no CUDA graph": ["-c", opened[False]],
    }
    return all([_ended_well(name, _child(wheel, command)) for name, command in children.items()])  # all are shown


def _ended_well(name: str, done: subprocess.CompletedProcess[str]) -> bool:
    """Ask for exit code 3, one sentence with its remedy on standard error, and nothing else."""
    lines = done.stderr.strip().splitlines()
    start = f"error: {TARGET} is unavailable: "
    good = done.returncode == 3 and len(lines) == 2 and not done.stdout.strip()
    good = good and lines[0].startswith(start) and lines[1].startswith("To make it available: ")
    print(f"{'ok' if good else 'FAILED'}: {name} exited with {done.returncode}")
    print("".join(f"    {line}\n" for line in (*done.stdout.strip().splitlines(), *lines)), end="")
    return good


def _installed(wheel: Path | None, folder: Path) -> Path:
    if wheel is not None and wheel.is_dir():
        return wheel.resolve()
    place = folder / "wheel"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--target", str(place), str(wheel or "onnxruntime-gpu")], check=True)
    return place


def _child(wheel: Path, command: list[str]) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(wheel), str(ROOT)))}
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, cwd=ROOT)


if __name__ == "__main__":
    main()
