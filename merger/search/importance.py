"""Which layers and donors the gain of a gradient search came through, with standard errors, from its own steps. Pure.

T  steps
W  free weights, N parameters of the space: several weights are one parameter where channels have weights of their own
G  groups of parameters
g_t, w_t  gradient and weights of step t

To first order, the gain along the way of the weights is the sum over the steps of <gradient, move>. That sum splits
into one part for each weight. It is an attribution along a path (Friedman 2004, "Paths and consistency in additive cost
sharing"; Sundararajan et al. 2017, "Axiomatic attribution for deep networks", along a straight path). Every move is
paired with the gradient at its END:

    gain = sum over t of <g_t, w_t - w_(t-1)>

The prompts of that gradient had no part in the move, so its noise is 0 in the mean. The gradient at the move's
beginning caused the move: paired with it, noise counts as gain. (On the demo, by tensor, that gives 0.78, where fresh
prompts give 0.16.) The price is half the curvature along each move, which lessens the gain near an optimum a little.

The noise of a part comes from the next step, which has other prompts and nearly the same weights. Two gradients along
one move differ by the noise of both:

    variance = sum over t of 1/2 <g_(t+1) - g_t, w_t - w_(t-1)>^2

Whatever the gradient itself changes from step to step counts as noise, too. So the errors are rather too large than too
small.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from merger.search import earlier
from merger.search.artifacts import ARTIFACT, Artifacts
from merger.search.gradient import GRADIENT, course_of, steps_among
from merger.search.history import WEIGHTS
from merger.search.mixtures import Mixture
from merger.search.space import Floats, Space
from merger.search.trials import DECAY, MIXTURE, PROPOSED, member_of

GAINS = "gains"
"""The user attribute of a step in a wide space that names its `gains_of_step`. In others gradients are kept whole."""

FEWEST_STEPS = 8
"""The fewest steps that a map is made from: standard errors from fewer are mostly chance."""


@dataclass(frozen=True)
class Attribution:
    """The gain through each group and its standard error, in units of a step's score: [G] float64 each."""

    gain: Floats
    stderr: Floats


def gains_of_step(gradient: Floats, moved: Floats, moved_before: Floats, widths: Sequence[int]) -> Floats:
    """[2, N]: the parts of <gradient, moved> and of <gradient, moved_before> by parameter.

    gradient, moved, moved_before: [W]. widths: [N], how many of the W each parameter has.
    """
    begins = np.concatenate([[0], np.cumsum(widths)[:-1]]).astype(np.intp)
    products = gradient * np.stack([moved, moved_before])
    return np.add.reduceat(products, begins, axis=1).astype(np.float64)


def gains_of_last(gradient: Floats, blends: Sequence[str], space: Space, artifacts: Artifacts) -> Floats:
    """[2, N] of a step in a wide space. blends: the artifacts of the blends of the last steps, this one's last."""
    weights = [space.free(artifacts.get(name)).astype(np.float64) for name in blends[-3:]]
    moves = [np.zeros_like(gradient)] * 2 + [after - before for before, after in pairwise(weights)]
    return gains_of_step(gradient, moves[-1], moves[-2], [parameter.width for parameter in space.parameters])


def steps_to(trials: Sequence[FrozenTrial], number: int) -> list[list[FrozenTrial]]:
    """The finished steps that led to the trial `number`, and the one that goes on from its weights, if there is one.

    That one is the only gradient at the end of the last move. For the mean of the last steps' weights: the steps up to
    it. For an average of searches and its strengths: those of each search. For a baseline, to which no step leads: the
    steps up to the last trial. Decays that led elsewhere are left out.
    """
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    end = trials[number] if trials[number].user_attrs["role"] in PROPOSED else done[-1]
    if (mixture := end.user_attrs.get(MIXTURE)) is not None:
        return [steps for own in Mixture.from_json(mixture).of for steps in steps_to(trials, own)]
    member = member_of(end.user_attrs)
    before = [trial for trial in done if trial.number <= end.number]
    steps = steps_among(course_of(before, decaying=end.user_attrs.get(DECAY) is not None, member=member))
    later = steps_among(
        [trial for trial in done if trial.number > end.number and member_of(trial.user_attrs) == member]
    )
    return [steps + [step for step in later if step.user_attrs[WEIGHTS] == end.user_attrs[WEIGHTS]][:1]]


def stored_gains(steps: Sequence[FrozenTrial], space: Space, artifacts: Artifacts) -> Floats | None:
    """[T, 2, N]: `gains_of_step` of every step; each of `steps` follows the one before it, from the first step on.

    None without steps, and where a version without maps took some of them by channel: it did not keep what is needed.
    """
    if not steps:
        return None
    if space.wide:
        kept = [step.user_attrs.get(GAINS) for step in steps]
        names = [each[ARTIFACT] for each in kept if each is not None]
        return None if len(names) < len(steps) else np.stack([artifacts.get(name) for name in names]).astype(np.float64)
    gradients = np.array([earlier.attributes(step.user_attrs)[GRADIENT] for step in steps], dtype=np.float64)
    weights = space.points([step.user_attrs[WEIGHTS] for step in steps])[0]
    still = np.zeros((1, weights.shape[1]))
    moves = np.concatenate([still, np.diff(weights, axis=0)])
    return np.stack([gradients * moves, gradients * np.concatenate([still, moves[:-1]])], axis=1)


def attribution(gains: Floats, groups: Sequence[Sequence[int]]) -> Attribution:
    """The gain through each group of parameters, given by their places. gains: [T, 2, N].

    The error of a group is that of its sum: the noise of its parameters is correlated, and does not add in squares.
    Raises `ValueError` for fewer than `FEWEST_STEPS` steps.
    """
    if len(gains) < FEWEST_STEPS:
        raise ValueError(f"{len(gains)} steps are too few for standard errors: at least {FEWEST_STEPS} are needed")
    here, after = (np.stack([gains[:, which, list(own)].sum(axis=1) for own in groups], axis=1) for which in (0, 1))
    noise = 0.5 * (after[1:] - here[:-1]) ** 2
    # No step follows the last one. It is given the noise of the move before, as moves get no longer towards the end.
    return Attribution(here.sum(axis=0), np.sqrt(noise.sum(axis=0) + noise[-1]))


def mean_attribution(gains: Sequence[Floats], groups: Sequence[Sequence[int]]) -> Attribution:
    """The gain through each group of the mean of the weights of several searches, in whose steps gradients are `gains`.

    The mean moves by the mean of their moves; so to first order its gain is the mean of theirs. What it gains beyond
    that, because what is by chance in each of them shrinks in the mean, is of second order, and no part of the map.
    Their prompts are different ones, so their noise is independent.
    """
    found = [attribution(own, groups) for own in gains]
    variance = np.sum([each.stderr**2 for each in found], axis=0)
    return Attribution(np.mean([each.gain for each in found], axis=0), np.sqrt(variance) / len(found))


def importance(gains: Sequence[Floats], space: Space, row_of: Mapping[str, str]) -> dict[str, object]:
    """The importance map as plain values with four significant digits: see `merger.scoring.selection`.

    gains: as in `mean_attribution`. row_of: {layer: the row that it is part of}, rows in the order of the network. A
    weight that layers of several rows share has a row of its own.
    """
    rows: dict[str, dict[str, list[int]]] = {row: {} for row in row_of.values()}
    donors: dict[str, list[int]] = {}
    for place, parameter in enumerate(space.parameters):
        own = list(dict.fromkeys(row_of[layer] for layer in parameter.layers))
        rows.setdefault(" + ".join(own), {}).setdefault(parameter.donor, []).append(place)
        donors.setdefault(parameter.donor, []).append(place)
    groups = [
        range(len(space.parameters)),
        *donors.values(),
        *(own for cells in rows.values() for own in cells.values()),
    ]
    found = mean_attribution(gains, groups)
    pairs = iter([[float(f"{x:.4g}") for x in pair] for pair in zip(found.gain, found.stderr, strict=True)])
    gain, stderr = next(pairs)
    return {
        "steps": sum(len(own) for own in gains),
        "searches": len(gains),
        "gain": gain,
        "stderr": stderr,
        "donors": {donor: next(pairs) for donor in donors},
        "rows": {row: {donor: next(pairs) for donor in cells} for row, cells in rows.items() if cells},
    }
