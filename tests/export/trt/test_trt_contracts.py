"""Hold our TensorRT code against NVIDIA's real bindings of three releases: names, protocols, messages, plugins. No GPU is needed.

`bindings.py` says how they come here; where they cannot (no network, no C compiler, not Linux) these tests skip with the reason.
"""

from __future__ import annotations

import ast
import math
from pathlib import Path
from typing import Any

import pytest

from tests.export.trt import bindings as module
from tests.export.trt import typecheck
from tests.export.trt.bindings import ROOT, Bindings, Release, Unobtainable
from tests.export.trt.stub_fixes import HEADER, fixed
from tests.export.trt.tensorrt_names import Use, uses_in, uses_in_tree
from tests.export.trt.typecheck import (
    REFUSED,
    Complaint,
    complaints,
    literal,
    protocol_files,
    protocols,
    real_classes,
    refused_lines,
)

PACKAGES = ("export", "latency", "hyctas", "benchmarks")
VERSIONS = "export/trt/versions.py"
INSIDE = "tests.export.trt.inside"
SAMPLE = "tests.export.trt.sample_plugin"


def test_bindings_import(bindings: Bindings) -> None:
    found = bindings.call(f"{INSIDE}:describe")
    assert found["version"].startswith(bindings.release.version)
    assert found["plugins"] or not bindings.release.plugins


def test_a_failure_in_the_other_process_is_told(bindings: Bindings) -> None:
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


def wanted_names(uses: list[Use], release: Release) -> dict[str, str]:
    """Map the names that a release must have to where they are used; `versions.py` may name what some release lacks."""
    everywhere = [use for use in uses if not use.where.startswith(VERSIONS) and use.kind == "direct"]
    needed = [use for use in everywhere if release.plugins or not use.name.startswith("plugin.")]
    return {use.name: use.where for use in needed}


def test_every_name_exists(bindings: Bindings) -> None:
    wanted = wanted_names(uses_in_tree(ROOT, PACKAGES), bindings.release)
    missing = bindings.call(f"{INSIDE}:missing", list(wanted))
    assert not missing, {name: wanted[name] for name in missing}


def test_only_versions_py_computes_names() -> None:
    found = [use for use in uses_in_tree(ROOT, PACKAGES) if use.kind == "computed" and not use.where.startswith(VERSIONS)]
    assert not found, f"TensorRT's names must be written out, or reached in {VERSIONS}: {found}"


def test_versions_py_names_what_some_release_has(every_bindings: list[Bindings]) -> None:
    uses = uses_in((ROOT / VERSIONS).read_text(), VERSIONS)
    direct = {use.name for use in uses if use.kind == "direct"}
    # TensorRT-RTX alone has these, and the tests call its builder
    direct = {name for name in direct if not name.startswith("ComputeCapability")}
    for release in every_bindings:
        direct &= set(release.call(f"{INSIDE}:missing", sorted(direct)))
    assert not direct, "no release has these"
    members = {name for release in every_bindings for name in release.call(f"{INSIDE}:members")}
    reached = {use.name.rpartition(".")[2]: use.where for use in uses if use.kind != "direct"}
    assert {"STRONGLY_TYPED", "device_memory_size_v2"} <= set(reached)
    assert not {name: where for name, where in reached.items() if name not in members}, "no class of any release has these"


def test_names_that_are_missing_are_found(bindings: Bindings) -> None:
    uses = uses_in(REFUSED.read_text(), REFUSED.name)
    missing = bindings.call(f"{INSIDE}:missing", list(wanted_names(uses, bindings.release)))
    assert missing == (["BuilderFlag.FP16"] if bindings.release.version == "11.4.0" else [])
    old = ["IExecutionContext.execute_async_v2", "ICudaEngine.num_bindings", "IExecutionContext.execute_async_v3"]
    assert bindings.call(f"{INSIDE}:missing", old) == old[:2]


SOURCES = {
    "trt.A.B": ["A.B"],
    "def f(self): self.trt.A.B(self._trt.C, self.trtp.cdiv)": ["A.B", "C", "plugin.cdiv"],
    "import tensorrt as t\nt.A.B.c()": ["A.B.c"],
    "import tensorrt.plugin as p\np.cdiv": ["plugin.cdiv"],
    "from tensorrt import A, plugin as p\nA.B; p.cdiv": ["A", "A.B", "plugin.cdiv"],
    "t = import_tensorrt()\nt.A": ["A"],
    "import importlib\nt = importlib.import_module('tensorrt')\nt.A": ["A"],
    "def f(trt):\n flags = trt.A\n return flags.B, flags.C": ["A", "A.B", "A.C"],
    "def f(trt):\n flags = trt.A\n flags = other\n return flags.B": ["A"],
    "getattr(trt.A, 'B')": ["A", "A.B"],
    "def f(trt):\n names = ['B', 'C', 'not a name']\n return [getattr(trt.A, n) for n in names]": ["A", "A.B", "A.C"],
    "hasattr(engine, 'B')": ["B"],
    "def f(x: trt.A) -> list[trt.B]: ...": ["A", "B"],
    "import export.trt\nexport.trt.log.checked": [],
    "from export import trt\ntrt.log.checked": [],
    "export.trt.A": [],
}


@pytest.mark.parametrize("source", SOURCES)
def test_uses_are_found(source: str) -> None:
    assert sorted({use.name for use in uses_in(source, "x.py")}) == SOURCES[source]


def checked_types(bindings: Bindings, scratch: Path) -> list[Complaint]:
    """Return what mypy complains of; the test skips where the stubs cannot be made."""
    try:
        return complaints(bindings, scratch)
    except Unobtainable as error:
        pytest.skip(str(error))


DUMP = """
from __future__ import annotations
bool: DataType
class IHostMemory:
    pass
def f(self: Builder, in: int, kind: DataType = <DataType.FLOAT: 0>, last: bool) -> bool: ...
def g(shape: Dims, name: str = None, size: typing.SupportsInt = 3) -> Dims: ...
def h(call: typing.Callable[..., bool], other: ...) -> tuple[int, ...]: ...
"""
MENDED = """
bool: DataType
class IHostMemory:
    pass
    def __buffer__(self, flags: int, /) -> memoryview: ...
def f(self, in_: int, kind: DataType=..., last: builtins.bool=...) -> builtins.bool: ...
def g(shape: Dims | collections.abc.Sequence[int], name: str | None=..., size: int=...) -> Dims: ...
def h(call: typing.Callable[..., builtins.bool], other: typing.Any) -> tuple[int, ...]: ...
"""


def test_dumped_stubs_are_mended() -> None:
    assert ast.dump(ast.parse(fixed(DUMP))) == ast.dump(ast.parse(HEADER + MENDED))


@pytest.mark.slow
def test_protocols_fit_the_real_classes(bindings: Bindings, tmp_path: Path) -> None:
    found = checked_types(bindings, tmp_path)
    refused = {complaint.line for complaint in found if complaint.file == REFUSED.name}
    others = [complaint for complaint in found if complaint.file != REFUSED.name]
    assert not others
    assert refused == refused_lines(bindings.release.version)


@pytest.mark.slow
def test_a_class_that_does_not_fit_is_refused(bindings: Bindings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(typecheck, "real_classes", lambda path: {"RuntimeLike": "ICudaEngine", "EngineLike": "ICudaEngine"})
    monkeypatch.setattr(typecheck, "protocol_files", lambda: [ROOT / "export/trt/api_run.py"])
    found = [complaint for complaint in checked_types(bindings, tmp_path) if complaint.file == "fits_api_run.py"]
    assert [complaint.line for complaint in found] == [3]
    assert 'got "ICudaEngine", expected "RuntimeLike"' in found[0].text


def test_every_protocol_names_its_real_class() -> None:
    assert {"api_run.py"} <= {path.name for path in protocol_files()}
    for path in protocol_files():
        assert protocols(path) == set(real_classes(path)), path


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("no_tactic", "outputs, tactic"),
        ("wrong_return", "KernelLaunchParams"),
        ("list_attribute", "not a supported serializable type"),
        ("reserved_namespace", "reserved namespace"),
    ],
)
def test_wrong_registrations_are_refused(plugin_bindings: Bindings, function: str, reason: str) -> None:
    assert reason in plugin_bindings.call(f"{INSIDE}:refusal", f"{SAMPLE}:{function}")


def accepted() -> list[tuple[str, str, Any]]:
    """Return (what registers it, the plugin, inputs) of all that NVIDIA's classes must accept."""
    found = {path.stem: literal(path, "ACCEPTED") or {} for path in sorted(Path(__file__).parent.glob("*_plugin.py"))}
    return [(f"tests.export.trt.{module}:{function}", *rest) for module, all_ in found.items() for function, rest in all_.items()]


@pytest.mark.parametrize(("register", "plugin", "inputs"), accepted())
def test_plugins_can_be_launched(plugin_bindings: Bindings, register: str, plugin: str, inputs: Any) -> None:
    found = plugin_bindings.evaluate_launch(register, plugin, inputs)
    assert found["found_by_parser"]
    assert found["attributes"] == []  # TensorRT 10.16 under NumPy 2.4 cannot make a plugin that has any
    assert found["launches"]
    for launch in found["launches"]:
        assert all(1 <= size <= limit for size, limit in zip(launch["grid"], (2**31 - 1, 65535, 65535), strict=True)), launch
        assert 1 <= math.prod(launch["block"]) <= 1024 and 0 <= launch["shared_bytes"] <= 227 * 1024, launch
        assert all(-(2**31) <= scalar < 2**31 for scalar in launch["scalars"]), launch


def test_our_plugins_are_among_them() -> None:
    ours = [register for register, _, _ in accepted() if not register.startswith(SAMPLE)]
    assert ours or not (ROOT / "export/trt/plugin.py").exists(), "no module of this folder registers them and has ACCEPTED"


def test_launches_are_numbers(plugin_bindings: Bindings) -> None:
    inputs = [((3, 16, 8200), "HALF"), ((3, 128, 8200), "HALF")]
    found = plugin_bindings.evaluate_launch(f"{SAMPLE}:right", "hyctas_tests::sample", inputs)
    assert found["outputs"] == [[[3, 128, 8200], "HALF"], [[3, 8200], "FLOAT"]]
    assert found["attributes"] == [] and found["found_by_parser"]
    expected: list[dict[str, Any]] = [
        {
            "types": [kind, kind, kind, "FLOAT"],
            "formats": ["LINEAR"] * 4,
            "tactic": tactic,
            "kernel": f"sample_{kind.lower()}",
            "code": "// text of a kernel",
            "grid": [blocks, 3, 1],
            "block": [128 * tactic, 1, 1],
            "shared_bytes": 1024,
            "scalars": [8200, 8200 * 128],
        }
        for kind in ("HALF", "BF16")
        for tactic, blocks in ((1, 129), (2, 65))
    ]
    assert found["launches"] == expected


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


def test_folders_of_the_cache_are_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def fail(folder: Path) -> None:
        (folder / "file").write_text("half")
        raise PermissionError(13, "Permission denied")

    def quick(folder: Path) -> None:
        (folder / "file").write_text("another process")

    def slow(folder: Path) -> None:
        module.made_once("x", quick)
        (folder / "file").write_text("too late")

    with pytest.raises(Unobtainable, match=r"cannot be written: .*Permission denied"):
        module.made_once("x", fail)

    assert (module.made_once("x", slow) / "file").read_text() == "another process"
    assert (module.made_once("x", fail) / "file").read_text() == "another process"
    assert [path.name for path in (tmp_path / "hyctas-tests").iterdir()] == ["x"]
