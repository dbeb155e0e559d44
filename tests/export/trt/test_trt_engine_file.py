"""Manifests beside engines: what is refused before anything is deserialised, rebuilding; none of it needs torch or ONNX."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from export.errors import CorruptFile, InvalidInput, Perform, Unavailable
from export.trt import engine_file, from_onnx
from export.trt.cuda.guard import Gpu
from export.trt.engine_file import (
    EngineManifest,
    EngineRefused,
    Machine,
    machine_of,
    manifest_path,
    needs_rebuild,
    read_engine,
    read_manifest,
    save_engine,
)
from export.trt.from_onnx import BuildHost
from export.trt.options import BuildOptions
from tests.export.trt.fakes_version import fake_tensorrt

ROOT = Path(__file__).parents[3]
HERE = Machine("10.16.1.11", "12.6.77", "565.57.01", "NVIDIA H200", (9, 0), "Linux-x86_64")
PLAN, ONNX = b"an engine", b"a graph"
HOST = BuildHost(None, HERE, None, Path())
COMMAND = "hyctas-export model.engine --network bundle --target tensorrt:fp16"


def manifest_of(plan: bytes = PLAN, **changes: Any) -> EngineManifest:
    made = EngineManifest(
        machine=HERE,
        engine_sha256=hashlib.sha256(plan).hexdigest(),
        size_bytes=len(plan),
        onnx="model.onnx",
        onnx_sha256=hashlib.sha256(ONNX).hexdigest(),
        graph_sha256="0" * 64,
        precision="fp16",
        options={"precision": "fp16", "level": 5},
        command=COMMAND,
        attention={"trunk.s16.3": {"implementation": "fused"}},
        parity={"passed": True},
        latency={"median_ms": 1.25},
    )
    return dataclasses.replace(made, **changes)


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """Return a saved engine with the ONNX file that it was built from."""
    path = tmp_path / "my models" / "model.engine"
    path.parent.mkdir()
    path.with_name("model.onnx").write_bytes(ONNX)
    save_engine(path, PLAN, manifest_of())
    return path


def test_what_is_saved_is_read(engine: Path) -> None:
    assert manifest_path(engine).name == "model.engine.json"
    assert read_manifest(engine) == read_engine(engine, HERE).manifest == manifest_of()
    found = read_engine(engine, HERE)
    assert (found.plan, found.manifest, found.notices) == (PLAN, manifest_of(), ())
    assert "an engine" not in repr(found)
    assert needs_rebuild(engine, HERE) is None
    value = json.loads(manifest_path(engine).read_text())
    assert value["format_version"] == 1 and value["machine"]["capability"] == "9.0" and value["machine"]["gpu"] == "NVIDIA H200"


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("tensorrt", "10.3.0", "it was built for TensorRT 10.16.1.11, and here is TensorRT 10.3.0"),
        ("capability", (8, 7), "it was built for compute capability 9.0, and here is compute capability 8.7"),
        ("gpu", "NVIDIA H100", "it was built for GPU NVIDIA H200, and here is GPU NVIDIA H100"),
        ("system", "Windows-AMD64", "it was built for system Linux-x86_64, and here is system Windows-AMD64"),
        ("cuda", "13.0.1", "it was built for CUDA 12, and here is CUDA 13"),
    ],
)
def test_the_first_thing_that_does_not_fit_is_named_trusted_or_not(engine: Path, field: str, value: Any, reason: str) -> None:
    machine = dataclasses.replace(HERE, **{field: value})
    engine.write_bytes(b"also changed")  # the machine is looked at first
    for trust in (False, True):
        with pytest.raises(EngineRefused) as found:
            read_engine(engine, machine, trust=trust)
        assert (found.value.field, found.value.reason, found.value.command) == (field, reason, COMMAND)
        ways = f"python3 -m export.trt.from_onnx '{engine}'"
        refused = f"model.engine is refused: {reason}\nTo get one that fits: {COMMAND}"
        assert str(found.value) == f"{refused}\nor from model.onnx beside it: {ways}"
        assert found.value.exit_code == 2
    assert needs_rebuild(engine, machine) == reason


def test_several_mismatches_name_the_one_that_matters_most(engine: Path) -> None:
    other = Machine("11.4.0", "13.0", "580.1", "NVIDIA B200", (10, 0), "Linux-x86_64")
    with pytest.raises(EngineRefused) as found:
        read_engine(engine, other)
    assert found.value.field == "tensorrt"
    with pytest.raises(EngineRefused) as found:
        read_engine(engine, dataclasses.replace(other, tensorrt=HERE.tensorrt))
    assert (found.value.field, found.value.built, found.value.found) == ("capability", "9.0", "10.0")


def test_what_differs_without_harm(engine: Path) -> None:
    assert read_engine(engine, dataclasses.replace(HERE, cuda="12.9")).notices == ()
    assert read_engine(engine, dataclasses.replace(HERE, cuda="unknown")).notices == ()
    found = read_engine(engine, dataclasses.replace(HERE, driver="580.1"))
    assert found.notices == ("built under driver 565.57.01, here is 580.1: its times may differ",)


def test_an_engine_without_a_manifest_needs_trust(engine: Path) -> None:
    manifest_path(engine).unlink()
    with pytest.raises(EngineRefused, match=r"no manifest \(model.engine.json\).*loading an engine executes code in it") as found:
        read_engine(engine, HERE)
    assert found.value.field == "manifest" and "trust it" in found.value.command
    assert Perform("bench", {"trust": True}, str(engine)) in found.value.remedies
    assert read_engine(engine, HERE, trust=True).manifest is None
    assert read_engine(engine, HERE, trust=True).notices == ("model.engine has no manifest and was trusted",)
    assert "no manifest" in (needs_rebuild(engine, HERE) or "")


def test_another_content_needs_trust(engine: Path) -> None:
    engine.write_bytes(b"another engine")
    with pytest.raises(EngineRefused, match=r"its content \(sha256 [0-9a-f]{12}\.\.\.\) is not what its manifest names") as found:
        read_engine(engine, HERE)
    assert found.value.field == "engine_sha256" and found.value.found == hashlib.sha256(b"another engine").hexdigest()
    trusted = read_engine(engine, HERE, trust=True)
    assert trusted.plan == b"another engine" and trusted.manifest == manifest_of()
    assert trusted.notices == ("model.engine is not the engine that its manifest names, and was trusted",)


@pytest.mark.parametrize("renamed", [0, 1])
def test_a_kill_while_saving_leaves_nothing_that_passes(engine: Path, renamed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    done, real = list[Path](), os.replace

    def killed(source: Path, target: Path) -> None:
        if len(done) == renamed:
            raise KeyboardInterrupt
        real(source, target)
        done.append(target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save_engine(engine, b"a newer engine", manifest_of(b"a newer engine"))
    if renamed == 0:
        assert read_engine(engine, HERE).manifest == manifest_of(), "nothing was replaced"
    else:
        with pytest.raises(EngineRefused, match="writing it was interrupted"):
            read_engine(engine, HERE)
    done.clear()
    fresh = engine.with_name("fresh.engine")
    with pytest.raises(KeyboardInterrupt):
        save_engine(fresh, PLAN, manifest_of())
    with pytest.raises((EngineRefused, InvalidInput), match=r"no manifest|no such engine"):
        read_engine(fresh, HERE)


@pytest.mark.parametrize("written", [0, 1])
def test_a_full_disk_keeps_the_old_pair(engine: Path, written: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) > written:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_engine(engine, b"a newer engine", manifest_of(b"a newer engine"))
    assert read_engine(engine, HERE).manifest == manifest_of()
    assert {path.name for path in engine.parent.iterdir()} == {"model.engine", "model.engine.json", "model.onnx"}


def test_a_manifest_of_another_plan_is_not_saved(tmp_path: Path) -> None:
    for manifest in (manifest_of(b"an Engine"), manifest_of(size_bytes=1)):
        with pytest.raises(InvalidInput, match="names another engine than the 9 bytes"):
            save_engine(tmp_path / "model.engine", PLAN, manifest)
    assert list(tmp_path.iterdir()) == []


def changed(**changes: Any) -> str:
    value = {**manifest_of().to_json(), **changes}
    return json.dumps({name: entry for name, entry in value.items() if entry != "absent"})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not valid JSON"),
        ("[]", "has format_version None; this release reads 1"),
        (changed(format_version=2), "has format_version 2; this release reads 1"),
        (changed(machine="absent"), "KeyError: 'machine'"),
        (changed(machine={"tensorrt": "10"}), "KeyError: 'capability'"),
        (changed(machine={**manifest_of().to_json()["machine"], "capability": "nine"}), "ValueError"),
        (changed(machine={**manifest_of().to_json()["machine"], "colour": "red"}), "unexpected keyword argument 'colour'"),
        (changed(precision="absent"), "'precision'"),
        (changed(engine_sha256=5), "engine_sha256 is '5', not text"),
        (changed(size_bytes="9"), "size_bytes is '9'"),
        (changed(options=None), "options is 'None'"),
        (changed(speed=1), "unexpected keyword argument 'speed'"),
        (changed(onnx="../model.onnx"), "named without a folder; got '../model.onnx'"),
        (changed(onnx="..\\model.onnx"), "without a folder"),
    ],
)
def test_manifests_that_cannot_be_read(engine: Path, text: str, reason: str) -> None:
    manifest_path(engine).write_text(text)
    for trust in (False, True):
        with pytest.raises(CorruptFile, match=reason) as found:
            read_engine(engine, HERE, trust=trust)
        assert found.value.path == manifest_path(engine)
    assert str(manifest_path(engine)) in (needs_rebuild(engine, HERE) or "")


def test_reasons_to_build_anew(engine: Path) -> None:
    (engine.parent / "model.onnx").write_bytes(b"another graph")
    assert needs_rebuild(engine, HERE) == "model.onnx changed since model.engine was built from it"
    (engine.parent / "model.onnx").unlink()
    assert needs_rebuild(engine, HERE) is None, "an engine runs without the file that it was built from"
    engine.unlink()
    assert "no such engine" in (needs_rebuild(engine, HERE) or "")


def test_rebuilding_uses_the_onnx_file_beside_it(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = dataclasses.replace(HERE, tensorrt="11.4.0.106")
    asked: list[tuple[bytes, BuildOptions]] = []

    def built(onnx: Path, options: BuildOptions, *_: Any) -> tuple[bytes, EngineManifest]:
        asked.append((onnx.read_bytes(), options))
        return b"anew", manifest_of(b"anew", machine=there)

    monkeypatch.setattr(from_onnx, "engine_from_onnx", built)
    assert needs_rebuild(engine, there)
    assert from_onnx.rebuild_engine(engine, HOST, print).machine == there
    assert asked == [(ONNX, BuildOptions.release("fp16"))]
    assert read_engine(engine, there).plan == b"anew" and needs_rebuild(engine, there) is None


def test_rebuilding_refuses_what_it_does_not_know(engine: Path) -> None:
    source = engine.parent / "model.onnx"
    source.write_bytes(b"another graph")
    with pytest.raises(CorruptFile, match=r"is not the file .* rebuild it on purpose: hyctas-export model"):
        from_onnx.rebuild_engine(engine, HOST, print)
    source.unlink()
    with pytest.raises(CorruptFile, match=r"is missing; model\.engine was built from it"):
        from_onnx.rebuild_engine(engine, HOST, print)
    manifest_path(engine).unlink()
    with pytest.raises(EngineRefused, match="no manifest"):
        from_onnx.rebuild_engine(engine, HOST, print)
    assert engine.read_bytes() == PLAN


def test_the_facts_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu("NVIDIA H200", (9, 0), 141 << 30, 132, (12, 6))
    monkeypatch.setattr(engine_file, "require_gpu", lambda index: gpu)
    monkeypatch.setattr(engine_file, "driver_version", lambda: "565.57.01")
    monkeypatch.setattr(engine_file, "cuda_runtime_version", lambda: "12.6.77")
    monkeypatch.setattr(engine_file.platform, "system", lambda: "Linux")
    monkeypatch.setattr(engine_file.platform, "machine", lambda: "x86_64")
    assert machine_of(fake_tensorrt("10.16.1.11")) == HERE

    def none(index: int) -> Gpu:
        raise Unavailable("tensorrt", "no GPU", "buy one")

    monkeypatch.setattr(engine_file, "require_gpu", none)
    with pytest.raises(Unavailable, match="no GPU"):
        machine_of(fake_tensorrt("10.16.1.11"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"parity": {"passed": True, "label_agreement": float("-inf")}}, "-Infinity is no number"),
        ({"parity": {"passed": True, "label_agreement": 1.5}}, "label_agreement is 1.5, not a number from 0 to 1"),
        ({"parity": {"passed": True, "relative_error": 0.5, "tolerance": 0.001}}, "says that parity passed"),
        ({"parity": {"passed": False}}, "such an engine is never written"),
        ({"parity": 3}, "parity is '3'"),
        ({"latency": {"median_ms": -1.0}}, "median_ms -1.0"),
        ({"latency": "fast"}, "latency is 'fast'"),
        ({"attention": []}, "attention is"),
        ({"size_bytes": -1}, "size_bytes is '-1'"),
    ],
)
def test_a_manifest_that_lies_is_refused_though_its_hash_fits(engine: Path, change: dict[str, Any], reason: str) -> None:
    path = manifest_path(engine)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CorruptFile, match=reason):
        read_engine(engine, HERE)
