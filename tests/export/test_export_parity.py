"""Parity: passes where it should, and every way to fail is caught with its numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from export.backends.torch_session import TorchRuntime
from export.errors import CheckFailed, InvalidInput
from export.onnx.exporter import export_onnx
from export.parity import check_parity
from export.runtime import TensorSpec
from export.target import Target


class Fake:
    """A session that adds `error` to what a module computes."""

    def __init__(self, module: nn.Module, error: float = 0.0, name: str = "logits") -> None:
        self.module, self.error = module, error
        self.inputs = (TensorSpec("image", (1, 3, 4, 6)),)
        self.outputs = (TensorSpec(name, (1, 5, 4, 6)),)

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        with torch.no_grad():
            logits = self.module(torch.from_numpy(feeds["image"])).numpy() + np.float32(self.error)
        return [logits.argmax(1) if self.outputs[0].name == "labels" else logits]

    def bind(self, feeds: Mapping[str, np.ndarray]) -> None: ...

    def step(self) -> float:
        return 1.0

    def close(self) -> None: ...

    def __enter__(self) -> Fake:
        return self

    def __exit__(self, *exception: object) -> None: ...


def head(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Conv2d(3, 5, 1)


def test_passes_and_counts_given_inputs() -> None:
    report = check_parity(head(), Fake(head()), inputs=[np.zeros((1, 3, 4, 6), np.float32)], count=2)
    assert report.passed
    assert (report.inputs, report.max_abs_error, report.label_agreement) == (3, 0.0, 1.0)
    report.raise_if_failed()
    json.dumps(report.to_json(), allow_nan=False)


@pytest.mark.parametrize(("error", "passed"), [(1e-5, True), (0.1, False), (float("nan"), False), (float("inf"), False)])
def test_errors(error: float, passed: bool) -> None:
    report = check_parity(head(), Fake(head(), error))
    assert report.passed is passed
    json.dumps(report.to_json(), allow_nan=False)
    if not passed:
        with pytest.raises(CheckFailed, match="not finite" if not np.isfinite(error) else r"limit 1.00e-03"):
            report.raise_if_failed()


@pytest.mark.parametrize(("margin", "passed"), [(1e-6, True), (1e-4, False)])
def test_a_tie_of_two_logits_is_no_disagreement(margin: float, passed: bool) -> None:
    """Two classes that differ by rounding alone; the session has them the other way round."""

    def tied(first: float, second: float) -> nn.Module:
        conv = nn.Conv2d(3, 5, 1)
        with torch.no_grad():
            conv.weight.zero_()
            conv.bias.copy_(torch.tensor([first, second, 0.0, -1.0, -2.0]))  # type: ignore[union-attr]
        return conv

    report = check_parity(tied(1.0, 1.0 - margin), Fake(tied(1.0 - margin, 1.0)))
    assert (report.passed, report.label_agreement) == (passed, float(passed))


def test_labels_are_compared_as_labels() -> None:
    assert check_parity(head(), Fake(head(), name="labels")).passed
    report = check_parity(head(), Fake(head(1), name="labels"))
    assert not report.passed
    assert report.relative_error is None
    assert report.label_agreement < 0.999


@pytest.mark.parametrize("output", ["native", "labels"])
def test_nan_weights_fail(tmp_path: Path, output: str) -> None:
    class Net(nn.Conv2d):
        def forward_native(self, x: torch.Tensor) -> torch.Tensor:
            return self(x)

    module = Net(3, 5, 1)
    nn.init.constant_(module.weight, float("nan"))
    path = export_onnx(module, (4, 6), tmp_path / "m.onnx", output).path
    with pytest.raises(CheckFailed, match="not finite"):
        check_parity(module, path).raise_if_failed()


def test_wrong_weights_fail_on_a_real_session() -> None:
    (session,) = TorchRuntime(Target("torch-cpu", "fp32")).load_modules([(head(1), (torch.zeros(1, 3, 4, 6),))])
    assert not check_parity(head(0), session).passed
    assert check_parity(head(1), session).passed


def test_constant_output_has_a_scale() -> None:
    flat = head()
    nn.init.zeros_(flat.weight)  # type: ignore[arg-type]
    nn.init.zeros_(flat.bias)  # type: ignore[arg-type]
    assert check_parity(flat, Fake(flat)).relative_error == 0.0
    assert not check_parity(flat, Fake(flat, 0.1)).passed


def test_refusals() -> None:
    with pytest.raises(InvalidInput, match="8x8"):
        check_parity(head(), Fake(head()), size=(8, 8))
    with pytest.raises(InvalidInput, match="at least one image"):
        check_parity(head(), Fake(head()), count=0)
    with pytest.raises(InvalidInput, match="must be float32"):
        check_parity(head(), Fake(head()), inputs=[np.zeros((1, 3, 4, 6), np.uint8)])
    with pytest.raises(InvalidInput, match="the reference gives"):
        check_parity(nn.Conv2d(3, 4, 1), Fake(head()))
