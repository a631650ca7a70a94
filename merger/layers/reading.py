"""Few rows for many layers, so that a table or a chart of them can be read. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from merger.errors import ConfigError
from merger.layers.grouping import group
from merger.layers.unet import COMMUNITY, BlockNames

MOST_ROWS = 40


def rows_for_reading(
    layers: Mapping[str, tuple[str, ...]], block_names: BlockNames = COMMUNITY, most: int = MOST_ROWS
) -> dict[str, str]:
    """{layer: the row that it is part of}, rows in the order of the network.

    layers: {layer: its tensors}. Up to `most` layers are rows themselves. More are put together by block of the
    network, or by stage if its blocks are too many; a layer with tensors of several rows stays a row of its own, after
    all others. In a network of unknown blocks they are put together by the beginning of their names.
    """
    if len(layers) <= most:
        return {layer: layer for layer in layers}
    names = [name for members in layers.values() for name in members]
    try:
        rows = group(names, "block", block_names)
        rows = rows if len(rows) <= most else group(names, "stage", block_names)
    except ConfigError:
        return _by_prefix(layers, most)
    row_of = {name: row for row, members in rows.items() for name in members}
    found = {}
    for layer, members in layers.items():
        own = {row_of[name] for name in members}
        found[layer] = own.pop() if len(own) == 1 else layer
    order = {row: place for place, row in enumerate(rows)}
    return dict(sorted(found.items(), key=lambda item: order.get(item[1], len(order))))


def _by_prefix(layers: Mapping[str, tuple[str, ...]], most: int) -> dict[str, str]:
    """Rows by the first parts of the layers' names, as many parts as leave at most `most` rows."""
    found = dict.fromkeys(layers, "all")
    for parts in range(1, 1 + max(layer.count(".") + 1 for layer in layers)):
        finer = {layer: ".".join(layer.split(".")[:parts]) for layer in layers}
        if len(set(finer.values())) > most:
            break
        found = finer
    return found
