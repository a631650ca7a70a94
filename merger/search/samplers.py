"""A trial's sampler, by the method's name. Importing it loads only the samplers that are used."""

from __future__ import annotations

import importlib

import numpy as np
from optuna.samplers import BaseSampler

from merger.errors import StudyError
from merger.search.adam import AdamSettings
from merger.search.registry import sampler_named
from merger.search.space import Space


def make_sampler(method: str, space: Space, *, seed: int, number: int, adam: AdamSettings | None = None) -> BaseSampler:
    """The sampler of trial `number` in a search of this seed; `adam` is how a method that follows gradients moves.

    A sampler is made anew for every trial and reads all else from the finished trials, so a search that was stopped
    proposes what it would have proposed without the stop. Raises `StudyError` for a method that does not exist, or that
    follows gradients and is not told how.
    """
    entry = sampler_named(method)
    if entry.needs_gradients and adam is None:
        raise StudyError(f"method: '{method}' follows gradients and needs Adam's settings")
    module, _, factory = entry.factory.partition(":")
    own_seed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    sampler: BaseSampler = getattr(importlib.import_module(module), factory)(space, own_seed, adam)
    return sampler
