"""Every shipped tile has numbers that hold, the numbers are of the kernels as they are, and the gate refuses what it should.

What is in resources.json is judged without Triton. Kernels that changed since, a small sample of the others and a tile that is
known to spill are compiled, in processes of their own: in this one Triton may have been imported as an interpreter.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from export.errors import CorruptFile, InvalidInput, Unavailable
from hyctas.attention.triton import cases, compiled, gate, resources
from hyctas.attention.triton.cases import FP16_ONLY, ODD_CHANNELS, RAGGED, Case, arguments, shipped_cases, source
from hyctas.attention.triton.resources import Resources, Row, Table, blocks_per_multiprocessor, judge, read_table, write_table
from hyctas.attention.triton.tiles import (
    ARCHITECTURES,
    COMBINE,
    DELTA,
    FP32,
    SHARED_KIB,
    TENSOR_CORE,
    TWO_STEP,
    VALUE_CHANNELS,
    Tile,
    shipped,
)

ROOT = Path(__file__).parents[3]
MEND = "run `make gate` (python -m hyctas.attention.triton.gate --update) and commit resources.json"
BUDGET_S = 60
"""For compiling what changed; where that takes longer, the table has to be brought up to date first."""
SPILLS = Tile(128, 64, 256, 4, 2)
"""128 queries of 256 channels in 128 threads: 256 registers of sums each, on sm_80."""

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

COMPILE = """
import json, sys
from hyctas.attention.triton.cases import Case
from hyctas.attention.triton.compiled import compile_case
from hyctas.attention.triton.tiles import Tile
for value in json.loads(sys.argv[1]):
    made = compile_case(Case(**value | {"tile": Tile(**value["tile"])}))
    about = {"name": made.name, "entry": f".entry {made.name}(" in made.ptx, "hidden": made.hidden_parameters}
    print(json.dumps([vars(made.resources), about]))
"""


@pytest.fixture(scope="module")
def table() -> Table:
    return read_table()


def process(*command: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a process where Triton is a compiler."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | settings
    return subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def compile_fresh(wanted: list[Case], folder: Path) -> list[tuple[Resources, dict[str, Any]]]:
    """Compile cases without a cache."""
    done = process("-c", COMPILE, json.dumps([asdict(case) for case in wanted]), TRITON_CACHE_DIR=str(folder))
    assert done.returncode == 0, done.stderr
    return [(Resources(**numbers), about) for numbers, about in map(json.loads, done.stdout.splitlines())]


def case(kernel: str = "forward", arch: int = 80, c: int = 64, tile: Tile | None = None, **options: Any) -> Case:
    """Make a case, of the shipped tile."""
    tile = tile or shipped(arch, kernel, c)
    assert tile is not None
    return Case(kernel=kernel, arch=arch, tile=tile, channels=c, qk_channels=c // 8, **{"dtype": "float16"} | options)


def numbers(**changes: Any) -> Resources:
    """Make numbers that hold on every architecture, but for changes."""
    good: dict[str, Any] = {"registers": 128, "stack_bytes": 0, "spill_instructions": 0, "shared_bytes": 40960, "tensor_columns": 0}
    return Resources(**good | {"tensor_core": dict.fromkeys(TENSOR_CORE.values(), 8), "scalar_dots": 0, "warps": 4} | changes)


def test_every_shipped_case_has_a_row(table: Table) -> None:
    lacking = [case.key for case in shipped_cases() if case.key not in table.rows]
    assert not lacking, f"{len(lacking)} cases were never compiled, such as {lacking[0]}: {MEND}"
    assert len(table.rows) == len({case.key for case in shipped_cases()}), f"rows of tiles that are shipped no more: {MEND}"


def test_cases_cover_what_is_shipped() -> None:
    covered = {(case.arch, case.kernel, case.channels, case.dtype, case.tile) for case in shipped_cases()}
    for arch in ARCHITECTURES:
        for kernel in (*TWO_STEP, "block"):
            for c in VALUE_CHANNELS:
                for dtype, size, aligned in (("float16", 2, True), ("float16", 2, False), ("float32", 4, True)):
                    tile = shipped(arch, kernel, c, size, aligned)
                    left_out = dtype == "float32" and arch in FP16_ONLY
                    assert left_out or tile is None or (arch, kernel, c, dtype, tile) in covered
                    assert tile is not None or kernel == "block", "dispatch would find no kernel"
        assert arch in FP16_ONLY or {case.channels for case in shipped_cases() if case.arch == arch} >= set(ODD_CHANNELS)


def test_what_the_gate_leaves_out_has_tiles_that_it_holds_on_another_architecture() -> None:
    for arch in FP16_ONLY:
        assert FP32[arch] is FP32[80] and FP32[arch] is FP32[89]


def test_rows_that_are_current_hold(table: Table) -> None:
    wrong = {
        case.key: reasons
        for case in shipped_cases()
        if (row := table.current(case)) is not None and (reasons := judge(case, row.resources))
    }
    assert not wrong


def test_rows_that_are_stale_are_compiled(table: Table) -> None:
    stale = [case for case in shipped_cases() if table.current(case) is None]
    if not stale:
        return  # nothing changed: all were judged above
    if importlib.util.find_spec("triton") is None:
        pytest.skip(f"{len(stale)} rows of resources.json are of other source, and Triton is not installed")
    done = process("-m", "hyctas.attention.triton.gate", "--budget", str(BUDGET_S))
    assert done.returncode == 0, f"{len(stale)} rows are of other source: {MEND}\n{done.stderr}"


@pytest.mark.slow
@needs_triton
def test_a_sample_compiled_now_gives_the_numbers_of_the_table(table: Table, tmp_path: Path) -> None:
    if version("triton") != table.triton:
        pytest.skip(f"the numbers are of triton {table.triton}, installed is {version('triton')}")
    sample = [case(arch=80), case(arch=90)]
    for wanted, (found, about) in zip(sample, compile_fresh(sample, tmp_path), strict=True):
        row = table.current(wanted)
        assert row is not None, MEND
        assert found == row.resources
        assert about == {"name": "forward_kernel", "entry": True, "hidden": 2}


@pytest.mark.slow
@needs_triton
def test_a_tile_that_spills_is_found_out(tmp_path: Path) -> None:
    bad = case(c=256, tile=SPILLS)
    [(found, _)] = compile_fresh([bad], tmp_path)
    assert found.stack_bytes > 0 and found.spill_instructions > 0
    assert any(reason.startswith("spills") for reason in judge(bad, found))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_judge_accepts(arch: int) -> None:
    assert judge(case(arch=arch), numbers()) == []
    assert judge(case(arch=arch), numbers(shared_bytes=SHARED_KIB[arch] * 1024)) == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"stack_bytes": 8}, "spills: 8 B of stack"),
        ({"spill_instructions": 3}, "3 loads and stores"),
        ({"shared_bytes": 99 * 1024 + 1}, "a block of sm_86 gets 101376"),
        ({"registers": 255, "warps": 16}, "255 registers in each of 512 threads"),
        ({"tensor_columns": 1024}, "1024 columns of tensor memory"),
        ({"tensor_core": {}}, "has no HMMA"),
        ({"tensor_core": {"HGMMA": 4}}, "has no HMMA"),
        ({"scalar_dots": 1}, "1 pairs of matrices outside the tensor cores"),
    ],
)
def test_judge_refuses(changes: dict[str, Any], reason: str) -> None:
    reasons = judge(case(arch=86), numbers(**changes))
    assert len(reasons) == 1 and reason in reasons[0]


def test_judge_asks_no_tensor_cores_of_kernels_without_a_dot() -> None:
    tile = {"combine": COMBINE, "delta": DELTA}
    assert [judge(case(kernel, tile=tile[kernel]), numbers(tensor_core={})) for kernel in cases.WITHOUT_DOT] == [[], []]


def test_blocks_per_multiprocessor() -> None:
    assert blocks_per_multiprocessor(80, numbers(registers=182, shared_bytes=22 * 1024)) == 2  # 4 warps x 32 x 184
    assert blocks_per_multiprocessor(80, numbers(registers=32, shared_bytes=81 * 1024)) == 2  # 2 x (81 + 1) KiB of 164
    assert blocks_per_multiprocessor(100, numbers(registers=32, tensor_columns=512)) == 1


def test_source_knows_what_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {kernel: source(case(kernel)) for kernel in TWO_STEP}
    definitions = cases._definitions()
    node, text = definitions["grad_logits"]
    monkeypatch.setattr(cases, "_definitions", lambda: definitions | {"grad_logits": (node, f"{text} pass")})
    assert {kernel for kernel in TWO_STEP if source(case(kernel)) != before[kernel]} == {"grad_qk", "grad_q"}
    assert source(case()) != source(case(tile=Tile(64, 64, 64, 4, 3))) != source(case(tile=Tile(64, 64, 64, 4, 4)))


def test_source_overlooks_comments() -> None:
    plain = cases._without_comments('def f(x):\n    """Say."""\n    return "a"\n')
    assert plain == cases._without_comments('def f(x):\n    # why\n    return "a"  # because\n')
    assert plain != cases._without_comments('def f(x):\n    return "b"\n')


def test_keys_are_unique_and_cases_are_checked() -> None:
    assert len({case.key for case in shipped_cases()}) == len(shipped_cases()) == len(set(shipped_cases()))
    with pytest.raises(InvalidInput, match="no kernel 'forwards' for sm_80"):
        case("forwards", tile=DELTA)
    with pytest.raises(InvalidInput, match="got 'float64'"):
        case(dtype="float64")
    with pytest.raises(InvalidInput, match="divisible by 16"):
        case(keys_divisible=False)


def test_table_is_read_as_written(tmp_path: Path) -> None:
    path, made = tmp_path / "resources.json", Table("3.0", {"b": Row("1", numbers()), "a": Row("2", numbers(warps=8))})
    write_table(made, path)
    assert read_table(path) == made
    assert len(path.read_text().splitlines()) == 8  # a row per line
    write_table(Table("3.0", {}), path)
    assert read_table(path) == Table("3.0", {})
    path.write_text('{"format_version": 1, "triton": "3.0", "rows": {"a": {"source": "1"}}}')
    with pytest.raises(CorruptFile, match="remove it"):
        read_table(path)


def test_gate_compiles_and_writes_what_is_stale_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known, stale, bad = case(arch=80), case(arch=86), case(arch=90)
    path, compiled_now = tmp_path / "resources.json", list[Case]()

    def compile_all(wanted: list[Case], *_: Any) -> list[tuple[Case, Any]]:
        compiled_now.extend(wanted)
        outcomes = {known: numbers(), stale: numbers(), bad: compiled.DoesNotCompile(bad, "no such instruction")}
        return [(case, outcomes[case]) for case in wanted]

    monkeypatch.setattr(gate, "shipped_cases", lambda: [known, stale, bad])
    monkeypatch.setattr(gate, "TABLE", path)
    monkeypatch.setattr(gate, "read_table", lambda: read_table(path))
    monkeypatch.setattr(gate, "write_table", lambda made: write_table(made, path))
    monkeypatch.setattr(gate, "compile_all", compile_all)
    monkeypatch.setattr(gate, "missing", lambda: "")
    monkeypatch.setattr(gate, "_installed", lambda: "3.0")
    write_table(Table("3.0", {known.key: Row(source(known), numbers()), "gone": Row("0", numbers())}), path)

    assert gate.main([]) == 1
    assert compiled_now == [stale, bad] and stale.key not in read_table(path).rows
    assert f"{bad.key}: no such instruction" in capsys.readouterr().err
    assert gate.main(["--update", "--arch", "80", "86"]) == 0
    assert set(read_table(path).rows) == {known.key, stale.key}
    compiled_now.clear()
    assert gate.main(["--arch", "80", "86"]) == 0 and not compiled_now
    assert gate.main(["--arch", "80", "--all"]) == 0 and compiled_now == [known]
    monkeypatch.setattr(gate, "_installed", lambda: "4.0")
    assert gate.main(["--arch", "80", "--update"]) == 0
    assert read_table(path) == Table("4.0", {known.key: Row(source(known), numbers())})
    assert gate.main(["--arch", "86", "--kernel", "block"]) == 0
    with pytest.raises(SystemExit):
        gate.main(["--jobs", "0"])
    monkeypatch.setattr(gate, "missing", lambda: "no compiler here")
    assert gate.main(["--arch", "80", "--all"]) == 3


def test_no_compiler_beside_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(Unavailable, match="TRITON_INTERPRET is set"):
        compiled.compile_case(
            Case(kernel="forward", arch=80, tile=Tile(64, 64, 64, 4, 2), channels=64, qk_channels=8, dtype="float16")
        )


class Recorder:
    """Stand in for a kernel, and keep what it is launched with."""

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *positional, **named: self.calls.append((positional, named))


@pytest.fixture
def recorders(monkeypatch: pytest.MonkeyPatch) -> dict[str, Recorder]:
    """Replace the launcher's kernels."""
    pytest.importorskip("triton", reason="Triton is not installed")
    from hyctas.attention.triton import launch

    made = {kernel: Recorder() for kernel in ("forward", "combine", "delta", "grad_v", "grad_qk", "grad_q", "block")}
    for kernel, recorder in made.items():
        monkeypatch.setattr(launch if kernel == "block" else launch.kernels, f"{kernel}_kernel", recorder)
    return made


def check_call(recorder: Recorder, expected: Case) -> None:
    """Compare what a kernel was launched with to what the gate compiles."""
    (positional, named) = recorder.calls.pop()
    wanted = arguments(expected)
    assert named.pop("num_warps", 4) == expected.tile.warps and named.pop("num_stages", 3) == expected.tile.stages
    assert named == wanted.constants
    runtime = [(name, kind) for name, kind in wanted.types.items() if kind != "constexpr"]
    names = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32"}
    for value, (name, kind) in zip(positional, runtime, strict=True):
        if isinstance(value, torch.Tensor):
            assert kind == names[value.dtype], name
            assert name in wanted.divisible
        elif isinstance(value, int):
            assert kind == "i32" and (value % 16 == 0) == (name in wanted.divisible), name
        else:
            assert kind == "fp32" and isinstance(value, float), name


@pytest.mark.parametrize(("qk_dtype", "dtype"), [("float16", "float16"), ("float16", "bfloat16"), ("float32", "float32")])
@pytest.mark.parametrize(("n", "layout"), [(256, {}), (250, RAGGED), (272, {"even_keys": False})], ids=["even", "ragged", "masked"])
def test_the_launcher_launches_what_the_gate_compiles(
    recorders: dict[str, Recorder], monkeypatch: pytest.MonkeyPatch, n: int, layout: dict[str, bool], qk_dtype: str, dtype: str
) -> None:
    from hyctas.attention.triton import launch

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    c, d = 96, 12
    q, k = (torch.zeros(1, 1, d, n, dtype=getattr(torch, qk_dtype)) for _ in range(2))
    v = torch.zeros(1, 1, c, n, dtype=getattr(torch, dtype))
    common: dict[str, Any] = {"arch": 80, "channels": c, "qk_channels": d, "dtype": dtype, "qk_dtype": qk_dtype, **layout}
    for splits in (1, 2):
        tile = Tile(64, 64, 256, 4, 2, splits)  # more channels than there are
        launch.run_forward(q, k, v, 1.0, tile)
        check_call(recorders["forward"], Case(kernel="forward", tile=tile, split=splits == 2, **common))
    check_call(recorders["combine"], Case(kernel="combine", tile=COMBINE, **common))
    tiles = {"grad_v": Tile(64, 64, 64, 4, 2), "grad_qk": Tile(64, 32, 32, 8, 1), "grad_q": Tile(32, 64, 16, 4, 3)}
    for fixed in (False, True):
        launch.run_backward(v, q, k, v, v, torch.zeros(1, 1, n), 1.0, tiles, fixed)
        check_call(recorders["delta"], Case(kernel="delta", tile=DELTA, **common))
        check_call(recorders["grad_v"], Case(kernel="grad_v", tile=tiles["grad_v"], **common))
        check_call(recorders["grad_qk"], Case(kernel="grad_qk", tile=tiles["grad_qk"], atomic=not fixed, **common))
    check_call(recorders["grad_q"], Case(kernel="grad_q", tile=tiles["grad_q"], **common))
    assert not any(recorder.calls for recorder in recorders.values())


@pytest.mark.parametrize("project_k", [True, False])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_block_is_launched_as_the_gate_compiles_it(
    recorders: dict[str, Recorder], monkeypatch: pytest.MonkeyPatch, dtype: str, project_k: bool
) -> None:
    from hyctas.attention.triton import launch

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    c, d, tile = 96, 12, Tile(32, 64, 128, 4, 2)
    x, wq, wk, wv = (torch.zeros(shape, dtype=getattr(torch, dtype)) for shape in ((1, c, 8, 16), (d, c), (d, c), (c, c)))
    launch.run_block(x, wq, torch.zeros(d), wk, wv, *(torch.zeros(c) for _ in range(3)), 1.0, tile, project_k=project_k)
    expected = Case(kernel="block", arch=80, tile=tile, channels=c, qk_channels=d, dtype=dtype, project_k=project_k)
    check_call(recorders["block"], expected)
    assert resources.judge(replace(expected, arch=90), numbers()) == []
