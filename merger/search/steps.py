"""What a study keeps of the steps of a gradient search, and which weights follow them. In Optuna's terms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial, Trial

from merger.errors import StudyError
from merger.search.adam import AdamSettings, AdamState, update
from merger.search.artifacts import ARTIFACT, Artifacts
from merger.search.endings import Move
from merger.search.gradient import (
    ADAM,
    GRADIENT,
    STATES_KEPT,
    GradientSampler,
    course_of,
    state_after,
    steps_among,
)
from merger.search.history import WEIGHTS
from merger.search.importance import GAINS, gains_of_last
from merger.search.settings import SearchSettings
from merger.search.space import Floats, Space
from merger.search.trials import (
    AVERAGE,
    AVERAGE_OF_SEARCHES,
    DECAY,
    MEMBER,
    MIXTURE,
    SEARCH,
    STEP,
    STRENGTH,
    GradientStep,
    Score,
    member_of,
)
from merger.weights import Weights

PLACES_APART = 1_000_000
"""The place in the stream of prompts where the next search's own stream begins: no search takes as many steps."""


def role_of(number: int, trials: Sequence[FrozenTrial], settings: SearchSettings, move: Move) -> str:
    """Whether the trial `number` after `trials` takes a step or is scored on the fixed prompts."""
    if settings.adam is None:
        return SEARCH
    if move.mixture is not None:
        return AVERAGE_OF_SEARCHES if move.mixture.strength == 1 else STRENGTH
    if move.average:
        return AVERAGE
    earlier = [trial for trial in trials if trial.number < number]
    before = course_of(earlier, decaying=move.decay is not None, member=move.member)
    roles = [trial.user_attrs.get("role") for trial in before]
    steps = roles.count(STEP)
    if move.decay is not None and steps >= move.decay.steps:
        return SEARCH
    last = move.last or number + 1 >= settings.trials
    due = last or steps % settings.eval_every == 0 or steps >= settings.adam.steps
    return SEARCH if due and roles and roles[-1] == STEP else STEP


def marks_of(role: str, move: Move) -> dict[str, Any]:
    """The attributes of a trial that a search proposes: its role, and what it belongs to or is made of."""
    return {
        "role": role,
        "name": "" if move.mixture is None else move.mixture.name,
        DECAY: None if move.decay is None else move.decay.to_json(),
        MEMBER: move.member or None,
        MIXTURE: None if move.mixture is None else move.mixture.to_json(),
    }


def proposed(sampler: GradientSampler, trials: Sequence[FrozenTrial], artifacts: Artifacts, move: Move) -> Floats:
    """[W]: the free weights that the move asks for."""
    if move.mixture is not None:
        return sampler.mixed(trials, move.mixture, artifacts)
    return sampler.average(trials, artifacts) if move.average else sampler.next_of_wide(trials, artifacts)


def take(
    trial: Trial,
    trials: Sequence[FrozenTrial],
    weights: Weights,
    take_step: GradientStep,
    settings: AdamSettings,
    space: Space,
    artifacts: Artifacts,
) -> Score:
    """The score of the step `trial`, taken at its place among the steps of its search that led to it.

    The score's attributes hold its gradient and Adam's state after it, from which the next step goes on; in a wide
    space the state, and of the gradient only what its moves gained. trials: all of the study. Raises `StudyError` for a
    gradient that is not finite.
    """
    member = member_of(trial.user_attrs)
    steps = steps_among(course_of(trials, decaying=trial.user_attrs.get(DECAY) is not None, member=member))
    place = member * PLACES_APART + len(steps)
    score, gradient = take_step(weights, place)
    found = space.gradient_of(gradient)
    if not np.isfinite(found).all():
        raise StudyError(f"trial {trial.number}: a gradient is not a finite number: the search cannot go on from that")
    before = state_after(steps, settings, artifacts) or AdamState.begin(len(found))
    state = update(before, found, settings)
    kept: dict[str, Any] = {"place": place}
    if space.wide:
        kept[ADAM] = {"steps": state.steps, ARTIFACT: artifacts.put(np.stack([state.mean, state.square]))}
        blends = [step.user_attrs[WEIGHTS][ARTIFACT] for step in (*steps[-2:], trial)]
        kept[GAINS] = {ARTIFACT: artifacts.put(gains_of_last(found, blends, space, artifacts))}
    else:
        kept |= {GRADIENT: found.tolist(), ADAM: state.to_json()}
    return replace(score, attributes={**score.attributes, **kept})


def forget_states(trials: Sequence[FrozenTrial], artifacts: Artifacts) -> None:
    """Removes the states of Adam that no step of a wide study will go on from.

    Of each search, the last ones stay, and the last before a decay.
    """
    steps = steps_among(trials)
    kept: list[FrozenTrial] = []
    for member in {member_of(step.user_attrs) for step in steps}:
        own = [step for step in steps if member_of(step.user_attrs) == member]
        kept += [*own[-STATES_KEPT:], *steps_among(course_of(own, decaying=False, member=member))[-1:]]
    names = {step.user_attrs[ADAM][ARTIFACT] for step in kept}
    # of all, not only of the last one: a search may be killed before it removes, and go on from before a decay
    for step in steps:
        if (name := step.user_attrs[ADAM][ARTIFACT]) not in names:
            artifacts.drop(name)
