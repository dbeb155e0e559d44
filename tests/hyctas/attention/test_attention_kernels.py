"""Triton kernels against float64, in Triton's interpreter on the CPU (`interpreted.py`, one process for all tests here).

The interpreter computes fp32 dots in fp32, so that what three TF32 passes cost is not seen here.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hyctas.attention.triton.tiles import Tile

ROOT = Path(__file__).parents[3]
SCRIPT = Path(__file__).with_name("interpreted.py")
LIMITS = {"float32": 1e-5, "float16": 1e-3, "bfloat16": 1e-2}
"""Relative errors in the Frobenius norm, by dtype of v."""
CASES = {"forward": 33, "odd": 16, "backward": 17, "block": 18}

Results = dict[str, dict[str, Any]]


@pytest.fixture(scope="session")
def results() -> dict[str, Results]:
    """Run all cases; skips where the interpreter cannot run."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    alone = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")  # matrices are small: half the time
    environment = {**os.environ, **alone, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, env=environment, cwd=ROOT, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    if "unavailable" in found:
        pytest.skip(found["unavailable"])
    return found


def too_wrong(cases: Results, key: str = "error") -> dict[str, float]:
    """Return the cases whose error is above the limit of their dtype."""
    return {name: case[key] for name, case in cases.items() if not case[key] <= LIMITS[case["dtype"]]}


@pytest.mark.slow
@pytest.mark.parametrize("group", CASES)
def test_kernels_equal_float64(results: dict[str, Results], group: str) -> None:
    assert len(results[group]) == CASES[group]
    assert too_wrong(results[group]) == {}


@pytest.mark.parametrize("group", CASES)
def test_nothing_is_written_outside(results: dict[str, Results], group: str) -> None:
    assert [name for name, case in results[group].items() if case["trespassed"]] == []


@pytest.mark.parametrize("group", ["forward", "odd"])
def test_log_sum_exp(results: dict[str, Results], group: str) -> None:
    """In units of the natural logarithm, to 1e-4."""
    assert {name: case["lse_error"] for name, case in results[group].items() if not case["lse_error"] <= 1e-4} == {}


def test_each_query_is_nan_only_where_its_own_softmax_is(results: dict[str, Results]) -> None:
    assert [name for name, case in results["forward"].items() if case["nan_rows"] or not case["same_nan"]] == []
    odd = results["odd"]
    assert {name: case["nan_rows"] for name, case in odd.items()} == {name: 3 * name.endswith("queries") for name in odd}
    assert all(case["same_nan"] for case in odd.values())


def test_every_gradient_is_right_and_of_its_input_s_dtype(results: dict[str, Results]) -> None:
    for name in ("dq", "dk", "dv"):
        assert too_wrong(results["backward"], name) == {}
    assert all(case["typed"] for case in results["backward"].values())


def test_errors_are_of_the_size_that_the_dtypes_explain(results: dict[str, Results]) -> None:
    """Lower precision must show: else the cases did not run in it."""
    worst = {dtype: 0.0 for dtype in LIMITS}
    for case in results["forward"].values():
        worst[case["dtype"]] = max(worst[case["dtype"]], case["error"])
    assert 0 < worst["float32"] < worst["float16"] < worst["bfloat16"] < math.inf


COUNTS = st.integers(1, 200)


@given(st.integers(1, 5000), st.sampled_from([16, 32, 128]), st.sampled_from([0, 1, 3, 8]), COUNTS, COUNTS)
def test_splits_cover_the_keys(keys: int, columns: int, asked: int, programs: int, processors: int) -> None:
    """Every part is of whole steps and holds a key; no part is made for a GPU that is full already."""
    launch = pytest.importorskip("hyctas.attention.triton.launch", reason="Triton is not installed")
    splits, per_split = launch.split(keys, Tile(64, columns, 64, 4, 2, asked), programs, processors)
    assert per_split % columns == 0 and (splits - 1) * per_split < keys <= splits * per_split
    assert splits <= (asked or launch.MAX_SPLITS)
    if not asked and programs >= processors:
        assert splits == 1


def test_precision_follows_torch_however_it_was_set() -> None:
    """torch's older getter raises where the newer setter was used."""
    launch = pytest.importorskip("hyctas.attention.triton.launch", reason="Triton is not installed")
    matmul, before = torch.backends.cuda.matmul, torch.backends.cuda.matmul.fp32_precision
    try:
        for setting, expected in (("tf32", "tf32"), ("ieee", "tf32x3"), ("none", "tf32x3")):
            matmul.fp32_precision = setting
            assert launch.precision() == expected
        matmul.allow_tf32 = True
        assert launch.precision() == "tf32"
    finally:
        matmul.allow_tf32 = False
        matmul.fp32_precision = before
