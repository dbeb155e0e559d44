"""Prove, where an engine runs for the first time, that it computes what its ONNX file computes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from export.errors import CheckFailed
from export.files import sha256, write_json
from export.parity import check_same
from export.runtime import Session
from export.target import Target
from export.trt.engine_file import EngineManifest, EngineRefused, Machine, manifest_path, replaced_in_bundle
from export.trt.options import BuildOptions


def is_proven(manifest: EngineManifest, machine: Machine) -> bool:
    """Say whether an engine's outputs were compared with its network's on a GPU such as this one."""
    parity = manifest.parity or {}
    return bool(parity.get("passed")) and parity.get("gpu", machine.gpu) == machine.gpu


def prove(session: Session, path: Path, manifest: EngineManifest, machine: Machine) -> EngineManifest:
    """Prove an engine that was built where it could not run, and return its manifest, which then says so.

    Raises:
        EngineRefused: the ONNX file that would prove it is not there, or another one.
        CheckFailed: the engine does not compute what the file computes.
    """
    from export.backends.onnxruntime_session import OnnxRuntime

    onnx = path.with_name(manifest.onnx)
    if not onnx.is_file() or sha256(onnx) != manifest.onnx_sha256:
        state = "another file now" if onnx.is_file() else "not there"
        reason = f"its parity is not proven, and {onnx.name}, which would prove it, is {state}"
        what: dict[str, Any] = {"field": "onnx_sha256", "built": manifest.onnx_sha256, "found": state, "command": manifest.command}
        raise EngineRefused(path, reason, **what)
    tolerance, agreement = BuildOptions.from_json(manifest.options).parity_limits
    with OnnxRuntime(Target("onnxruntime-cpu", "fp32")).load_file(onnx) as reference:
        report = check_same(session, reference, tolerance=tolerance, min_agreement=agreement)
    if not report.passed:
        raise CheckFailed(f"{path.name} is not what {onnx.name} computes on this GPU ({machine.gpu}): {report.summary()}")
    parity = {**report.to_json(), "against": onnx.name, "gpu": machine.gpu, "driver": machine.driver}
    proven = replace(manifest, parity=parity)
    with replaced_in_bundle(path):
        write_json(manifest_path(path), proven.to_json())
    return proven
