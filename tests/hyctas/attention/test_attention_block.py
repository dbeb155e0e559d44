"""`attention_block` and the networks it is substituted in: the same numbers as the blocks they were made from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hyctas import published
from hyctas.arch.genotype import Genotype
from hyctas.arch.operators import Conv, SelfAttention
from hyctas.attention.block import in_steps
from hyctas.network import Native, build
from hyctas.nn.blocks import Block, attend
from hyctas.nn.fused import FusedAttention, fits
from hyctas.nn.fused import fused as fuse
from hyctas.plan import lower
from hyctas.space import edge, tiny

OP = torch.ops.hyctas.attention_block.default
OPERATORS = {
    "gamma": SelfAttention((16,), 16, qk_channels=4),
    "bn": SelfAttention((16,), 16, qk_channels=4, residual="bn"),
    "scaled": SelfAttention((24,), 16, qk_channels=3, scale=0.4),
    "half resolution": SelfAttention((16,), 16, qk_channels=8, half_resolution=True),
    "wide projections": SelfAttention((8,), 12, qk_channels=2, half_resolution=True, wide_projections=True, residual="bn"),
    "stride 2": SelfAttention((16,), 16, qk_channels=2, cell_stride=2),
}
LEFT_ALONE = {
    "heads": SelfAttention((16,), 16, heads=2, qk_channels=4),
    "pooled keys": SelfAttention((16,), 16, pool=2),
    "pool last": SelfAttention((16,), 16, cell_stride=2, pool_last=True),
}


def shaken(module: nn.Module) -> nn.Module:
    """Give all norms, biases and factors numbers that matter, and return the module in eval mode."""
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2.0)
            elif name.endswith(("running_mean", "bias", "gamma.value")):
                tensor.normal_(0, 0.5)
            elif name.endswith("norm.weight") or name.endswith("joint.weight"):
                tensor.uniform_(0.5, 1.5)
    return module.eval()


def made(op: SelfAttention) -> Block:
    block = shaken(Block(op))
    assert isinstance(block, Block)
    return block


def arguments(c: int = 8, d: int = 3, size: tuple[int, int] = (5, 6), batch: int = 2) -> dict[str, Tensor]:
    shapes = {"wq": (d, c), "bq": (d,), "wk": (d, c), "wv": (c, c), "bv": (c,), "norm_scale": (c,), "norm_shift": (c,)}
    return {"x": torch.randn(batch, c, *size), **{name: torch.randn(shape) for name, shape in shapes.items()}}


@pytest.mark.parametrize("name", OPERATORS)
def test_middle_of_a_block(name: str) -> None:
    """What the operator computes is what the block computes between its first and its last convolution."""
    block = made(OPERATORS[name])
    fused, y = FusedAttention(block), torch.randn(2, block.operator.out, 6, 5)
    expected = attend(OPERATORS[name], block._apply_layer, y)
    found = in_steps(
        y, fused.query.weight, fused.query.bias, fused.key.weight, fused.value.weight, fused.value.bias,
        fused.norm_scale, fused.norm_shift, fused.scale,
    )  # fmt: skip
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", OPERATORS)
def test_whole_block(name: str) -> None:
    block = made(OPERATORS[name])
    x = torch.randn(2, block.operator.sources[0], 12, 10)
    fused = fuse(block)
    assert isinstance(fused, FusedAttention) and not any(p.requires_grad for p in fused.parameters())
    with torch.inference_mode():
        torch.testing.assert_close(fused(x), block(x), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(fused(x), block.folded()(x), rtol=1e-5, atol=1e-5)
    assert fused.double()(x.double()).dtype == torch.float64
    sizes = [sum(p.numel() for p in module.parameters()) for module in (fused, block.folded())]
    assert sizes[0] <= sizes[1], "no weight is held twice"


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_what_does_not_fit_is_left_alone(name: str) -> None:
    block, x = made(LEFT_ALONE[name]), torch.randn(1, 16, 8, 8)
    fused = fuse(block)
    assert isinstance(fused, Block) and torch.equal(fused(x), block.folded()(x))
    with pytest.raises(ValueError, match="one head, keys at all positions"):
        FusedAttention(block)
    assert not fits(Block(Conv((8,), 8)))


def joined_by_norms(genotype: Genotype) -> Genotype:
    """Return a genotype whose attentions join their input through a batch norm instead of gamma."""
    branches = tuple(
        tuple(replace(cell, attention=cell.attention and replace(cell.attention, residual="bn")) for cell in branch)
        for branch in genotype.branches
    )
    return replace(genotype, branches=branches)


def genotypes() -> dict[str, Genotype]:
    """Return genotypes of two spaces and the smallest published one, with both kinds of residual."""
    found = {f"tiny {seed}": tiny().sample(np.random.default_rng(seed)) for seed in range(2)}
    found |= {f"edge {seed}": edge().sample(np.random.default_rng(seed)) for seed in (0, 2)}
    small = published.genotype("S", 4)
    return found | {"published S": small, "published S, bn": joined_by_norms(small), "edge 2, bn": joined_by_norms(found["edge 2"])}


@pytest.mark.parametrize("name", genotypes())
def test_network(name: str) -> None:
    network = build(genotypes()[name], 4)
    shaken(network)
    native = Native(network)
    with torch.inference_mode():
        image = torch.randn(1, 3, 64, 96)
        folded, fused = native.folded(), native.fused()
        expected, found = folded(image), fused(image)
    assert float((found - expected).norm() / expected.norm()) <= 1e-5
    blocks = [network.block(node.name) for node in network.nodes]
    substituted = [module for module in fused.modules() if isinstance(module, FusedAttention)]
    assert len(substituted) == sum(fits(block) for block in blocks)
    assert all(isinstance(network.block(node.name), Block) for node in network.nodes), "the original is as it was"


def test_networks_have_blocks_that_fit_and_others() -> None:
    """Else the test above shows nothing."""
    operators = [node.operator for genotype in genotypes().values() for node in lower(genotype, (64, 96), 4).nodes]
    attentions = [op for op in operators if isinstance(op, SelfAttention)]
    fitting = [op for op in attentions if fits(Block(op))]
    assert {op.residual for op in fitting} == {"gamma", "bn"} and len(fitting) < len(attentions)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    given = arguments()
    expected = OP(**{name: t.double() for name, t in given.items()})
    typed = {name: t.to(dtype) if name[0] in "xw" else t for name, t in given.items()}
    y = OP(**typed)
    limit = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}[dtype]
    if dtype == torch.float64:
        typed = {name: t.double() for name, t in given.items()}
        y = OP(**typed)
    assert y.dtype == dtype and float((y.double() - expected).norm() / expected.norm()) <= limit


def test_opcheck_and_layouts() -> None:
    given = arguments()
    torch.library.opcheck(OP, (), given)
    last = given["x"].contiguous(memory_format=torch.channels_last)
    torch.library.opcheck(OP, (), given | {"x": last, "scale": 0.3})
    y = OP(**given | {"x": last})
    assert y.is_contiguous()
    torch.testing.assert_close(y, OP(**given))


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_autocast(scale: float) -> None:
    given = list(arguments().values())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = OP(*given, scale)
        assert OP(*(t.double() for t in given), scale).dtype == torch.float64
    halves = [t.bfloat16() if i in (0, 1, 3, 4) else t for i, t in enumerate(given)]
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, OP(*halves, scale), rtol=0, atol=0)


def test_compile_and_export_keep_one_node() -> None:
    torch._dynamo.reset()
    block = FusedAttention(made(OPERATORS["scaled"]))
    x = torch.randn(1, 24, 6, 7)
    dynamic = {"inputs": ({2: torch.export.Dim("h", min=2, max=64), 3: torch.export.Dim("w", min=2, max=64)},)}
    program = torch.export.export(block, (x,), dynamic_shapes=dynamic)
    assert [node.target for node in program.graph.nodes].count(OP) == 1
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True, dynamic=True)
    for size in ((6, 7), (9, 4)):
        x = torch.randn(1, 24, *size)
        with torch.inference_mode():
            torch.testing.assert_close(compiled(x), block(x))
            torch.testing.assert_close(program.module()(x), block(x))
