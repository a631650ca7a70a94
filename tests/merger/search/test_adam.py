"""The climb: reaches a top, stays within bounds, and is the same however often it is stopped."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from merger.errors import ConfigError
from merger.search.adam import AdamSettings, first_weights, next_weights

TOP = np.array([0.7, -0.4, 0.2, 2.0, 0.1])
LOW, HIGH = np.full(5, -0.5), np.full(5, 1.5)
CURVE = np.array([1.0, 30.0, 0.05, 2.0, 1.0])


def gradients_at(weights: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """Of the score -1/2 sum CURVE (weights - TOP)^2."""
    return -scale * CURVE * (weights - TOP)


def climb(
    settings: AdamSettings, steps: int, scale: float = 1.0, noise: float = 0.0
) -> list[tuple[np.ndarray, np.ndarray]]:
    draw = np.random.default_rng(5)
    history: list[tuple[np.ndarray, np.ndarray]] = []
    for _ in range(steps):
        weights = next_weights(history, LOW, HIGH, settings)
        history.append((weights, gradients_at(weights, scale) + noise * scale * draw.normal(size=5)))
    return history


def test_it_climbs_to_the_top_or_the_bound_before_it() -> None:
    history = climb(AdamSettings(steps=60), 60)
    assert np.array_equal(history[0][0], np.full(5, 0.1))
    assert np.abs(history[-1][0] - np.clip(TOP, LOW, HIGH)).max() < 0.03
    assert all((weights >= LOW).all() and (weights <= HIGH).all() for weights, _ in history)


def test_it_climbs_through_noise() -> None:
    history = climb(AdamSettings(steps=200), 200, noise=1.0)
    far, near = (np.sum(CURVE * (weights - np.clip(TOP, LOW, HIGH)) ** 2) for weights, _ in (history[0], history[-1]))
    assert near < 0.05 * far


def test_the_steepness_of_the_score_changes_nothing() -> None:
    plain, steep = (climb(AdamSettings(steps=20), 20, scale) for scale in (1.0, 2.0**-20))
    assert np.allclose(plain[-1][0], steep[-1][0], rtol=0, atol=1e-12)


def test_a_climb_taken_up_from_what_was_stored_is_the_same_bit_for_bit() -> None:
    settings = AdamSettings(steps=30, weight_decay=0.1)
    history = climb(settings, 30, noise=0.3)
    stored = json.loads(json.dumps([(list(weights), list(gradients)) for weights, gradients in history]))
    for step, (weights, _) in enumerate(history):
        assert np.array_equal(next_weights(stored[:step], LOW, HIGH, settings), weights)


def test_no_step_is_longer_than_its_rate_allows() -> None:
    settings = AdamSettings(steps=20, learning_rate=0.05)
    history = climb(settings, 20)
    moves = [np.abs(after - before).max() for (before, _), (after, _) in itertools.pairwise(history)]
    assert moves[0] == pytest.approx(0.05, rel=0.01)
    assert moves[-1] < 0.01
    assert settings.learning_rate_at(20) == settings.learning_rate_at(50) == 0.0


def test_start_is_brought_within_the_bounds() -> None:
    assert list(first_weights([0.3, -1.0, 0.0], [1.0, -0.5, 1.0], AdamSettings(steps=5))) == [0.3, -0.5, 0.1]


def test_the_pull_draws_what_has_no_gradient_to_the_base() -> None:
    settings = AdamSettings(steps=10, learning_rate=0.5, weight_decay=0.5)
    after = next_weights([([0.8, 0.8], [0.0, 0.0])], [-1, -1], [1, 1], settings)
    assert list(after) == [pytest.approx(0.6)] * 2


def test_gradients_far_below_the_others_are_damped() -> None:
    settings = AdamSettings(steps=10, start=0.0, eps=1e-2)
    after = next_weights([([0.0, 0.0, 0.0], [1.0, 1e-6, 0.0])], [-1] * 3, [1] * 3, settings)
    assert after[0] == pytest.approx(0.06, rel=0.02)
    assert 0 < after[1] < 1e-4
    assert after[2] == 0


def test_what_does_not_fit_is_refused() -> None:
    settings = AdamSettings(steps=5)
    with pytest.raises(ValueError, match="not one length"):
        next_weights([([0.0], [1.0, 2.0])], [0], [1], settings)
    with pytest.raises(ValueError, match="not a finite number"):
        next_weights([([0.0], [np.nan])], [0], [1], settings)
    with pytest.raises(ConfigError, match="steps 0: use more than 0"):
        AdamSettings(steps=0)
    with pytest.raises(ConfigError, match="beta1"):
        AdamSettings(steps=1, beta1=1.0)


def test_pull_and_negative_penalty_draw_weights_back() -> None:
    """Where there is no gradient, all weights fall by the pull's share, those below 0 by the penalty's on top."""
    weights = np.array([0.5, -0.4, 0.0, 1.0, -0.1])
    history = [(weights, np.zeros(5))]
    settings = AdamSettings(10, learning_rate=0.1, weight_decay=0.5, negative_penalty=0.2)
    moved = next_weights(history, LOW, HIGH, settings)
    assert moved == pytest.approx([0.5 * 0.95, -0.4 * 0.93, 0.0, 0.95, -0.1 * 0.93])
    free = climb(AdamSettings(steps=60), 60)[-1][0]
    kept = climb(AdamSettings(steps=60, negative_penalty=3.0), 60)[-1][0]
    assert free[1] < kept[1] < 0, "the second weight's top lies below 0"
    assert kept[0] == pytest.approx(free[0], abs=0.03)
