"""Make small valid files of every kind with the product itself; the fuzzer starts from them, and torture from its latency table."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from tests.fuzz.fuzz_launch import perform, run_command, start, wait

DATA = "scenes:train=16,val=4,size=32x32"
SIZE, CLASSES = (64, 64), 10
IMAGES = ("png", "jpg", "bmp", "tif", "webp")
SMALL = ("--crop", "32x32", "--batch", "2", "--steps", "1")
RECIPE = """\
learning_rate = 0.002
warmup_steps = 5
scale = [0.6, 1.6]
schedule = "poly"
amp = true
ema = 0.0
clip = 5.0
save_seconds = 0.0
"""
PROFILE = """\
budget_ms = 5.0
min_samples = 20
ci = 0.02
retake_load = 0.1
builds = 1
passes = 3
"""


class SamplesFailed(Exception):
    """The product could not make its own files."""


def make_samples(root: Path) -> None:
    """Fill `root`: run/, half/ (a training that was stopped), data/, kit/, files/."""
    shutil.rmtree(root, ignore_errors=True)
    for name in ("run", "half", "files"):
        (root / name).mkdir(parents=True)
    (root / "files" / "train.toml").write_text(RECIPE)
    (root / "files" / "profile.toml").write_text(PROFILE)
    log, run, half = root / "log.txt", root / "run", root / "half"
    parts = [lambda: write_tables(run), lambda: _data(root / "data"), lambda: _kit(root / "kit"), lambda: _files(root / "files")]
    for part in parts:
        _must(wait(start(lambda part=part: part() or 0, log), 600), log)  # type: ignore[misc]
    supernet = ("supernet", "--run", run, "--data", DATA, "--space", "tiny", *SMALL)
    search = ("--run", run, "--evaluations", 2, "--images", 2, "--measure", 0, "--finalists", 0)
    network = ("network", "--run", run, "--data", DATA, *SMALL)
    commands: list[tuple[str, tuple[object, ...]]] = [("train", supernet), ("search", search), ("train", network)]
    commands += [("export", (f"{run}/bundle/", "--network", run, "--size", "64x64"))]
    commands += [("export", (run / "model.onnx", "--network", run, "--size", "64x64"))]
    commands += [("export", (run / "model.pt2", "--network", run, "--size", "64x64"))]
    commands += [("bench", (run / "model.onnx", "--out", run / "fps.json", "--seconds", 0.02))]
    # in one process, which starts the exporter once
    _must(wait(start(lambda: any(perform(name, arguments) for name, arguments in commands), log), 600), log)
    stopped = ("--config", root / "files" / "train.toml", "--run", half, "--data", DATA, *SMALL)
    _must(run_command("train", "supernet", "--space", "tiny", *stopped, log=log, prepare=_stop_before_weights), log)
    told = ("--network", run / "genotype.json", "--teacher", run)
    _must(run_command("train", "network", *told, *stopped, log=log, prepare=_stop_before_weights), log)


def write_tables(run: Path) -> None:
    """Write a fixed latency table, in which latency follows MACs, calibrated for `SIZE`; and its journal."""
    from export.runtimes import open_runtime
    from export.target import Target
    from hyctas.arch.operators import from_key
    from hyctas.cost.workloads import family
    from hyctas.space import tiny
    from latency.accuracy import Fidelity
    from latency.calibration import Calibration
    from latency.identity import Identity
    from latency.journal import Journal, journal_path
    from latency.protocol import Protocol
    from latency.table import LatencyTable, Row

    space = tiny()
    identity = Identity.of(open_runtime(Target.parse("onnxruntime-cpu:fp32"), 1), Protocol(), {"cpu": "another"})
    rows = {}
    for key in space.keys(SIZE, CLASSES):
        operator, shapes = from_key(key)
        ms = 0.01 + 30 * operator.macs(shapes) / 1e9
        rows[key] = Row(op=family(key), median_ms=ms, p10_ms=0.9 * ms, p90_ms=1.1 * ms, n=20, builds=1, busy=False)
    fidelity = Fidelity(mape=0.01, within5=1.0, within10=1.0, spearman=1.0, kendall=1.0, n=20)
    calibration = Calibration(
        name="tiny@64x64", constant=0.0, scale=1.0, n=20, holdout=fidelity,
        space_hash=space.hash, residual_sd=0.0,
    )  # fmt: skip
    table = LatencyTable(identity, rows, {calibration.name: calibration}, [{"started": "2026-01-01T00:00:00Z", "seed": 0}])
    table.save(run / "latency.json")
    with Journal(journal_path(run.parent / "files" / "table.json"), identity, {"seed": 0}) as journal:
        for key, row in list(rows.items())[:8]:
            journal.row(key, row)
        journal.note("a remark")


def _must(code: int | None, log: Path) -> None:
    if code != 0:
        raise SamplesFailed(f"a sample could not be made (exit {code}); the end of {log}:\n{log.read_text()[-3000:]}")


def _stop_before_weights() -> None:
    """Have a training end as if it were killed between its last checkpoint and its weights."""
    from hyctas.commands import network_training, train

    def stop(*_: Any) -> None:
        os._exit(0)

    for module in (network_training, train):
        module.save_weights = stop  # type: ignore[assignment]


def _data(root: Path) -> None:
    """Write a plain data set of a few street scenes."""
    from PIL import Image

    from hyctas.data import Scenes

    scenes = Scenes(size=(32, 32), train=len(IMAGES), val=2)
    for split in ("train", "val"):
        for number, sample in enumerate(scenes.samples(split)):
            image, label = scenes.load(split, sample)
            for kind, array, suffix in (("images", image, IMAGES[number]), ("labels", label, "png")):
                path = root / kind / split / f"clip{number}_{number}.{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
    names = [f"{name} #1020{at:02x}" for at, name in enumerate(scenes.labels.names)]
    (root / "classes.txt").write_text("\n".join([*names, "ignore=255"]) + "\n")


def _kit(root: Path) -> None:
    """Write a kit for a few operators, and have the stand-in of trtexec measure it."""
    from export.target import Target
    from hyctas.cost.workloads import workloads
    from hyctas.space import tiny
    from latency.kit.write import write_kit
    from tests.latency.kit_device import run_script

    keys = list(tiny().keys(SIZE, CLASSES))[:3]
    about = {"purpose": "profile", "space": "tiny", "space_hash": tiny().hash, "size": [*SIZE], "classes": CLASSES, "count": 0,
             "networks": {}}  # fmt: skip
    write_kit(root, workloads(keys), {}, Target.parse("tensorrt:fp16"), about=about, cost_ms=dict.fromkeys(keys, 0.05))
    run_script(root)


def _files(folder: Path) -> None:
    """Write what users bring or what caches hold: weights, released genotype, foreign ONNX files, manifest of an engine."""
    import torch

    from hyctas.published import drawn, genotype
    from hyctas.published.json_format import export_genotype
    from hyctas.search.finalists import Round, write_rounds

    state = {"backbone.stem1.0.weight": torch.ones(64, 3, 3, 3), "head.weight": torch.ones(4, 4)}
    torch.save(state, folder / "weights.pth")
    from safetensors.torch import save_file

    save_file(state, folder / "weights.safetensors", {"from": "elsewhere"})
    (folder / "released.json").write_text(export_genotype(genotype("S")))
    (folder / "genotype.json").write_text(drawn("drawn2").to_json())
    first, second, third = (letter * 12 for letter in "abc")
    found = Round(100, {first: 9.5, second: 11.0}, (second,), {first: 0.5}, {third: "the loss is not finite"}, (first,))
    write_rounds(folder / "rounds.json", [found])
    _onnx(folder / "foreign.onnx")
    (folder / "classes.json").write_text(json.dumps({"classes": ["a", {"name": "b", "colour": "#102030"}], "ignore": 11}))
    _trt(folder)


def _onnx(path: Path) -> None:
    from onnx import TensorProto, helper, numpy_helper, save_model

    rng = np.random.default_rng(0)
    weight = numpy_helper.from_array(rng.standard_normal((4, 3, 3, 3), dtype=np.float32), "w")
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, "h", "w"])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 4, "h", "w"])
    node = helper.make_node("Conv", ["image", "w"], ["logits"], name="n0", pads=[1, 1, 1, 1])
    model = helper.make_model(helper.make_graph([node], "g", [image], [logits], [weight]), ir_version=10,
                              opset_imports=[helper.make_opsetid("", 18)])  # fmt: skip
    labels = {"names": ["a", "b", "c", "d"], "colours": [[0, 0, 0], [9, 9, 9], [20, 0, 0], [0, 30, 0]], "ignore": 255}
    preprocessing = {"mean": [0.4, 0.4, 0.4], "std": [0.2, 0.2, 0.2], "layout": "NCHW"}
    helper.set_model_props(model, {"labels": json.dumps(labels), "preprocessing": json.dumps(preprocessing)})
    save_model(model, path)
    save_model(model, path.with_name("external.onnx"), save_as_external_data=True, location="external.bin", size_threshold=0)


def _trt(folder: Path) -> None:
    from dataclasses import asdict

    from export.files import write_json
    from export.trt.engine_file import EngineManifest, Machine
    from export.trt.options import BuildOptions

    machine = Machine(tensorrt="10.3.0", cuda="12.6", driver="550", gpu="a GPU", capability=(8, 7), system="linux-aarch64")
    sha = hashlib.sha256(b"engine").hexdigest()
    manifest = EngineManifest(
        machine=machine, engine_sha256=sha, size_bytes=6, onnx="model.onnx", onnx_sha256=sha, graph_sha256=sha, precision="fp16",
        options=json.loads(json.dumps(asdict(BuildOptions(precision="fp16")), default=str)), command="hyctas-export model.engine",
    )  # fmt: skip
    (folder / "model.engine").write_bytes(b"engine")
    write_json(folder / "model.engine.json", manifest.to_json())


def onnx_metadata(data: bytes) -> bytes:
    """Return an ONNX file's metadata as a JSON object; what is JSON inside is opened."""
    import onnx

    found = {entry.key: entry.value for entry in onnx.load_model_from_string(data).metadata_props}
    return json.dumps({name: json.loads(text) if text[:1] in '{["' else text for name, text in found.items()}).encode()


def with_onnx_metadata(data: bytes, metadata: bytes) -> bytes:
    """Put a JSON object's values, or text that is none any more, into an ONNX file's metadata."""
    import onnx

    model = onnx.load_model_from_string(data)
    del model.metadata_props[:]
    text = metadata.decode("utf-8", "replace")
    try:
        values = json.loads(text)
        props = {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
    except (ValueError, RecursionError, AttributeError):
        props = {"preprocessing": text, "labels": text}
    for name, value in props.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = name.encode("utf-8", "replace").decode(), value.encode("utf-8", "replace").decode()
    return bytes(model.SerializeToString())
