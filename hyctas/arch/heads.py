"""Add heads to a plan: semantic, instance, and auxiliary ones for training.

| output                             | what it is                                             | part          |
|------------------------------------|--------------------------------------------------------|---------------|
| `semantic`                         | logits, one channel per class                          | `head`        |
| `centre`, `offset`                 | instance centres (1 channel), offsets to them (2: y, x) | `instance`    |
| `auxiliary16`, `auxiliary32`       | logits at 1/16 and 1/32, for training only             | `auxiliary`   |
| `centre16`, `offset16`, .. `32`    | the same of an instance head, for training only        | `auxinstance` |

Ordinals are fixed per role, so that a supernet's slots do not depend on the head's kind: 0 attention, 1 projections of the stem's
features, 2 and 3 the joining blocks, 4 convolution, 5 prediction; 6 to 8 the offsets' own 3 to 5; 9 a plain head's joining 1x1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from hyctas.arch.genotype import Attention, Head
from hyctas.arch.lowering import Lowering
from hyctas.arch.node import attention_operator, block_operator
from hyctas.arch.operators import Conv, Predict

ROLES = (16, 32)
"""Strides that auxiliary heads look at."""


def semantic_head(plan: Lowering, head: Head, features: str, low: Mapping[int, str], classes: int, part: str = "head") -> str:
    """Add a head that predicts classes.

    Args:
        plan: gets the nodes.
        head: what to build.
        features: name of the node it starts from.
        low: names of the stem's last nodes, by stride.
        classes: number of output channels.
        part: of the nodes' names.

    Returns:
        The name of the node that gives the logits.
    """
    name = _attend(plan, head, features, part)
    if head.kind == "head2":
        name = _join(plan, head, name, low, 8, plan.channels(features)[0], part)
    if head.kind == "plain":
        sources = [name, low[4]]
        name = plan.add(part, 9, Conv(plan.channels(*sources), plan.channels(features)[0], 1), sources)
    else:
        name = _join(plan, head, name, low, 4 if head.kind != "light" else 0, head.channels, part)
    name = plan.add(part, 4, Conv(plan.channels(name), head.channels, 3), [name])
    return plan.add(part, 5, Predict(plan.channels(name), classes), [name])


def instance_head(plan: Lowering, head: Head, features: str, low: Mapping[int, str], part: str = "instance") -> tuple[str, str]:
    """Add a head that predicts instance centres and offsets; returns the two names (arguments as in `semantic_head`)."""
    name = _attend(plan, head, features, part)
    if head.kind == "head2":
        name = _join(plan, head, name, low, 8, head.channels, part)
    sources = [name]
    if head.kind == "plain":
        sources.append(low[4])
    elif head.kind != "light":
        sources.append(_project(plan, head, low, 4, part))
    ends = []
    for ordinal, outputs in ((3, 1), (6, 2)):
        last = plan.add(part, ordinal, block_operator(head.block, plan.channels(*sources), head.channels), sources)
        last = plan.add(part, ordinal + 1, Conv(plan.channels(last), head.channels // 2, 3), [last])
        ends.append(plan.add(part, ordinal + 2, Predict(plan.channels(last), outputs), [last]))
    return ends[0], ends[1]


def auxiliary_heads(plan: Lowering, ends: Mapping[int, Mapping[int, str]], classes: int) -> dict[str, str]:
    """Add what is trained at 1/16 and 1/32 beside the head, and left out of the finished network.

    Per stride: a fusion over the branches' last features there, and a light head on it (and an instance head where the network
    has one). Their widths follow from the network's own.

    Args:
        plan: gets the nodes.
        ends: per final stride of a branch, the names of its last nodes by stride.
        classes: number of classes.

    Returns:
        Output names and the nodes that give them.
    """
    outputs = {}
    for stride in ROLES:
        names = [last[stride] for final, last in ends.items() if final >= stride]
        if not names:
            continue
        out = plan.genotype.fusion.refine16 if stride == 16 else plan.channels(names[0])[0]
        blocks = [ROLES.index(final) for final in ends if final >= stride]
        features = plan.join("auxiliary", names, out, [block - blocks[0] for block in blocks])
        head = light_head(plan.genotype.head, plan.genotype.fusion.out, out)
        outputs[f"auxiliary{stride}"] = semantic_head(plan, head, features, {}, classes, "auxiliary")
        if plan.genotype.instance_head is not None:
            centre, offset = instance_head(plan, head, features, {}, "auxinstance")
            outputs |= {f"centre{stride}": centre, f"offset{stride}": offset}
    return outputs


def middle_channels(channels: int) -> int:
    """Return a head's inner width for its input's: half of it above 256 (released code, `hrtnet.py`)."""
    return channels if channels <= 256 else channels // 2


def light_head(head: Head, from_channels: int, channels: int) -> Head:
    """Return the light head that goes with a head, for other input channels; q and k change in proportion."""
    attention: Attention | None = head.attention
    if attention is not None:
        qk = max(attention.heads, channels * attention.qk_channels // from_channels // attention.heads * attention.heads)
        scale = None if attention.scale is None else round((qk / attention.heads) ** -0.5, 6)
        attention = replace(attention, qk_channels=qk, scale=scale)
    return Head("light", middle_channels(channels), head.block, attention=attention)


def _attend(plan: Lowering, head: Head, name: str, part: str) -> str:
    if head.attention is None:
        return name
    channels = plan.channels(name)
    return plan.add(part, 0, attention_operator(channels, channels[0], 1, head.attention, plan.arithmetic), [name])


def _project(plan: Lowering, head: Head, low: Mapping[int, str], stride: int, part: str) -> str:
    out = head.low8 if stride == 8 else head.low4
    operator = Conv(plan.channels(low[stride]), out, 1, 1, not plan.arithmetic.linear_projection)
    return plan.add(part, 1, operator, [low[stride]])


def _join(plan: Lowering, head: Head, name: str, low: Mapping[int, str], stride: int, out: int, part: str) -> str:
    """Add a block over features and, unless stride is 0, the projected stem features of that stride."""
    sources = [name, _project(plan, head, low, stride, part)] if stride else [name]
    return plan.add(part, 2 if stride == 8 else 3, block_operator(head.block, plan.channels(*sources), out), sources)
