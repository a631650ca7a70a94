"""Layers: checked against the original file's own numbering of blocks, which the community's names come from."""

from __future__ import annotations

import importlib
import re
import warnings
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace

import pytest

from merger.checkpoints.names.unet import DENOISER_PREFIX, denoiser_names, denoiser_names_in
from merger.errors import ConfigError
from merger.layers.grouping import GRANULARITIES, group, sizes
from merger.layers.unet import COMMUNITY, EARLIER, BlockNames, layer_of, structure_of

SD15 = {"block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768}
SMALL = {
    "block_out_channels": (32, 64, 64),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 3,
    "cross_attention_dim": 16,
}
CONFIGS = pytest.mark.parametrize("config", [SD15, SMALL], ids=["sd15", "three-levels-of-three"])


def block_by_key(key: str, last: str) -> str:
    """The block as the original file numbers it: an independent reading of the same tensor. last: that of `out.`."""
    bare = key.removeprefix(DENOISER_PREFIX)
    match = re.match(r"(input_blocks|middle_block|output_blocks)\.(\d+)", bare)
    if match is None:
        return last if bare.startswith("out.") else "BASE"
    return (
        "M00" if match[1] == "middle_block" else f"{'IN' if match[1] == 'input_blocks' else 'OUT'}{int(match[2]):02d}"
    )


@CONFIGS
@pytest.mark.parametrize("block_names", [COMMUNITY, EARLIER])
def test_blocks_are_those_of_the_original_layout(config: dict[str, object], block_names: BlockNames) -> None:
    names = denoiser_names(config)
    structure = structure_of(names)
    last = f"OUT{sum(structure.up) - 1:02d}" if block_names == COMMUNITY else "BASE"
    assert {name: layer_of(name, "block", structure, block_names) for name in names} == {
        n: block_by_key(k, last) for n, k in names.items()
    }


@pytest.mark.parametrize(
    ("module", "published"), [("convert_sd1_blocks", "sd1-ldm"), ("convert_sdxl_blocks", "sdxl-sgm")]
)
def test_blocks_are_those_of_the_community_tensor_for_tensor(
    module: str, published: str, published_keys: Callable[[str], dict[str, tuple[int, ...]]]
) -> None:
    """sd-mecha's own conversion of supermerger's blocks, run over the keys of a real file."""
    pytest.importorskip("sd_mecha")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        conversions = importlib.import_module(f"sd_mecha.extensions.builtin.model_configs.{module}")
    theirs: dict[str, str] = {}

    class Builder(SimpleNamespace):
        def __setitem__(self, key: str, block: str) -> None:
            theirs[key] = block

    class Same(defaultdict[str, str]):
        def __missing__(self, block: str) -> str:
            return block

    (conversion,) = (each for name, each in vars(conversions).items() if name.startswith("convert_"))
    conversion.__wrapped__.map_keys(Builder(keys=Same()))
    names = denoiser_names_in(published_keys(published))
    ours = {names[name]: layer for layer, members in group(names, "block").items() for name in members}
    assert len(ours) > 600
    assert ours == {key: theirs[key] for key in ours}
    missing = {key for key in theirs if key.startswith(DENOISER_PREFIX)} - ours.keys()
    assert not missing


def test_stable_diffusion_1_has_the_25_blocks_and_the_rest() -> None:
    inputs, outputs = ([f"{side}{i:02d}" for i in range(12)] for side in ("IN", "OUT"))
    for block_names in (COMMUNITY, EARLIER):
        layers = group(denoiser_names(SD15), "block", block_names)
        assert list(layers) == [*inputs, "M00", *outputs, "BASE"]
        assert set(layers["IN00"]) == {"conv_in.weight", "conv_in.bias"}
        end = {"conv_norm_out", "conv_out"}
        assert {name.split(".")[0] for name in layers["BASE"]} - end == {"time_embedding"}
        where = "OUT11" if block_names == COMMUNITY else "BASE"
        assert {layer for layer, names in layers.items() if end & {name.split(".")[0] for name in names}} == {where}


def test_stages_are_resolutions() -> None:
    layers = group(denoiser_names(SD15), "stage")
    assert list(layers) == ["DOWN0", "DOWN1", "DOWN2", "DOWN3", "MID", "UP0", "UP1", "UP2", "UP3", "BASE"]
    assert "conv_in.weight" in layers["DOWN0"]
    assert all(name.startswith("up_blocks.2.") for name in layers["UP2"])


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("conv_in.bias", "IN00.conv"),
        ("down_blocks.0.resnets.1.norm1.weight", "IN02.resnet"),
        ("down_blocks.1.attentions.0.norm.weight", "IN04.proj"),
        ("down_blocks.1.attentions.0.transformer_blocks.0.norm1.weight", "IN04.attn1"),
        ("down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight", "IN04.attn1"),
        ("down_blocks.1.attentions.0.transformer_blocks.0.norm2.bias", "IN04.attn2"),
        ("down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_out.0.bias", "IN04.attn2"),
        ("down_blocks.1.attentions.0.transformer_blocks.0.ff.net.2.weight", "IN04.ff"),
        ("down_blocks.1.attentions.0.transformer_blocks.0.norm3.bias", "IN04.ff"),
        ("down_blocks.2.downsamplers.0.conv.weight", "IN09.sampler"),
        ("mid_block.resnets.1.conv1.weight", "M00.resnet"),
        ("up_blocks.1.upsamplers.0.conv.weight", "OUT05.sampler"),
        ("time_embedding.linear_1.weight", "BASE.time"),
        ("add_embedding.linear_1.weight", "BASE.time"),
        ("conv_norm_out.bias", "BASE.out"),
        ("encoder_hid_proj.weight", "BASE.rest"),
    ],
)
def test_modules_are_the_parts_of_blocks(name: str, module: str) -> None:
    assert layer_of(name, "module") == module
    assert layer_of(name, "block", block_names=EARLIER) == module.split(".")[0]


@CONFIGS
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_every_tensor_is_in_exactly_one_layer(config: dict[str, object], granularity: str) -> None:
    names = list(denoiser_names(config))
    layers = group(names, granularity)
    assert sorted(name for members in layers.values() for name in members) == sorted(names)
    assert all(layers.values())
    assert all(list(members) == sorted(members, key=names.index) for members in layers.values())


@CONFIGS
def test_finer_layers_lie_within_coarser_ones(config: dict[str, object]) -> None:
    names = denoiser_names(config)
    layer_by = {
        (granularity, block_names): {
            name: layer for layer, members in group(names, granularity, block_names).items() for name in members
        }
        for granularity in GRANULARITIES
        for block_names in (COMMUNITY, EARLIER)
    }
    line = [(granularity, EARLIER) for granularity in GRANULARITIES]
    # the community's last block holds the end of the network, which is a part of BASE at `stage`
    for coarse, fine in [*pairwise(line), (("block", COMMUNITY), ("module", COMMUNITY))]:
        pairs = {(layer_by[fine][name], layer_by[coarse][name]) for name in names}
        assert len(pairs) == len({inner for inner, _ in pairs})


def test_the_order_of_layers_does_not_depend_on_the_order_of_names() -> None:
    names = list(denoiser_names(SD15))
    for granularity in ("stage", "block", "module"):
        assert list(group(names, granularity)) == list(group(reversed(names), granularity))


def test_sizes_add_up() -> None:
    layers = {"a": ("x", "y"), "b": ("z",)}
    assert sizes(layers, {"x": 2, "y": 3, "z": 7}) == {"a": 5, "b": 7}


def test_bad_input_is_one_clear_line() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'block'"):
        group(["conv_in.weight"], "blocks")
    for odd in ("down_blocks.9.resnets.0.conv1.weight", "up_blocks.7.attentions.0.proj_in.weight"):
        with pytest.raises(ConfigError, match="not all of which have resnets"):
            group([*denoiser_names(SD15), odd], "block")
    with pytest.raises(ConfigError, match="no U-Net and no transformer"):
        group(["something.0.weight"], "block")
    with pytest.raises(ConfigError, match="Did you mean 'stage'"):
        group(["transformer_blocks.0.attn.to_q.weight"], "stages")
    assert group(["something.0.weight"], "tensor")
