"""hyctas-train network --teacher: the run records the teacher, follows it, and keeps nothing of it afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch

from export import export_onnx
from export.files import sha256
from hyctas.data import PREPROCESSING, Scenes
from hyctas.network import build
from hyctas.space import tiny

DATA = "scenes:seed=3,train=24,val=4,size=48x64"


def test_training_with_a_teacher(command: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    torch.manual_seed(0)
    labels = Scenes().labels
    teacher = tmp_path / "teacher.onnx"
    about = {"preprocessing": json.dumps(PREPROCESSING.to_json()), "labels": json.dumps(labels.to_json())}
    export_onnx(build(tiny().smallest(), labels.num_classes), (48, 64), teacher, metadata=about)
    (tmp_path / "genotype.json").write_text(tiny().smallest().to_json())
    run = tmp_path / "run"
    train = ("train", "network", "--run", run, "--network", tmp_path / "genotype.json", "--data", DATA, "--steps", 2,
             "--crop", "48x64", "--batch", 4)  # fmt: skip

    code, text = command(*train, "--teacher", tmp_path / "none.onnx")
    assert code == 2 and "none.onnx" in text and not run.exists()
    code, text = command(*train, "--teacher", tmp_path / "genotype.json")
    assert code == 2 and "a teacher is a run folder" in text and not run.exists()

    code, text = command(*train, "--teacher", teacher)
    assert code == 0 and "label with teacher" in text, text
    record = json.loads((run / "train-network.json").read_text())
    assert record["config"]["teacher"] == [sha256(teacher)] and record["config"]["recipe"]["temperature"] == 2.0
    assert (run / "network.safetensors").exists() and not (run / "soft_labels").exists()

    code, text = command(*train, "--teacher", teacher)
    assert code == 0 and "already trained" in text
    code, text = command(*train)
    assert code == 2 and "teacher: was" in text
    code, text = command(*train, "--teacher", run)
    assert code == 2 and "the run itself" in text
