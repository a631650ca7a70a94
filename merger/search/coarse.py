"""Coarse to fine: which parameters a black-box search moves together before it moves each by itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from merger.layers.grouping import group
from merger.search.samplers import Level
from merger.search.space import Space


def levels_of(space: Space, layers: Mapping[str, Sequence[str]], plan: Iterable[tuple[str, int]]) -> tuple[Level, ...]:
    """A level for each (granularity, trials) of `plan`, in its order.

    layers: the search's own, {layer: tensor names}. A parameter belongs to the coarser layer of its first tensor, and
    moves with all of that layer's parameters for the same donor.
    """
    names = [name for tensors in layers.values() for name in tensors]
    levels = []
    for granularity, trials in plan:
        coarser = {name: layer for layer, tensors in group(names, granularity).items() for name in tensors}
        keys = [(coarser[layers[each.layers[0]][0]], each.donor) for each in space.parameters]
        numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        levels.append(Level(trials, tuple(numbers[key] for key in keys)))
    return tuple(levels)
