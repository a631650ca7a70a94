"""Layers of every family: none is empty, none is missing, none overlap; against key lists that others wrote."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from merger.checkpoints.names.transformer import network_shapes, transformer_names_in
from merger.checkpoints.names.unet import denoiser_names_in
from merger.layers.grouping import GRANULARITIES, group
from merger.layers.unet import BLOCK_NAMES, EARLIER

Config = Callable[[str], dict[str, Any]]
Published = Callable[[str], dict[str, tuple[int, ...]]]


def check_partition(names: list[str]) -> None:
    sets = []
    for granularity in GRANULARITIES:
        for block_names in BLOCK_NAMES:
            layers = group(names, granularity, block_names)
            assert all(layers.values())
            assert sorted(name for members in layers.values() for name in members) == sorted(names)
        sets.append({name: layer for layer, members in layers.items() for name in members})
    # finer layers lie within coarser ones, but for the end of a U-Net in the community's last block
    assert block_names == EARLIER
    for coarse, fine in pairwise(sets):
        assert len({(fine[name], coarse[name]) for name in names}) == len(set(fine.values()))


def test_every_tensor_of_every_family_is_in_one_layer(any_family: str, denoiser_config: Config) -> None:
    names = list(network_shapes(denoiser_config(any_family), any_family))
    check_partition(names)
    assert group(names, "block").keys() == group(names[::-1], "block").keys()


EXPECTED = {
    "sd3": "B00 B01 B02 B03 BASE | EARLY MIDDLE LATE BASE",
    "flux": "B00 B01 S00 S01 S02 BASE | EARLY MIDDLE LATE BASE",
    "lumina2": "N00 N01 C00 C01 B00 B01 B02 BASE | REFINE EARLY MIDDLE LATE BASE",
    "sana": "B00 B01 B02 BASE | EARLY MIDDLE LATE BASE",
    "zimage": "N00 C00 B00 B01 B02 B03 BASE | REFINE EARLY MIDDLE LATE BASE",
    "qwenimage": "B00 B01 B02 BASE | EARLY MIDDLE LATE BASE",
}


def test_blocks_are_the_transformer_blocks_and_stages_their_thirds(transformer: str, denoiser_config: Config) -> None:
    names = list(network_shapes(denoiser_config(transformer), transformer))
    blocks, stages = (group(names, granularity) for granularity in ("block", "stage"))
    assert " | ".join((" ".join(blocks), " ".join(stages))) == EXPECTED[transformer]
    assert not any("blocks." in name or "layers." in name for name in blocks["BASE"])


def test_modules_are_attention_feed_forward_and_the_rest(denoiser_config: Config) -> None:
    layers = group(network_shapes(denoiser_config("sana"), "sana"), "module")
    assert {layer for layer in layers if layer.startswith("B01")} == {"B01.attn", "B01.attn2", "B01.ff", "B01.norm"}
    assert layers["B01.norm"] == ("transformer_blocks.1.scale_shift_table",)
    assert all(".attn2." in name for name in layers["B01.attn2"])
    assert set(layers["BASE.in"]) == {"patch_embed.proj.weight", "patch_embed.proj.bias"}


def test_an_unknown_stack_has_layers_under_its_own_name() -> None:
    layers = group(["fancy_blocks.0.attn.q", "fancy_blocks.1.attn.q", "head.weight"], "block")
    assert list(layers) == ["FANCY_BLOCKS00", "FANCY_BLOCKS01", "BASE"]


@pytest.mark.parametrize(("name", "blocks"), [("sd1-ldm", 26), ("sdxl-sgm", 20)])
def test_published_u_nets_are_covered_whole(name: str, blocks: int, published_keys: Published) -> None:
    keys = published_keys(name)
    names = denoiser_names_in(keys)
    assert set(names.values()) == set(keys)
    check_partition(list(names))
    assert len(group(names, "block")) == blocks


@pytest.mark.parametrize(("name", "family", "blocks"), [("sd3-comfyui", "sd3", 25), ("flux-flux", "flux", 58)])
def test_published_transformers_are_covered_whole(
    name: str, family: str, blocks: int, published_keys: Published
) -> None:
    keys = published_keys(name)
    found, names = transformer_names_in(keys, name)
    assert found == family
    check_partition(list(names))
    assert len(group(names, "block")) == blocks
    rows = dict.fromkeys(keys, 0)
    for pieces in names.values():
        for piece in pieces:
            rows[piece.key] += piece.stop - piece.start
    assert rows == {key: shape[0] for key, shape in keys.items()}  # every row of every tensor, once
