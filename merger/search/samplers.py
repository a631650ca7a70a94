"""A trial's sampler, by the method's name. Importing it loads only the samplers that are used."""

from __future__ import annotations

import importlib

import numpy as np
from optuna.samplers import BaseSampler

from merger.errors import StudyError
from merger.search.adam import AdamSettings
from merger.search.registry import sampler_named
from merger.search.space import Space


def too_wide(method: str, space: Space) -> str:
    """How to say that a method without gradients cannot search a wide space."""
    return (
        f"method: '{method}' cannot propose the {space.size:,} weights of granularity 'channel'. "
        "Use method 'gradient', with a tagger that can be differentiated, or granularity 'tensor', 'module' or 'block'."
    )


def make_sampler(method: str, space: Space, *, seed: int, number: int, adam: AdamSettings | None = None) -> BaseSampler:
    """The sampler of trial `number` in a search of this seed; `adam` is how a method that follows gradients moves.

    A sampler is made anew for every trial and reads all else from the finished trials, so a search that was stopped
    proposes what it would have proposed without the stop. Raises `StudyError` for a method that does not exist, that
    follows gradients and is not told how, or that cannot propose as many weights as a wide space has.
    """
    entry = sampler_named(method)
    if space.wide and not entry.needs_gradients:
        raise StudyError(too_wide(method, space))
    if entry.needs_gradients and adam is None:
        raise StudyError(f"method: '{method}' follows gradients and needs Adam's settings")
    module, _, factory = entry.factory.partition(":")
    own_seed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    sampler: BaseSampler = getattr(importlib.import_module(module), factory)(space, own_seed, adam)
    return sampler
