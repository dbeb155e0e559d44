"""A device for kits: runs their script with a fake trtexec, and says what times the fake gives to a model's layers."""

from __future__ import annotations

import atexit
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx

from tests.export import foreign_files as foreign

SOURCE = Path(__file__).with_name("fake_trtexec.py")
MODELS = Path(tempfile.mkdtemp(prefix="fake-trtexec-"))
atexit.register(shutil.rmtree, MODELS, ignore_errors=True)


def layer_times(model: onnx.ModelProto) -> dict[str, float]:
    """Give each layer of a model (onnx.ModelProto) its time in ms, by the layer's name.

    A layer takes 5 us plus a time per multiply-accumulate; convolutions swallow a ReLU that follows.
    """
    typed = onnx.shape_inference.infer_shapes(model)
    graph = typed.graph
    infos = [*graph.input, *graph.output, *graph.value_info]
    shapes = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in infos}
    shapes |= {t.name: list(t.dims) for t in graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    layers, swallowed = {}, set()
    for node in graph.node:
        if node.name in swallowed:
            continue
        size = math.prod(shapes[node.output[0]])
        work = size * math.prod(shapes[node.input[1]][1:]) if node.op_type == "Conv" else size
        name, after = node.name, readers.get(node.output[0], [])
        if node.op_type == "Conv" and len(after) == 1 and after[0].op_type == "Relu":
            name += f" + {after[0].name}"
            swallowed.add(after[0].name)
        layers[name] = 0.005 + work * 1e-6
    return layers


def describe(data: bytes) -> dict[str, object]:
    """Return a model's layer times, inputs and outputs, and whether it holds half tensors."""
    model = onnx.load_from_string(data)
    half = any(t.data_type == onnx.TensorProto.FLOAT16 for t in model.graph.initializer)
    return {"layers": layer_times(model), "ends": [i.name for i in (*model.graph.input, *model.graph.output)], "half": half}


def environment(kit: Path, **settings: object) -> dict[str, str]:
    """Set up a fake trtexec for a kit."""
    state = kit.parent / "state"
    state.mkdir(exist_ok=True)
    program = state / "trtexec"
    if not program.exists():
        program.write_text(f"#!{sys.executable} -IS\n" + SOURCE.read_text())
        program.chmod(0o755)
    for path in (kit / "onnx").glob("*.onnx"):
        data = path.read_bytes()
        found = MODELS / f"{hashlib.sha256(data).hexdigest()}.json"
        if not found.exists() and data[:1] == b"\x08":  # a test damages a file, which is then never built
            found.write_text(json.dumps(describe(data)))
    given = {"TRTEXEC": program, "FAKE_STATE": state, "FAKE_MODELS": MODELS, "MIN_FREE_MB": 1, "FAKE_VERSION": 100300} | settings
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
