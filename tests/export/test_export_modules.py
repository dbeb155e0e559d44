"""Batched export: numbers, canonical bytes, reuse, and which module is at fault."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from export.backends.onnxruntime_session import OnnxRuntime
from export.errors import InvalidInput
from export.module_key import module_key
from export.onnx.exporter import export_modules
from export.target import Target

CPU = Target("onnxruntime-cpu", "fp32")
Pair = tuple[nn.Module, tuple[torch.Tensor, ...]]


class TwoInTwoOut(nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return a + b, torch.cat([a, b], 1)


class Branching(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum().item() > 0 else -x


def conv(channels: int, seed: int = 0) -> Pair:
    torch.manual_seed(seed)
    block = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU())
    return block, (torch.randn(1, channels, 6, 5),)


def mixed() -> list[Pair]:
    up = nn.Upsample(scale_factor=2, mode="bilinear")  # two of them share a constant that the exporter merges
    image = torch.randn(1, 4, 6, 5)
    return [conv(3), (TwoInTwoOut(), (image, image + 1)), (up, (image,)), (up, (image,)), (nn.Identity(), (image,))]


def test_each_file_computes_its_module(tmp_path: Path) -> None:
    modules = mixed()
    seen: list[tuple[int, int]] = []
    paths = export_modules(modules, tmp_path, list("abcde"), batch=3, progress=lambda *state: seen.append(state))
    assert seen == [(3, 5), (5, 5)]
    assert [path.name for path in paths] == [f"{name}.onnx" for name in "abcde"]
    assert all(module.training for module, _ in modules)
    for path, (module, inputs) in zip(paths, modules, strict=True):
        with OnnxRuntime(CPU).load_file(path) as session, torch.no_grad():
            assert [spec.name for spec in session.inputs] == [f"x{i}" for i in range(len(inputs))]
            found = session.run({f"x{i}": x.numpy() for i, x in enumerate(inputs)})
            wanted = module.eval()(*inputs)
            wanted = wanted if isinstance(wanted, tuple) else (wanted,)
            assert [spec.name for spec in session.outputs] == [f"y{i}" for i in range(len(wanted))]
            for a, b in zip(found, wanted, strict=True):
                np.testing.assert_allclose(a, b.numpy(), atol=1e-5)
    assert b"stack_trace" not in paths[0].read_bytes()


def test_bytes_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    pairs = [conv(2, 1), conv(3), conv(4, 2)]
    together = export_modules(pairs, tmp_path / "a", ["p", "q", "r"])
    alone = export_modules([pairs[1]], tmp_path / "b", ["q"])
    assert together[1].read_bytes() == alone[0].read_bytes()


def test_valid_files_are_kept_and_broken_ones_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs, names = [conv(2), conv(3)], ["p", "q"]
    paths = export_modules(pairs, tmp_path, names)
    times = [path.stat().st_mtime_ns for path in paths]
    whole = paths[1].read_bytes()
    paths[1].write_bytes(whole[: len(whole) // 2])
    export_modules(pairs, tmp_path, names)
    assert paths[0].stat().st_mtime_ns == times[0]
    assert paths[1].read_bytes() == whole
    monkeypatch.setattr(torch.onnx, "export", None)  # nothing left to export
    assert export_modules(pairs, tmp_path, names) == paths
    paths[0].write_bytes(b"")
    with pytest.raises(TypeError):
        export_modules(pairs, tmp_path, names)


def test_module_at_fault_is_named_and_the_others_are_written(tmp_path: Path) -> None:
    pairs = [conv(2), (Branching(), (torch.ones(1, 2),))]
    with pytest.raises(InvalidInput, match="module bad: cannot be exported"):
        export_modules(pairs, tmp_path, ["good", "bad"])
    onnx.checker.check_model(onnx.load(tmp_path / "good.onnx"))


def test_wrong_names(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="2 modules need"):
        export_modules([conv(2), conv(3)], tmp_path, ["p", "p"])
    assert export_modules([], tmp_path, []) == []


def test_load_modules_with_cache(tmp_path: Path) -> None:
    pairs = [conv(2), conv(2), conv(3)]
    for _ in range(2):
        sessions = OnnxRuntime(CPU, cache=tmp_path).load_modules(pairs)
        assert [session.inputs[0].shape[1] for session in sessions] == [2, 2, 3]
    assert len(list(tmp_path.glob("*.onnx"))) == 2, "equal modules share a file"


def test_module_key_sees_what_the_export_would() -> None:
    module, inputs = conv(3)
    key = module_key(module, inputs)
    assert key == module_key(*conv(3))
    assert key != module_key(*conv(3, seed=1)), "weights"
    assert key != module_key(module, (torch.zeros(1, 3, 6, 6),)), "input shape"
    pools = [nn.AvgPool2d(2, count_include_pad=flag) for flag in (True, False)]
    assert module_key(pools[0], inputs) != module_key(pools[1], inputs), "an attribute that repr(module) does not show"
    scaled = nn.Identity()
    scaled.table = np.arange(5000)  # type: ignore[assignment]
    assert module_key(scaled, inputs) != module_key(scaled, inputs), "abbreviated text is never trusted"
