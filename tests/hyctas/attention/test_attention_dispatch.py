"""Which implementation computes what, on GPUs that torch is made to report."""

from __future__ import annotations

import importlib.util
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from export.errors import CorruptFile, InvalidInput, Unavailable
from hyctas.attention import dispatch, explain, measured, op
from hyctas.attention.block import in_steps
from hyctas.attention.dispatch import Choice, Problem, choose, choose_block, triton_missing
from hyctas.attention.measured import Entry, write_table
from hyctas.attention.triton.tiles import TWO_STEP, Tile

CUDA = torch.device("cuda", 0)
F16, F32, F64, BF16 = torch.float16, torch.float32, torch.float64, torch.bfloat16
TILE = Tile(32, 32, 64, 2, 1)

Gpu = Callable[..., str]


def problem(dtype: torch.dtype = F16, qk: torch.dtype | None = None, **changes: int) -> Problem:
    sizes = {"batch": 1, "heads": 1, "qk_channels": 8, "value_channels": 64, "queries": 4096, "keys": 4096} | changes
    return Problem(**sizes, qk_dtype=qk or dtype, value_dtype=dtype)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Gpu:
    """Return a function that makes torch report a GPU, and returns its name; no table is known of it."""
    monkeypatch.delenv(dispatch.VARIABLE, raising=False)
    monkeypatch.delenv(measured.VARIABLE, raising=False)
    monkeypatch.setattr(measured, "FOLDER", tmp_path / "shipped")

    def report(major: int = 9, minor: int = 0, *, triton: str = "", hip: str | None = None) -> str:
        name = f"Test GPU {major}.{minor}"
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (major, minor))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: name)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.version, "hip", hip)
        monkeypatch.setattr(dispatch, "triton_missing", lambda: triton)
        for cached in (dispatch._choose, dispatch._choose_block, measured._paths, measured.read_table):
            cached.cache_clear()
        return name

    return report


def entry(**changes: object) -> Entry:
    fields = {
        "backward": False, "block": False, "dtype": "float16", "qk_channels": 8, "value_channels": 64, "batch": 1, "queries": 4096,
        "keys": 4096, "implementation": "triton", "ms": 0.5, "tiles": {"forward": TILE},
    }  # fmt: skip
    return Entry(**fields | changes)  # type: ignore[arg-type]


CASES = [  # capability, dtype of v, dtype of q and k, what is missing, implementation, words of the reason
    ((7, 5), F16, None, "", "sdpa", "compute capability 7.5 is below 8.0, where Triton has no tensor cores"),
    ((7, 5), F32, None, "", "sdpa", "not triton: .*7.5"),
    ((7, 5), BF16, None, "", "chunked", "not triton: .*7.5.*; not sdpa: compute capability 7.5 has no bfloat16"),
    ((7, 0), F16, BF16, "", "chunked", "no bfloat16"),
    ((8, 0), F16, None, "", "triton", "the fused kernels run on this GPU"),
    ((8, 0), BF16, F16, "", "triton", "fused"),
    ((8, 7), BF16, None, "", "triton", "fused"),
    ((9, 0), F32, None, "", "triton", "fused"),
    ((10, 3), F16, None, "", "triton", "fused"),
    ((12, 0), F16, None, "", "triton", "fused"),
    ((12, 1), F16, None, "", "triton", "fused"),
    ((9, 0), F16, None, "Triton is not installed", "sdpa", "not triton: Triton is not installed"),
    ((9, 0), BF16, None, "no C compiler", "sdpa", "not triton: no C compiler"),
    ((9, 0), F64, None, "", "chunked", "does not compute in float64"),
    ((9, 0), F16, F64, "", "chunked", "does not compute in float64"),
    ((7, 5), F64, None, "", "chunked", "float64"),
]


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(("capability", "dtype", "qk", "missing", "implementation", "why"), CASES)
def test_rules(
    gpu: Gpu, capability: tuple[int, int], dtype: torch.dtype, qk: torch.dtype | None, missing: str, implementation: str, why: str,
    backward: bool,
) -> None:  # fmt: skip
    gpu(*capability, triton=missing)
    choice = choose(problem(dtype, qk), CUDA, backward=backward)
    assert choice.implementation == implementation
    assert re.search(why, choice.reason), choice.reason
    assert (choice.tiles is not None) == (implementation == "triton")
    if choice.tiles is not None:
        assert set(choice.tiles) >= set(TWO_STEP[1:] if backward else TWO_STEP[:1])
    assert choose(problem(dtype, qk), torch.device("cuda"), backward=backward) == choice, "the current device"


def test_other_refusals(gpu: Gpu) -> None:
    gpu()
    assert choose(problem(), torch.device("cpu")) == Choice("chunked", "the tensors are on cpu, not on a GPU")
    assert choose(problem(queries=0), CUDA).reason == "there is nothing to compute"
    many = choose(problem(batch=70000), CUDA)
    assert many.implementation == "chunked" and "batch x heads is 70000, above the 65535" in many.reason
    wide = choose(problem(qk_channels=96), CUDA)
    assert wide.implementation == "sdpa" and "96 channels per head, above the 64" in wide.reason
    gpu(hip="6.4")
    assert "AMD" in choose(problem(), CUDA).reason


@pytest.mark.parametrize("kernel", TWO_STEP)
def test_a_kernel_without_a_tile(gpu: Gpu, monkeypatch: pytest.MonkeyPatch, kernel: str) -> None:
    """Only the pass that needs the kernel falls back, and says why."""
    gpu()
    shipped = dispatch.shipped
    monkeypatch.setattr(dispatch, "shipped", lambda arch, name, *rest: None if name == kernel else shipped(arch, name, *rest))
    for backward in (False, True):
        choice = choose(problem(F32), CUDA, backward=backward)
        if (kernel == "forward") == backward:
            assert choice.implementation == "triton"
        else:
            assert choice.implementation == "sdpa"
            assert choice.reason == f"not triton: no tile fits 64 channels of 4 bytes in the kernels {kernel} on this GPU"


def test_tiles_are_those_of_the_wider_dtype(gpu: Gpu) -> None:
    gpu()
    assert choose(problem(F16, F32), CUDA).tiles == choose(problem(F32), CUDA).tiles != choose(problem(F16), CUDA).tiles


def test_forced(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu()
    for name in dispatch.IMPLEMENTATIONS:
        monkeypatch.setenv(dispatch.VARIABLE, name)
        choice = choose(problem(), CUDA)
        assert (choice.implementation, choice.reason) == (name, "HYCTAS_ATTENTION says so")
        assert (choice.tiles is not None) == (name == "triton")
        assert choose(problem(), torch.device("cpu")).implementation == "chunked", "it is about GPUs"
    monkeypatch.setenv(dispatch.VARIABLE, "flash")
    with pytest.raises(InvalidInput, match="HYCTAS_ATTENTION=flash is unknown; set it to chunked, sdpa, triton, or not at all"):
        choose(problem(), CUDA)
    monkeypatch.setenv(dispatch.VARIABLE, "triton")
    with pytest.raises(Unavailable, match="HYCTAS_ATTENTION=triton is unavailable: it does not compute in float64") as caught:
        choose(problem(F64), CUDA)
    assert caught.value.install == "unset HYCTAS_ATTENTION"
    gpu(7, 5)
    with pytest.raises(Unavailable, match=r"7\.5 is below 8\.0"):
        choose(problem(), CUDA)
    monkeypatch.setenv(dispatch.VARIABLE, "")
    assert choose(problem(), CUDA).implementation == "sdpa", "empty is unset"


def test_forced_triton_takes_measured_tiles(gpu: Gpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    name = gpu()
    monkeypatch.setenv(measured.VARIABLE, str(tmp_path))
    write_table(tmp_path / f"{measured.slug(name)}.json", name, [entry()], {})
    monkeypatch.setenv(dispatch.VARIABLE, "triton")
    assert choose(problem(), CUDA).tiles["forward"] == TILE


def test_triton_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[str, object] = {"triton": object(), "gcc": None, "clang": None}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found[name])
    monkeypatch.setattr(shutil, "which", lambda name: found[name])
    monkeypatch.delenv("CC", raising=False)

    def missing() -> str:
        triton_missing.cache_clear()
        return triton_missing()

    assert "install gcc or clang, or set CC" in missing()
    for compiler in ("gcc", "clang"):
        found[compiler] = "/usr/bin/" + compiler
        assert missing() == ""
        found[compiler] = None
    monkeypatch.setenv("CC", "cc")
    assert missing() == ""
    found["triton"] = None
    assert "pip install triton" in missing()
    triton_missing.cache_clear()


def test_explain(gpu: Gpu) -> None:
    q, k, v = torch.zeros(1, 2, 8, 10), torch.zeros(1, 2, 8, 5), torch.zeros(1, 2, 16, 5)
    assert explain(q, k, v) == explain(q, k, v, backward=True) == Choice("chunked", "the tensors are on cpu, not on a GPU")
    with pytest.raises(ValueError, match="at least one key"):
        explain(q, k[..., :0], v[..., :0])
    assert Problem.of(q, k, v) == Problem(1, 2, 8, 16, 10, 5, F32, F32)


def test_nearest_measurement_within_four_times(gpu: Gpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    name = gpu()
    monkeypatch.setenv(measured.VARIABLE, str(tmp_path))
    entries = [
        entry(queries=1024, keys=1024, implementation="sdpa", tiles={}, ms=0.25),
        entry(queries=8192, keys=8192, ms=2.0),
        entry(backward=True, implementation="triton", tiles={"grad_v": TILE}, ms=3.0),
        entry(dtype="float32", implementation="sdpa", tiles={}),
    ]
    write_table(tmp_path / f"{measured.slug(name)}.json", name, entries, {"torch": torch.__version__})

    def chosen(
        dtype: torch.dtype = F16, qk: torch.dtype | None = None, *, backward: bool = False, **changes: int
    ) -> tuple[str, str]:
        choice = choose(problem(dtype, qk, **changes), CUDA, backward=backward)
        return choice.implementation, choice.reason

    fused = ("triton", "the fused kernels run on this GPU")
    small = ("sdpa", "measured fastest on this GPU at d = 8, e = 64, N = 1024, M = 1024: 0.250 ms")
    large = ("triton", "measured fastest on this GPU at d = 8, e = 64, N = 8192, M = 8192: 2.000 ms")
    assert chosen(queries=1024, keys=1024) == chosen(queries=2048, keys=2048) == chosen(queries=512, keys=512) == small
    assert chosen(queries=256, keys=1024, batch=4) == small, "batch x heads x queries x keys counts"
    assert chosen(queries=496, keys=512) == fused, "more than four times smaller"
    assert chosen(queries=8192, keys=32768) == large and chosen(queries=8192, keys=32784) == fused
    assert chosen(queries=1024, keys=4096, batch=4) == large, "exactly four times smaller than the larger one"
    assert chosen(qk_channels=16) == chosen(value_channels=128) == chosen(BF16) == fused
    assert chosen(F32)[0] == "sdpa" and chosen(F32, F16) == fused, "only equal dtypes were measured"
    assert chosen(backward=True)[1].endswith("3.000 ms")
    tiles = choose(problem(), CUDA, backward=True).tiles
    assert tiles is not None and tiles["grad_v"] == TILE and set(tiles) == set(TWO_STEP), "the rest are the shipped ones"
    gpu(7, 5)
    assert chosen()[0] == "sdpa", "no table of this GPU"


def test_a_measured_tile_may_be_wider(gpu: Gpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    name = gpu()
    monkeypatch.setenv(measured.VARIABLE, str(tmp_path))
    write_table(tmp_path / f"{measured.slug(name)}.json", name, [entry(qk_channels=96)], {})
    assert choose(problem(qk_channels=96), CUDA).tiles["forward"] == TILE
    assert choose(problem(qk_channels=96), CUDA, backward=True).implementation == "sdpa"


def test_a_table_written_later_counts_at_once(gpu: Gpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """However the file came or went: nothing has to be told, and no process restarted."""
    name = gpu()
    monkeypatch.setenv(measured.VARIABLE, str(tmp_path))
    path = tmp_path / f"{measured.slug(name)}.json"
    assert choose(problem(), CUDA).implementation == "triton"
    write_table(path, name, [entry(implementation="sdpa", tiles={})], {})
    assert choose(problem(), CUDA).implementation == "sdpa"
    write_table(path, name, [entry()], {})
    assert choose(problem(), CUDA).tiles["forward"] == TILE
    path.write_text("{")
    with pytest.raises(CorruptFile, match="not valid JSON"):
        choose(problem(), CUDA)
    path.unlink()
    assert choose(problem(), CUDA).tiles["forward"] != TILE


def test_block(gpu: Gpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    name = gpu()
    monkeypatch.setattr(dispatch, "_index", lambda device: 0)
    real = dispatch.choose
    monkeypatch.setattr(dispatch, "choose", lambda problem, device: real(problem, CUDA))

    def chosen(channels: int = 64, size: int = 64, batch: int = 1, dtype: torch.dtype = F16) -> Choice:
        return choose_block(torch.zeros(1, dtype=dtype).expand(batch, channels, size, size), max(1, channels // 8))

    assert chosen().implementation == "triton" and set(chosen().tiles or ()) == {"block"}
    assert chosen(512).implementation == "steps" and "no tile for 512 channels" in chosen(512).reason
    assert chosen(dtype=F32, channels=128).implementation == "steps"
    assert chosen(size=16).implementation == "steps" and "too few multiprocessors" in chosen(size=16).reason
    assert chosen(size=16, batch=16).implementation == "triton"
    assert chosen(dtype=F64).implementation == chosen(batch=0).implementation == "chunked"
    monkeypatch.setenv(dispatch.VARIABLE, "sdpa")
    assert chosen().implementation == "sdpa"
    monkeypatch.setenv(dispatch.VARIABLE, "")
    monkeypatch.setenv(measured.VARIABLE, str(tmp_path))
    path = tmp_path / f"{measured.slug(name)}.json"
    write_table(path, name, [entry(block=True, implementation="steps", tiles={})], {})
    assert chosen() == Choice("steps", "measured fastest for the whole block: 0.500 ms", {})
    write_table(path, name, [entry(block=True, tiles={"block": TILE})], {})
    assert chosen().tiles == {"block": TILE}
    gpu(8, 0, triton="none")
    assert chosen().implementation == "sdpa"


def test_operators_do_what_was_chosen(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """The functions registered for CUDA, on CPU tensors and with implementations that only say their name."""
    gpu()
    made = Choice("triton", "", {"block": TILE})
    tried: list[tuple[object, ...]] = []
    said = SimpleNamespace(forward=lambda *given: ("forward", *given), backward=lambda *given: ("backward", *given))
    monkeypatch.setitem(dispatch.IMPLEMENTATIONS, "triton", lambda: said)  # type: ignore[arg-type]
    monkeypatch.setattr(op, "choose", lambda *given, **named: tried.append((*given, named)) or made)
    q, k, v = torch.zeros(1, 1, 8, 10), torch.zeros(1, 1, 8, 5), torch.zeros(1, 1, 16, 5)
    assert op._forward_cuda(q, k, v, 0.5) == ("forward", q, k, v, 0.5, made)
    o, lse = torch.zeros(1, 1, 16, 10), torch.zeros(1, 1, 10)
    assert op._backward_cuda(o, q, k, v, o, lse, 0.5) == ("backward", o, q, k, v, o, lse, 0.5, made)
    assert tried == [(Problem.of(q, k, v), q.device, {}), (Problem.of(q, k, v), q.device, {"backward": True})]
    with pytest.raises(ValueError, match="at least one key"):
        op._forward_cuda(q, k[..., :0], v[..., :0])


def test_block_in_steps_where_the_kernel_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    from hyctas.attention import block

    x, w = torch.randn(1, 8, 3, 4), torch.randn(8, 8)
    given = (x, w[:2], w[0, :2], w[2:4], w, w[1], w[2], w[3], 0.5)
    monkeypatch.setattr(dispatch, "choose_block", lambda x, d: Choice("steps", ""))
    assert torch.equal(block._cuda(*given), in_steps(*given))
