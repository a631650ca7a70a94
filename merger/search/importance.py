"""Which weights the gain of a gradient search came through, with standard errors, from its own steps. Pure.

T  steps
W  free weights, N parameters of the space: several weights are one parameter where channels have weights of their own
G  rows: parameters, or groups of them
g_t, w_t  gradient and weights of step t

The gain along the way that the weights went is, to first order, the sum over the steps of <gradient, move>, and that
sum falls apart into one part for each weight: an attribution along a path (Friedman 2004, "Paths and consistency in
additive cost sharing"; Sundararajan et al. 2017, "Axiomatic attribution for deep networks", along a straight one).
Every move is paired with the gradient at its END:

    gain = sum over t of <g_t, w_t - w_(t-1)>

That gradient was found on prompts that the move knows nothing of, so its noise cancels in the mean. The gradient at the
move's beginning caused the move: with it, noise counts as gain. (On the demo's weights by tensor that made 0.78 of
0.12.)

The noise of a step's part comes from the next step, whose prompts are others still and whose weights are nearly the
same: the two gradients along the same move differ by the noise of both.

    variance = sum over t of 1/2 <g_(t+1) - g_t, w_t - w_(t-1)>^2

What the gradient itself changes from step to step counts as noise, too, so the errors are rather too large.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from optuna.trial import FrozenTrial

from merger.search import earlier
from merger.search.artifacts import ARTIFACT, Artifacts
from merger.search.gradient import GRADIENT
from merger.search.history import WEIGHTS
from merger.search.space import Floats, Space

GAINS = "gains"
"""The user attribute of a step in a wide space that names its `gains_of_step`. In others gradients are kept whole."""

FEWEST_STEPS = 8
"""Steps from which there is a map: errors from fewer are mostly chance."""


@dataclass(frozen=True)
class Attribution:
    """The gain through each row and its standard error, in units of the score: [G] float64 each."""

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


def stored_gains(steps: Sequence[FrozenTrial], space: Space, artifacts: Artifacts) -> Floats | None:
    """[T, 2, N] of these steps, which are the first ones of a study. None where a wide study did not keep them all."""
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


def attribution(gains: Floats, rows: Sequence[Sequence[int]]) -> Attribution:
    """The gain through each row, a list of parameters. gains: [T, 2, N], T at least `FEWEST_STEPS`.

    Errors are those of whole rows: the noise of a row's parameters is common to them, and does not add in squares.
    """
    if len(gains) < FEWEST_STEPS:
        raise ValueError(f"{len(gains)} steps are too few for errors: {FEWEST_STEPS} are not")
    here, after = (np.stack([gains[:, which, list(row)].sum(axis=1) for row in rows], axis=1) for which in (0, 1))
    noise = 0.5 * (after[1:] - here[:-1]) ** 2
    # No step comes after the last one. It takes the noise of the move before it; moves get shorter towards the end.
    return Attribution(here.sum(axis=0), np.sqrt(noise.sum(axis=0) + noise[-1]))


def importance(gains: Floats, space: Space, row_of: Mapping[str, str]) -> dict[str, object]:
    """The importance map as plain values, four significant digits: see `merger.scoring.selection`.

    gains: as `attribution` wants them. row_of: {layer: the row of the report that it is shown in}, rows in the order of
    the network. A parameter that layers of several rows share has a row of its own.
    """
    layers: dict[str, dict[str, list[int]]] = {}
    blocks: dict[str, dict[str, list[int]]] = {row: {} for row in row_of.values()}
    donors: dict[str, list[int]] = {donor: [] for donor in space.donors}
    for place, parameter in enumerate(space.parameters):
        name = " + ".join(parameter.layers)
        found = list(dict.fromkeys(row_of[layer] for layer in parameter.layers))
        layers.setdefault(name, {}).setdefault(parameter.donor, []).append(place)
        blocks.setdefault(found[0] if len(found) == 1 else name, {}).setdefault(parameter.donor, []).append(place)
        donors[parameter.donor].append(place)
    (whole,) = _pairs(attribution(gains, [range(gains.shape[2])]))
    return {
        "steps": len(gains),
        "gain": whole[0],
        "stderr": whole[1],
        "donors": dict(zip(donors, _pairs(attribution(gains, [*donors.values()])), strict=True)),
        "blocks": _table(gains, {row: cells for row, cells in blocks.items() if cells}),
        "layers": _table(gains, layers),
    }


def _table(gains: Floats, rows: Mapping[str, Mapping[str, Sequence[int]]]) -> dict[str, dict[str, list[float]]]:
    """{row: {donor: [gain, standard error]}}"""
    pairs = iter(_pairs(attribution(gains, [members for cells in rows.values() for members in cells.values()])))
    return {row: {donor: next(pairs) for donor in cells} for row, cells in rows.items()}


def _pairs(found: Attribution) -> list[list[float]]:
    return [[float(f"{value:.4g}") for value in pair] for pair in zip(found.gain, found.stderr, strict=True)]
