"""Compute a released network straight from its JSON file and its checkpoint, without anything of ours.

A second, independent reading of the released code (`hrtnet.py`, `operations.py`), operation by operation, in double precision:
no plan, no blocks, no sharing of prefixes (aliases are followed instead). It is itself held to the released S logits.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def halve(x: Tensor) -> Tensor:
    return resize(x, (x.shape[2] // 2, x.shape[3] // 2))


def norm(s: State, key: str, x: Tensor) -> Tensor:
    return F.batch_norm(x, s[f"{key}.running_mean"], s[f"{key}.running_var"], s[f"{key}.weight"], s[f"{key}.bias"], False, 0, 1e-5)


def conv(s: State, key: str, x: Tensor, stride: int = 1) -> Tensor:
    weight = s[f"{key}.weight"]
    y = F.conv2d(x, weight, s.get(f"{key}.bias"), stride, weight.shape[2] // 2)
    return norm(s, f"{key}.norm", y) if f"{key}.norm.weight" in s else y


def two_convs(s: State, key: str, x: Tensor, stride: int) -> Tensor:
    return conv(s, f"{key}.conv2", conv(s, f"{key}.conv1", x, stride).relu()).relu()


def downup(s: State, key: str, x: Tensor, stride: int) -> Tensor:
    y = halve(x)
    if f"{key}.conv.weight" in s:
        y = conv(s, f"{key}.conv", y)
    else:
        y = conv(s, f"{key}.conv2", conv(s, f"{key}.conv1", y).relu())
    if stride == 1:
        y = resize(y, (x.shape[2], x.shape[3])) + conv(s, f"{key}.downsample", x)
    return y.relu()


def attend(s: State, key: str, x: Tensor) -> Tensor:
    n, _, h, w = x.shape
    q, k, v = (conv(s, f"{key}.{part}_conv", x).reshape(n, -1, h * w) for part in ("query", "key", "value"))
    weights = torch.softmax(q.transpose(1, 2) @ k, dim=-1)
    return s[f"{key}.gamma"] * (v @ weights.transpose(1, 2)).reshape(x.shape) + x


def attention(s: State, key: str, x: Tensor, stride: int = 1, *, half: bool = False) -> Tensor:
    shortcut = conv(s, f"{key}.shortcut", x, stride).relu() if f"{key}.shortcut.weight" in s else x
    y = conv(s, f"{key}.net1", x).relu()
    y = attend(s, f"{key}.net2.0", halve(y) if half else y)
    if stride == 2:
        y = F.avg_pool2d(y, 2)
    y = norm(s, f"{key}.net2.2", y).relu()
    y = conv(s, f"{key}.net3", resize(y, (2 * y.shape[2], 2 * y.shape[3])) if half else y)
    return (y + shortcut).relu()


def fusion(s: State, key: str, x: Tensor) -> Tensor:
    f = conv(s, f"{key}.conv_1x1", x).relu()
    a = conv(s, f"{key}.channel_attention.1", f.mean((2, 3), keepdim=True)).relu()
    return f + f * torch.sigmoid(conv(s, f"{key}.channel_attention.2", a))


def cell(s: State, layer: int, branch: int, op: int, x: Tensor, stride: int) -> Tensor:
    key = next(f"backbone.cells.{layer}-{b}._op._op.0" for b in range(branch, -1, -1)
               if any(name.startswith(f"backbone.cells.{layer}-{b}.") for name in s))  # fmt: skip
    if op == 1:
        return conv(s, f"{key}.conv", x, stride).relu()
    return attention(s, key, x, stride) if op == 4 else downup(s, key, x, stride)


def features(net: dict[str, Any], s: State, image: Tensor) -> dict[str, Tensor]:
    """Return s4, s8 (stem) and f8, f16, f32 (fused)."""
    s4 = two_convs(s, "backbone.stem1.1", conv(s, "backbone.stem1.0", image, 2), 2)
    s8 = two_convs(s, "backbone.stem2", s4, 2)
    at: dict[int, list[Tensor]] = {0: [], 1: [], 2: []}
    tails = []
    for b, (ops, paths, downs) in enumerate(zip(net["ops"], net["paths"], net["downs"], strict=True)):
        x, last = s8, {0: s8}
        for layer, (op, path, down) in enumerate(zip(ops, paths, downs, strict=True)):
            x = cell(s, layer, b, op, x, 1 + down)
            last[path + down] = x
        if net["lasts"][b] == 2:
            at[2].append(x)
            up = resize(conv(s, "backbone.arms32.0", x), (last[1].shape[2], last[1].shape[3]))
            x = conv(s, "backbone.refines32.0", torch.cat([up, last[1]], 1))
            at[1].append(last[1])
            up = resize(conv(s, "backbone.arms32.1", x), (last[0].shape[2], last[0].shape[3]))
            x = conv(s, "backbone.refines32.1", torch.cat([up, last[0]], 1))
        elif net["lasts"][b] == 1:
            at[1].append(x)
            up = resize(conv(s, "backbone.arms16", x), (last[0].shape[2], last[0].shape[3]))
            x = conv(s, "backbone.refines16", torch.cat([up, last[0]], 1))
        tails.append(x)
    result = {"s4": s4, "s8": s8, "f8": fusion(s, "backbone.ffm", torch.cat(tails, 1))}
    for row, stride in ((1, 16), (2, 32)):
        if at[row]:
            result[f"f{stride}"] = fusion(s, f"backbone.ffm{stride}", torch.cat(at[row], 1))
    return result


def joined(s: State, key: str, f: dict[str, Tensor], source: str) -> Tensor:
    """Return what a head's last stages start from: attention, and the stem's projected features where the head has them."""
    x = attention(s, f"{key}.att_sa", f[source], half=True)
    if f"{key}.feature_projection_s8.weight" in s:
        x = downup(s, f"{key}.decoder", torch.cat([x, conv(s, f"{key}.feature_projection_s8", f["s8"])], 1), 1)
    if f"{key}.feature_projection_s4.weight" in s:
        low = conv(s, f"{key}.feature_projection_s4", f["s4"])
        x = torch.cat([resize(x, (low.shape[2], low.shape[3])), low], 1)
    return x


def stages(s: State, key: str, name: str, x: Tensor) -> Tensor:
    predictor = f"{key}.predictor" if name == "seg" else f"{key}.{name}_predictor"
    return conv(s, predictor, conv(s, f"{key}.{name}_conv", downup(s, f"{key}.{name}_head", x, 1)).relu())


def outputs(net: dict[str, Any], state: State, image: Tensor) -> dict[str, Tensor]:
    """Return every output that the checkpoint has a head for, at the head's own stride, in double precision."""
    s = {key: value.double() for key, value in state.items()}
    f = features(net, s, image.double())
    result = {"semantic": stages(s, "sem_head", "seg", joined(s, "sem_head", f, "f8"))}
    for stride in (16, 32):
        if f"sem_head_aux{stride}.predictor.weight" in s:
            key = f"sem_head_aux{stride}"
            result[f"auxiliary{stride}"] = stages(s, key, "seg", joined(s, key, f, f"f{stride}"))
    if "ins_head.center_predictor.weight" in s:
        x = joined(s, "ins_head", f, "f8")
        result |= {"centre": stages(s, "ins_head", "center", x), "offset": stages(s, "ins_head", "offset", x)}
    return result
