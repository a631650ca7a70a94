"""Tensors -> layers, for every kind of network: `group` is the only function that other rooms need.

One module a kind: U-Nets (`merger.layers.unet`), transformers (`merger.layers.transformer`), text encoders
(`merger.layers.text`), and a user's own table (`merger.layers.rules`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from merger.errors import ConfigError, did_you_mean
from merger.layers.channels import CHANNEL
from merger.layers.rules import Rules, group_by_rules
from merger.layers.text import group_text
from merger.layers.transformer import group_transformer, is_transformer
from merger.layers.unet import COMMUNITY, BlockNames, group_unet, is_unet

GRANULARITIES = ("stage", "block", "module", "tensor", CHANNEL)


def group(
    names: Iterable[str], granularity: str | Rules, block_names: BlockNames = COMMUNITY
) -> dict[str, tuple[str, ...]]:
    """Sort tensors into layers: {layer: its tensors}.

    The denoiser's layers come first, in the order that data passes through them and BASE last; then those of text
    encoders, if any are among the names. Every name is in exactly one layer, and the names of a layer are in the order
    given; no layer is empty.

    granularity: one of `GRANULARITIES`, or a table {pattern: layer}. At `channel` the layers are the tensors, as at
    `tensor`, and a layer has several weights (`merger.layers.channels`). block_names: whose names of a U-Net's blocks,
    for granularity `block`. Raises ConfigError for an unknown granularity, for a table that does not match the names,
    and if `stage`, `block` or `module` is asked of an unknown network.
    """
    known = tuple(names)
    if not isinstance(granularity, str):
        return group_by_rules(known, granularity)
    if granularity not in GRANULARITIES:
        raise ConfigError(f"granularity '{granularity}' is unknown.{did_you_mean(granularity, GRANULARITIES)}")
    if granularity in ("tensor", CHANNEL):
        return {name: (name,) for name in known}
    text = group_text(known, granularity)
    taken = {name for members in text.values() for name in members}
    denoiser = tuple(name for name in known if name not in taken)
    if not is_unet(denoiser) and is_transformer(denoiser):
        return group_transformer(denoiser, granularity) | text
    return group_unet(denoiser, granularity, block_names) | text


def sizes(layers: Mapping[str, tuple[str, ...]], elements: Mapping[str, int]) -> dict[str, int]:
    """Numbers of parameters per layer, from {tensor: its number of elements}."""
    return {layer: sum(elements[name] for name in names) for layer, names in layers.items()}
