"""A run folder has one writer, runs no code that it names, and notices what was changed in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from export.codec import decode
from export.errors import CorruptFile, Give, InvalidInput, Perform
from hyctas.arch.genotype import Genotype
from hyctas.artifacts.inherit import SupernetRecord
from hyctas.artifacts.runs import Run, check_output
from hyctas.cost.workloads import Costs
from hyctas.data.metric import Scores
from hyctas.network import load_weights, save_weights
from hyctas.search.history import Evaluation, History
from hyctas.space import tiny
from hyctas.spaces.space_file import recorded_space

HOLD = """
import sys, time
from pathlib import Path
from hyctas.artifacts.runs import Run
run = Run(Path(sys.argv[1]), "search", {}, ())
print("held", flush=True)
time.sleep(60)
"""


def test_a_run_folder_has_one_writer_at_a_time(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(InvalidInput, match=rf"another process \({holder.pid}\) is writing"):
            Run(tmp_path, "search", {}, ())
    finally:
        holder.kill()
        holder.wait()
        assert holder.stdout is not None
        holder.stdout.close()
    Run(tmp_path, "search", {}, ())


def test_jobs_of_one_process_share_a_folder_and_leave_no_lock(tmp_path: Path) -> None:
    first, second = Run(tmp_path, "profile", {}, ()), Run(tmp_path, "search", {}, ())
    assert (tmp_path / ".lock").exists()
    del first, second
    assert sorted(os.listdir(tmp_path)) == ["profile.json", "search.json"]


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    run = Run(tmp_path, "train-network", {}, ("network.safetensors", "network.checkpoint.pt"))
    network = torch.nn.Linear(2, 2)
    save_weights(network, run.file("network.safetensors"), {"genotype": "x"})
    check_output(run.file("network.safetensors"), "train-network")  # not finished: nothing is noted yet
    run.finish()
    check_output(run.file("network.safetensors"), "train-network")
    assert list(json.loads(run.path.read_text())["files"]) == ["network.safetensors"]
    data = bytearray(run.file("network.safetensors").read_bytes())
    data[-1] ^= 1
    run.file("network.safetensors").write_bytes(data)
    load_weights(network, run.file("network.safetensors"))  # a whole file of finite numbers
    with pytest.raises(CorruptFile, match="another sha256"):
        check_output(run.file("network.safetensors"), "train-network")


def test_equal_weights_are_equal_files(tmp_path: Path) -> None:
    code = (
        "import sys, torch; from pathlib import Path; from hyctas.network import save_weights\n"
        "module = torch.nn.Conv2d(3, 3, 1); torch.nn.init.ones_(module.weight); torch.nn.init.zeros_(module.bias)\n"
        "for i in range(8): save_weights(module, Path(sys.argv[1]) / str(i), {c: c for c in 'zyxwvu'})"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    module = torch.nn.Conv2d(3, 3, 1)
    load_weights(module, tmp_path / "0")
    assert torch.equal(module.weight, torch.ones(3, 3, 1, 1))


def test_a_space_file_that_a_record_names_does_not_run(tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(
        f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\nfrom hyctas.space import tiny\n\ndef space():\n    return tiny()\n"
    )
    for given in (None, "edge"):  # `edge` is only a default
        with pytest.raises(InvalidInput) as found:
            recorded_space(str(own), tiny().hash, tmp_path, given)
        assert found.value.remedies == (Give("space", str(own)),)
    assert not (tmp_path / "ran").exists()
    assert recorded_space(str(own), tiny().hash, tmp_path, str(own)).hash == tiny().hash and (tmp_path / "ran").exists()
    (tmp_path / "ran").rmdir()
    with pytest.raises(InvalidInput, match="another version of space"):
        recorded_space(str(own), "other", tmp_path, str(own))


def test_a_kill_between_weights_and_record(tmp_path: Path) -> None:
    Run(tmp_path, "train-supernet", {}, ("supernet.safetensors",)).file("supernet.safetensors").write_bytes(b"")
    with pytest.raises(InvalidInput, match="repeated as it was") as found:
        SupernetRecord.read(tmp_path)
    assert found.value.remedies == (Perform("train supernet", {"run": tmp_path}),)


@pytest.mark.parametrize("miou", ["5", "-1", "NaN", '"high"'])
def test_scores_are_shares(tmp_path: Path, miou: str) -> None:
    score = f'{{"miou": {miou}, "iou": [0.5], "pixel_accuracy": 0.5}}'
    (tmp_path / "scores.json").write_text(f'{{"format_version": 1, "val": {score}}}')
    with pytest.raises(CorruptFile, match=r"miou is|NaN"):
        decode(Scores, tmp_path / "scores.json", 1)


def evaluation(genotype: Genotype, kind: str = "search", miou: float = 0.5, ms: float = 2.0) -> Evaluation:
    return Evaluation(kind, 0, genotype.id, genotype, miou, ms, 10, 20, 1.0)


@pytest.fixture
def history(tmp_path: Path) -> History:
    found = History(tmp_path / "history.jsonl", {}, print)
    found.add(evaluation(tiny().smallest()))
    found.add(evaluation(tiny().smallest(), "random"))
    return found


@pytest.mark.parametrize(
    "line",
    [evaluation(tiny().smallest(), miou=0.9), evaluation(tiny().smallest(), "random", ms=1.0), evaluation(tiny().smallest())],
)
def test_a_second_line_for_a_network_is_not_believed(history: History, line: Evaluation) -> None:
    with open(history.path, "a") as handle:
        handle.write(json.dumps(line.to_json()) + "\n")
    with pytest.raises(CorruptFile, match="earlier line") as found:
        History(history.path, {}, print)
    assert found.value.line == 4


def test_costs_that_are_read_are_those_of_the_table(history: History) -> None:
    costs = Costs(latency_ms=2.0, bound_ms=2.0, parameters=10, macs=20, memory_mib=1.0)
    history.check_costs(lambda _: costs)
    for change in ({"latency_ms": 2.1}, {"parameters": 11}, {"macs": 19}, {"memory_mib": 2.0}):
        with pytest.raises(CorruptFile, match="by the latency table") as found:
            history.check_costs(lambda _, change=change: replace(costs, **change))  # type: ignore[misc]
        assert found.value.line == 2


def test_networks_that_were_not_asked_for_do_not_count(history: History) -> None:
    history.add(evaluation(tiny().largest(), miou=1.0))
    assert history.keep({("search", tiny().smallest().id), ("random", tiny().smallest().id)}) == 1
    assert [e.miou for e in history.evaluations] == [0.5, 0.5]
    assert len(history.path.read_text().splitlines()) == 4, "the file keeps it"


@pytest.mark.parametrize("killed_after_the_record", [False, True])
def test_what_is_private_goes_with_the_end_even_after_a_kill(tmp_path: Path, killed_after_the_record: bool) -> None:
    outputs = ("network.safetensors", "network.checkpoint.pt", "soft_labels")

    def begun() -> Run:
        run = Run(tmp_path, "train-network", {}, outputs)
        run.file("network.checkpoint.pt").write_text("state")
        run.file("soft_labels").mkdir()
        run.file("soft_labels/000000.safetensors").write_text("labels")
        return run

    begun().finish()
    if killed_after_the_record:
        begun()
        Run(tmp_path, "train-network", {}, outputs)
    assert os.listdir(tmp_path) == ["train-network.json"]


def test_a_record_without_its_configuration_is_not_taken_for_this_one(tmp_path: Path) -> None:
    (tmp_path / "search.json").write_text('{"format_version": 1, "command": "search", "state": "done"}')
    with pytest.raises(CorruptFile, match="lacks the field"):
        Run(tmp_path, "search", {"seed": 0}, ())
