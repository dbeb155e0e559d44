"""Hold our TensorRT code against NVIDIA's real bindings of three releases: names, messages, callbacks. No GPU is needed.

`bindings.py` says how they come here; where they cannot (no network, no C compiler, not Linux) these tests skip with the reason.
The real parser and builder, of TensorRT-RTX, are in `test_trt_rtx.py`; plugins in `test_trt_plugin.py`.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.export.trt import bindings as module
from tests.export.trt.bindings import ROOT, Bindings, Release, Unobtainable

INSIDE = "tests.export.trt.inside"
VERSIONS = ROOT / "export/trt/versions.py"
NAME = re.compile(r"(?<![\w.])(?:self\._)?(trtp|trt|tensorrt)\.([A-Za-z_][\w.]*\w)")
MEMBERS = {
    "Builder": "build_serialized_network create_builder_config create_network",
    "INetworkDefinition": "get_input num_inputs num_layers num_outputs",
    "OnnxParser": "get_error num_errors parse",
    "ParserError": "code desc local_function_stack node node_name node_operator",
    "IBuilderConfig": "avg_timing_iterations builder_optimization_level clear_flag create_timing_cache "
    "get_memory_pool_limit get_timing_cache max_aux_streams profiling_verbosity progress_monitor set_flag set_memory_pool_limit "
    "set_timing_cache",
    "ITimingCache": "combine serialize",
    "IHostMemory": "nbytes",
    "Runtime": "deserialize_cuda_engine",
    "ICudaEngine": "create_engine_inspector create_execution_context get_tensor_dtype get_tensor_format get_tensor_mode "
    "get_tensor_name get_tensor_profile_shape get_tensor_shape is_shape_inference_io num_io_tensors",
    "IExecutionContext": "enqueue_emits_profile execute_async_v3 get_tensor_shape profiler set_input_shape "
    "set_optimization_profile_async set_tensor_address",
    "EngineInspector": "get_engine_information",
}
"""What our code uses of TensorRT's objects, by class."""


def sources() -> dict[Path, str]:
    """Return our code without comments."""
    files = [path for package in ("export", "latency", "hyctas", "benchmarks") for path in (ROOT / package).rglob("*.py")]
    return {path: ast.unparse(ast.parse(path.read_text())) for path in files if "trt" in path.read_text()}


def names_in(source: str) -> set[str]:
    """Return the names of TensorRT's in a source, without the module: `BuilderFlag.TF32`, `plugin.cdiv`."""
    return {f"plugin.{name}" if root == "trtp" else name for root, name in NAME.findall(source)}


def test_bindings_import(bindings: Bindings) -> None:
    found = bindings.call(f"{INSIDE}:describe")
    assert found["version"].startswith(bindings.release.version)
    assert found["plugins"] or not bindings.release.plugins
    with pytest.raises(RuntimeError, match=r"nullptr|abstract|constructor"):
        bindings.call(f"{INSIDE}:construct_a_builder")


def test_versions_and_messages(bindings: Bindings) -> None:
    plugins = bindings.release.plugins
    found = bindings.call(f"{INSIDE}:spine")
    major = int(bindings.release.version.partition(".")[0])
    assert found == {
        "version": [int(part) for part in bindings.release.version.split(".")],
        "has_plugins": plugins,
        # 11 removed EXPLICIT_BATCH, and the numbers of all others became one less.
        "network_flags": {10: 1 << 1, 11: 1 << 0}[major],
        "network_flags_with_plugins": {10: 1 << 1 | 1 << 3, 11: 1 << 0 | 1 << 2}[major] if plugins else None,
        "logger": True,
        "messages": ["internal error: as INTERNAL_ERROR", "error: as ERROR", "warning: as WARNING"],
    }


def test_callbacks_are_all_defined(bindings: Bindings) -> None:
    found = bindings.call(f"{INSIDE}:callbacks")
    assert {name: methods["called"] for name, methods in found.items()} == {
        "ILogger": ["log"],
        "IProfiler": ["report_layer_time"],
        "IProgressMonitor": ["phase_finish", "phase_start", "step_complete"],
    }
    assert {name: methods["defined"] for name, methods in found.items()} == {name: found[name]["called"] for name in found}


def test_every_name_exists(bindings: Bindings) -> None:
    everywhere = {name for path, source in sources().items() if path != VERSIONS for name in names_in(source)}
    assert {"BuilderFlag.TF32", "IProgressMonitor", "TensorIOMode.INPUT", "plugin.KernelLaunchParams"} <= everywhere
    wanted = {name for name in everywhere if bindings.release.plugins or not name.startswith("plugin")}
    members = {f"{name}.{member}" for name, listed in MEMBERS.items() for member in listed.split()}
    assert bindings.call(f"{INSIDE}:missing", sorted(wanted | members)) == []
    old = ["BuilderFlag.FP16", "IExecutionContext.execute_async_v2", "ICudaEngine.num_bindings"]
    assert set(old[1:]) <= set(bindings.call(f"{INSIDE}:missing", old)), "what is missing is found"


def test_the_members_are_those_in_use() -> None:
    code = "\n".join(sources().values())
    assert [member for listed in MEMBERS.values() for member in listed.split() if not re.search(rf"\b{member}\b", code)] == []


def test_only_versions_py_reaches_for_names_that_may_be_missing() -> None:
    pattern = re.compile(r"(?:getattr|hasattr)\((?:self\._)?(?:trt|trtp|engine|config|context)\b")
    found = [path.name for path, source in sources().items() if path != VERSIONS and pattern.search(source)]
    assert found == [] and pattern.search(VERSIONS.read_text())


def test_what_cannot_be_had_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = Release("0.0.1", "tensorrt-cu12-bindings==0.0.1", False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(Unobtainable, match=r"pip download tensorrt-cu12-bindings==0\.0\.1 failed: ERROR"):
        module.obtain(release)
    assert list((tmp_path / "hyctas-tests").iterdir()) == []
    monkeypatch.setattr(module.platform, "system", lambda: "Darwin")
    with pytest.raises(Unobtainable, match="this is Darwin"):
        module.obtain(release)
