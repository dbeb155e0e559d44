"""The kernel for TensorRT: its arithmetic in Triton's interpreter, its PTX and launch as data, what is refused.

Kernels are compiled and interpreted in processes of their own: in this one Triton may have been imported either way.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from export.codec import convert, decode
from export.errors import CheckFailed, InvalidInput, Unavailable
from export.plugin_kernel import AXES, CeilDiv, PluginKernel, evaluate, parameters, target
from hyctas.attention.triton import plugin_compile as plugin
from hyctas.attention.triton.cases import Case
from hyctas.attention.triton.compiled import Compiled
from hyctas.attention.triton.plugin_compile import grid_rule, plugin_kernel, unfit, without_hidden
from hyctas.attention.triton.tiles import ARCHITECTURES, TENSOR_CORE, Tile

ROOT = Path(__file__).parents[3]
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

INTERPRET = """
import json, sys
import torch
from export.plugin_kernel import evaluate
from hyctas.attention.triton.kernel_plugin import plugin_kernel
from hyctas.attention.triton.plugin_compile import grid_rule
from hyctas.attention.triton.tiles import block

torch.manual_seed(0)
for batch, heads, d, e, n, m, rows, columns, channels, kind in json.loads(sys.argv[1]):
    dtype = getattr(torch, kind)
    q, k, v = (torch.randn(batch, heads, *size).mul(1.5).to(dtype) for size in ((d, n), (d, m), (e, m)))
    o, canary = torch.empty(batch, heads, e, n, dtype=dtype), torch.full((64,), 7.0, dtype=dtype)
    whole = torch.cat([o.flatten(), canary])
    o = whole[: o.numel()].view(o.shape)
    grid = evaluate(grid_rule(rows, channels), {"B": batch, "h": heads, "d": d, "N": n, "M": m, "e": e})
    plugin_kernel[grid](
        q, k, v, n, m, o, D=d, C=e, ROWS=rows, COLUMNS=columns, CHANNELS=channels, BLOCK_D=block(d),
        EVEN_KEYS=m % columns == 0, PRECISION="ieee", UPCAST=dtype == torch.bfloat16,
    )
    weights = torch.softmax(q.double().transpose(2, 3) @ k.double(), 3)
    expected = v.double() @ weights.transpose(2, 3)
    error = (o.double() - expected).norm() / expected.norm()
    print(json.dumps([float(error), bool((whole[o.numel():] == 7).all())]))
"""

COMPILE = """
import json, sys
from hyctas.attention.triton.cases import Case
from hyctas.attention.triton.compiled import compile_case
from hyctas.attention.triton.plugin_compile import plugin_kernel
from hyctas.attention.triton.tiles import Tile
for arguments, options in json.loads(sys.argv[1]):
    if tile := options.get("tile"):
        options["tile"] = Tile(**tile)
    if cuda := options.get("driver_cuda"):
        options["driver_cuda"] = tuple(cuda)
    print(json.dumps(plugin_kernel(*arguments, **options).to_json()))
"""


def python(code: str, value: Any, **settings: str) -> list[Any]:
    """Run code in a fresh process with a JSON argument; return the JSON lines that it prints."""
    environment = {name: text for name, text in os.environ.items() if name != "TRITON_INTERPRET"} | settings
    command = [sys.executable, "-c", code, json.dumps(value)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


PROBLEMS: dict[str, tuple[Any, ...]] = {  # batch, heads, d, e, N, M, rows, columns, channels
    "published": (1, 1, 8, 64, 96, 96, 32, 32, 64),
    "odd": (2, 1, 5, 40, 77, 77, 16, 16, 64),
    "pooled": (1, 2, 16, 32, 65, 17, 32, 32, 32),
    "channel blocks": (1, 1, 12, 48, 33, 64, 16, 32, 32),
    "one": (1, 1, 1, 1, 1, 1, 16, 16, 16),
}
BOUNDS = {"float32": 1e-5, "float16": 1e-3, "bfloat16": 1e-2}


@needs_triton
def test_arithmetic() -> None:
    cases = [(name, dtype) for dtype in BOUNDS for name in PROBLEMS]
    results = python(INTERPRET, [[*PROBLEMS[name], dtype] for name, dtype in cases], TRITON_INTERPRET="1")
    for (name, dtype), (error, untouched) in zip(cases, results, strict=True):
        assert error < BOUNDS[dtype], f"{name}, {dtype}: {error}"
        assert untouched, f"{name}, {dtype} wrote behind its output"
    halves = [error for (_, dtype), (error, _) in zip(cases, results, strict=True) if dtype != "float32"]
    assert max(halves) > 1e-6, "half precision was computed in"


KERNELS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "sm_80 even": ((80, 8, 64, "float16"), {"queries": 8192, "keys": 8192, "driver_cuda": (99, 0)}),
    "sm_80 ragged": ((80, 8, 64, "float16"), {}),
    "sm_80 quads": ((80, 16, 128, "float16"), {"queries": 2700, "keys": 2700}),
    "sm_90 even": ((90, 16, 128, "bfloat16"), {"queries": 2048, "keys": 2048}),
    "sm_90 aligned keys": ((90, 5, 40, "float16"), {"keys": 16 * 9}),
    "sm_90 small": ((90, 16, 128, "bfloat16"), {"queries": 2048, "keys": 2048, "most_shared_bytes": 49152}),
}


OLD_DRIVERS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((80, 8, 64, "float16"), {"queries": 8192, "keys": 8192, "driver_cuda": (12, 2)}),
    ((120, 16, 128, "bfloat16"), {"queries": 2048, "keys": 2048, "driver_cuda": (12, 8)}),
]


@pytest.fixture(scope="module")
def compiled_kernels(tmp_path_factory: pytest.TempPathFactory) -> list[PluginKernel]:
    """Compile the samples in one process, without a cache; each comes back through JSON."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    lines = python(COMPILE, [*KERNELS.values(), *OLD_DRIVERS], TRITON_CACHE_DIR=str(tmp_path_factory.mktemp("cache")))
    return [convert(PluginKernel, line) for line in lines]


@pytest.fixture(scope="module")
def kernels(compiled_kernels: list[PluginKernel]) -> dict[str, PluginKernel]:
    return dict(zip(KERNELS, compiled_kernels, strict=False))


@pytest.mark.slow
def test_kernels_are_what_their_data_say(kernels: dict[str, PluginKernel]) -> None:
    for name, kernel in kernels.items():
        arguments, _ = KERNELS[name]
        assert (kernel.architecture, kernel.qk_channels, kernel.value_channels, kernel.dtype) == arguments
        assert kernel.name == f"SelfAttention_d{arguments[1]}_e{arguments[2]}" + ("_48KiB" if name == "sm_90 small" else "")
        assert target(kernel.ptx) == {80: "sm_80", 90: "sm_90a"}[kernel.architecture]
        assert parameters(kernel.ptx, kernel.symbol) == ("u64", "u64", "u64", "u32", "u32", "u64")
        assert kernel.scalars == ("N", "M") and kernel.hidden == 0
        assert f".reqntid {kernel.threads}" in kernel.ptx, "blocks are launched with as many threads as the code is made for"
        used = set(re.findall(rf"\[{kernel.symbol}_param_(\d+)", kernel.ptx))
        assert used == set("012345"), "all of them, and none that is not declared"
        assert kernel.ptx_version >= (7, 0) and kernel.registers <= 255 and len(kernel.source) == 16
        assert kernel.compiler.startswith("triton ") and ".file" not in kernel.ptx, "no paths of this machine"


def test_a_small_kernel_takes_no_more_shared_memory_than_it_may(kernels: dict[str, PluginKernel]) -> None:
    large, small = kernels["sm_90 even"], kernels["sm_90 small"]
    assert small.shared_bytes <= 49152 < large.shared_bytes and small.columns < large.columns
    assert small.grid(1, 1, 2048, 2048)[0] >= large.grid(1, 1, 2048, 2048)[0]


def test_ptx_is_no_newer_than_the_driver_reads(kernels: dict[str, PluginKernel], compiled_kernels: list[PluginKernel]) -> None:
    new, newest = kernels["sm_80 even"], kernels["sm_80 ragged"].ptx_version
    assert new.ptx_version == newest, "its assembler refuses PTX that is newer than itself"
    old, least = compiled_kernels[len(KERNELS) :]
    assert newest > old.ptx_version == (8, 2) and (least.ptx_version, target(least.ptx)) == ((8, 7), "sm_120a")
    assert old.ptx == new.ptx.replace(f".version {newest[0]}.{newest[1]}", ".version 8.2") and replace(old, ptx=new.ptx) == new


@needs_triton
def test_the_least_ptx_is_what_the_assembler_takes(tmp_path: Path) -> None:
    """That it takes the kernels, too, is for the tests above and for a driver."""
    import triton

    for arch, (major, minor) in plugin.LEAST_PTX.items():
        tool = Path(triton.__file__).parent / "backends/nvidia/bin" / ("ptxas-blackwell" if arch >= 100 else "ptxas")
        name = f"sm_{arch}a" if arch >= 90 else f"sm_{arch}"

        def assembles(version: str, tool: Path = tool, name: str = name) -> bool:
            file = tmp_path / "k.ptx"
            file.write_text(f".version {version}\n.target {name}\n.address_size 64\n.visible .entry k()\n{{\nret;\n}}\n")
            done = subprocess.run([tool, f"-arch={name}", "-o", tmp_path / "k.cubin", file], capture_output=True, text=True)
            assert done.returncode == 0 or ".version" in done.stderr, done.stderr
            return done.returncode == 0

        assert assembles(f"{major}.{minor}"), arch
        before = f"{major}.{minor - 1}" if minor else f"{major - 1}.{8 if major == 8 else 5}"
        assert not assembles(before), arch


@pytest.mark.parametrize(
    ("arch", "driver_cuda", "reason"),
    [
        (90, (11, 8), r"sm_90 need PTX 8\.0, and this driver \(CUDA 11\.8\) reads 7\.8 at most"),
        (120, (12, 7), r"sm_120 need PTX 8\.7, and this driver \(CUDA 12\.7\) reads 8\.6 at most"),
        (100, (12, 6), r"sm_100 need PTX 8\.6"),
        (86, (11, 0), r"sm_86 need PTX 7\.1"),
    ],
)
def test_drivers_that_are_too_old(arch: int, driver_cuda: tuple[int, int], reason: str) -> None:
    with pytest.raises(Unavailable, match=reason) as caught:
        plugin_kernel(arch, 8, 64, "float16", driver_cuda=driver_cuda)
    assert caught.value.install == {90: "a driver for CUDA 12.0 or newer", 120: "a driver for CUDA 12.8 or newer"}.get(
        arch, caught.value.install
    )
    assert set(plugin.LEAST_PTX) == set(ARCHITECTURES)


def test_multiples_and_launches(kernels: dict[str, PluginKernel]) -> None:
    even, ragged, quads = kernels["sm_80 even"], kernels["sm_80 ragged"], kernels["sm_80 quads"]
    assert (even.query_multiple, even.key_multiple) == (16, even.columns)
    assert (ragged.query_multiple, ragged.key_multiple) == (1, 1)
    assert (quads.query_multiple, quads.key_multiple) == (4, 4)
    assert (kernels["sm_90 aligned keys"].query_multiple, kernels["sm_90 aligned keys"].key_multiple) == (1, 16)
    assert re.search(r"cp\.async\.cg[^;]*, 0x10,", even.ptx) and "cp.async" not in ragged.ptx
    assert re.search(r"cp\.async\.ca[^;]*, 0x8,", quads.ptx), "8 bytes at a time past the registers"
    assert ragged.grid(1, 1, 2701, 2701) == (-(-2701 // ragged.rows), 1, 1)
    assert ragged.grid(3, 2, 1, 9) == (1, 1, 6)
    with pytest.raises(InvalidInput, match="compiled for multiples of 16 queries; there are 2701"):
        even.grid(1, 1, 2701, 2701)
    with pytest.raises(InvalidInput, match=f"multiples of {even.columns} keys; there are 16"):
        even.grid(1, 1, 32, 16)
    with pytest.raises(InvalidInput, match="above 0"):
        ragged.grid(1, 1, 0, 5)
    with pytest.raises(InvalidInput, match=r"less than 2\^31"):
        ragged.grid(1, 1, 1 << 25, 5)
    with pytest.raises(InvalidInput, match="a launch has at most"):
        ragged.grid(1 << 10, 1 << 10, 16, 16)
    assert ragged.refusal(1, 1, 2701, 2701) == ""


def test_grids_as_numbers_for_odd_sizes() -> None:
    sizes = {"B": 2, "h": 3, "d": 8, "N": 2701, "M": 675, "e": 320}
    assert evaluate(grid_rule(64, 256), sizes) == (43, 2, 6)
    assert evaluate(grid_rule(128, 64), sizes) == (22, 5, 6)
    assert [factor.value(sizes) for factor in map(CeilDiv, AXES)] == [2, 3, 8, 2701, 675, 320]
    for dim, divisor in (("x", 1), ("N", 0), ("N", 1.5)):
        with pytest.raises(InvalidInput, match="from 1 on"):
            CeilDiv(dim, divisor)  # type: ignore[arg-type]


@needs_triton
def test_removed_parameters_leave_the_same_machine_code(kernels: dict[str, PluginKernel], tmp_path: Path) -> None:
    import triton

    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    for name, kernel in kernels.items():
        file, cubin = tmp_path / "k.ptx", tmp_path / "k.cubin"
        file.write_text(kernel.ptx)
        assemble = [tools / "ptxas", f"-arch={target(kernel.ptx)}", "-o", cubin, file]
        subprocess.run(assemble, check=True, capture_output=True)
        usage = subprocess.run([tools / "cuobjdump", "--dump-resource-usage", cubin], check=True, capture_output=True, text=True)
        found = re.search(r"REG:(\d+) STACK:(\d+)", usage.stdout)
        assert found is not None and (int(found[1]), int(found[2])) == (kernel.registers, 0), name


def test_parameters_that_are_read_are_not_removed() -> None:
    listed = ".visible .entry k(\n\t.param .u64 .ptr .global .align 1 k_param_0,\n\t.param .u64 k_param_1\n)"
    ptx = f".version 8.7\n.target sm_80\n{listed}\n{{\n}}\n"
    assert parameters(without_hidden(ptx, "k", 1), "k") == ("u64",)
    assert without_hidden(ptx, "k", 2).split() == ptx.split()
    with pytest.raises(CheckFailed, match="reads its parameter k_param_1"):
        without_hidden(ptx.replace("{\n", "{\nld.param.u64 %rd1, [k_param_1];\n"), "k", 1)
    with pytest.raises(InvalidInput, match="no entry point 'other'"):
        without_hidden(ptx, "other", 1)


def test_data_must_agree_with_the_ptx(kernels: dict[str, PluginKernel]) -> None:
    kernel = kernels["sm_80 ragged"]
    json.dumps(kernel.to_json(), allow_nan=False)
    assert decode(PluginKernel, json.dumps(kernel.to_json())) == kernel
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"architecture": 90}, "said to be for sm_90; its PTX is for sm_80"),
        ({"hidden": 2}, "takes u64, u64, u64, u32, u32, u64, u64, u64; its PTX has"),
        ({"scalars": ("N",)}, "its PTX has the parameters"),
        ({"scalars": ("N", "X")}, "no such fields: scalars"),
        ({"symbol": "other"}, "no entry point"),
        ({"ptx": "nothing"}, "has no .target"),
        ({"dtype": "int8"}, "dtype='int8'"),
        ({"threads": 0, "rows": "64"}, "threads=0, rows='64'"),
        ({"grid_rule": ((), (), ())}, "grid_rule"),
    ]
    for changes, text in wrong:
        with pytest.raises(InvalidInput, match=re.escape(text)):
            replace(kernel, **changes)


def test_json_is_checked(kernels: dict[str, PluginKernel]) -> None:
    good = kernels["sm_80 ragged"].to_json()
    for value, text in (
        ([], "is []; expected `object`"),
        (good | {"format_version": 2}, "has format_version 2; this release reads 1"),
        (good | {"more": 1}, "unknown fields 'more'"),
        ({name: item for name, item in good.items() if name != "ptx"}, "lacks the field `ptx`"),
        (good | {"grid_rule": [[{"dim": "N"}], 5, []]}, "grid_rule[1] is 5; expected `array`"),
        (good | {"grid_rule": [[{"dim": "Z", "divisor": 1}], [], []]}, "one of B, h, d, N, M, e"),
    ):
        with pytest.raises(InvalidInput, match=re.escape(text)):
            convert(PluginKernel, value)


def test_kernels_that_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments, text in (
        ((75, 8, 64, "float16"), "not for sm_75"),
        ((80, 8, 64, "int8"), "got int8"),
        ((80, 0, 64, "float16"), "sizes from 1 on"),
    ):
        with pytest.raises(InvalidInput, match=text):
            plugin_kernel(*arguments)
    monkeypatch.setattr(plugin, "compile_case", lambda case, multiples, newest_ptx: compiled(spill_instructions=12, stack_bytes=48))
    monkeypatch.setattr(plugin, "shipped", lambda *of: Tile(64, 128, 64, 4, 2))
    with pytest.raises(CheckFailed, match=r"queries and 5 keys holds: .*64x128x64 .*64x64x64 .*64x32x64 .*64x16x64 ") as caught:
        plugin_kernel(80, 8, 64, "float16", queries=2700, keys=5)
    assert str(caught.value).count("spills: 48 B of stack, 12 loads and stores") == 4
    with pytest.raises(CheckFailed, match=r"holds: \S+ plugin c64 d8 float16 ragged-queries ragged-keys 64x64x64 w4 s2 spills"):
        plugin_kernel(80, 8, 64, "float16", Tile(64, 64, 64, 4, 2))


def compiled(metadata: dict[str, Any] | None = None, **changes: Any) -> Compiled:
    """Make a result of the compiler that holds, but for changes."""
    numbers: dict[str, Any] = {"registers": 100, "stack_bytes": 0, "spill_instructions": 0, "shared_bytes": 4096}
    numbers |= {"tensor_columns": 0, "tensor_core": {TENSOR_CORE[80]: 8}, "scalar_dots": 0, "warps": 4}
    code = {"name": "k", "ptx": "", "cubin": b"", "hidden_parameters": 2, "metadata": metadata or {"shared": 4096}}
    return Compiled(**numbers | code | changes)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, ""),
        ({"shared_bytes": 1 << 20}, "shared memory"),
        ({"tensor_core": {}}, "has no HMMA"),
        ({"scalar_dots": 1}, "outside the tensor cores"),
        ({"metadata": {"global_scratch_size": 64}}, "asks for 64 B of global_scratch, which TensorRT does not give"),
        ({"metadata": {"num_ctas": 2}}, "clusters of blocks"),
    ],
)
def test_what_a_plugin_must_not_need(changes: dict[str, Any], text: str) -> None:
    case = Case(kernel="plugin", arch=80, tile=Tile(64, 64, 64, 4, 2), channels=64, qk_channels=8, dtype="float16")
    found = unfit(case, compiled(**changes))
    assert (len(found) == 1 and text in found[0]) if text else found == []
