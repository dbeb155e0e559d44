"""hyctas-train network --teacher: the run records the teacher, follows it, and keeps nothing of it afterwards."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from export import export_onnx
from export.files import sha256
from hyctas.data import PREPROCESSING, Scenes
from hyctas.network import build
from hyctas.space import tiny
from tests.hyctas.cli.conftest import Command, expect

DATA = "scenes:seed=3,train=24,val=4,size=48x64"


def test_training_with_a_teacher(command: Command, tmp_path: Path) -> None:
    torch.manual_seed(0)
    labels = Scenes().labels
    teacher = tmp_path / "teacher.onnx"
    about = {"preprocessing": json.dumps(PREPROCESSING.to_json()), "labels": json.dumps(labels.to_json())}
    export_onnx(build(tiny().smallest(), labels.num_classes), (48, 64), teacher, metadata=about)
    (tmp_path / "genotype.json").write_text(tiny().smallest().to_json())
    run = tmp_path / "run"
    train = ("train", "network", "--run", run, "--network", tmp_path / "genotype.json", "--data", DATA, "--steps", 2,
             "--crop", "48x64", "--batch", 4)  # fmt: skip

    expect(command(*train, "--teacher", tmp_path / "none.onnx"), 2, "none.onnx")
    assert not run.exists()
    expect(command(*train, "--teacher", tmp_path / "genotype.json"), 2, "a teacher is a run folder")
    assert not run.exists()

    expect(command(*train, "--teacher", teacher), 0, "label with teacher")
    record = json.loads((run / "train-network.json").read_text())
    assert record["config"]["teacher"] == [sha256(teacher)] and record["config"]["recipe"]["temperature"] == 2.0
    assert (run / "network.safetensors").exists() and not (run / "soft_labels").exists()

    expect(command(*train, "--teacher", teacher), 0, "already trained")
    expect(command(*train), 2, "teacher: was")
    expect(command(*train, "--teacher", run), 2, "the run itself")
