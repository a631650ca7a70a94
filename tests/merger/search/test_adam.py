"""Adam: reaches a top, stays within bounds, and is the same however often it is stopped."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from merger.errors import ConfigError
from merger.search.adam import AdamSettings, AdamState, first_weights, next_weights, update

TOP = np.array([0.7, -0.4, 0.2, 2.0, 0.1])
LOW, HIGH = np.full(5, -0.5), np.full(5, 1.5)
CURVE = np.array([1.0, 30.0, 0.05, 2.0, 1.0])


def gradients_at(weights: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """Of the score -1/2 sum CURVE (weights - TOP)^2."""
    return -scale * CURVE * (weights - TOP)


def gradient_search(settings: AdamSettings, steps: int, scale: float = 1.0, noise: float = 0.0) -> list[np.ndarray]:
    """The weights of every step."""
    draw = np.random.default_rng(5)
    state, weights = AdamState.begin(5), first_weights(LOW, HIGH, settings)
    taken = [weights]
    for _ in range(steps - 1):
        state = update(state, gradients_at(weights, scale) + noise * scale * draw.normal(size=5), settings)
        weights = next_weights(weights, state, LOW, HIGH, settings)
        taken.append(weights)
    return taken


def after(weights: list[float], gradient: list[float], settings: AdamSettings, bound: float = 1.0) -> np.ndarray:
    """The weights after a first step."""
    state = update(AdamState.begin(len(weights)), gradient, settings)
    return next_weights(weights, state, [-bound] * len(weights), [bound] * len(weights), settings)


def test_it_reaches_the_top_or_the_bound_before_it() -> None:
    taken = gradient_search(AdamSettings(steps=60), 60)
    assert np.array_equal(taken[0], np.full(5, 0.1))
    assert np.abs(taken[-1] - np.clip(TOP, LOW, HIGH)).max() < 0.03
    assert all((weights >= LOW).all() and (weights <= HIGH).all() for weights in taken)


def test_it_gets_there_through_noise() -> None:
    taken = gradient_search(AdamSettings(steps=200), 200, noise=1.0)
    far, near = (np.sum(CURVE * (weights - np.clip(TOP, LOW, HIGH)) ** 2) for weights in (taken[0], taken[-1]))
    assert near < 0.05 * far


def test_the_steepness_of_the_score_changes_nothing() -> None:
    plain, steep = (gradient_search(AdamSettings(steps=20), 20, scale) for scale in (1.0, 2.0**-20))
    assert np.allclose(plain[-1], steep[-1], rtol=0, atol=1e-12)


def test_a_state_is_the_same_bit_for_bit_after_json() -> None:
    settings = AdamSettings(steps=30, weight_decay=0.1)
    draw = np.random.default_rng(5)
    state = weights = None
    for _ in range(30):
        state = update(state or AdamState.begin(5), draw.normal(size=5) * 10.0 ** draw.integers(-12, 3, 5), settings)
        again = AdamState.from_json(json.loads(json.dumps(state.to_json())))
        assert again.steps == state.steps
        assert np.array_equal(again.mean, state.mean) and np.array_equal(again.square, state.square)
        weights = np.full(5, 0.1) if weights is None else weights
        onward = next_weights(weights, state, LOW, HIGH, settings)
        stored = json.loads(json.dumps(weights.tolist()))
        assert np.array_equal(next_weights(stored, again, LOW, HIGH, settings), onward)
        weights = onward


def test_no_step_is_longer_than_its_rate_allows() -> None:
    settings = AdamSettings(steps=20, learning_rate=0.05)
    moves = [np.abs(later - before).max() for before, later in itertools.pairwise(gradient_search(settings, 20))]
    assert moves[0] == pytest.approx(0.05, rel=0.01)
    assert moves[-1] < 0.01
    assert settings.learning_rate_at(20) == settings.learning_rate_at(50) == 0.0


@pytest.mark.parametrize(("eps", "moved"), [(0.0, 1.0), (1.0, 0.0141)])
def test_small_gradients_are_scaled_up_to_a_full_step_unless_eps_forbids(eps: float, moved: float) -> None:
    gradient = np.array([1.0, 0.01])
    settings = AdamSettings(steps=10, learning_rate=0.1, eps=eps)
    state = update(AdamState.begin(2), gradient, settings)
    after = next_weights(np.zeros(2), state, np.full(2, -1.0), np.full(2, 2.0), settings)
    assert after[1] / 0.1 == pytest.approx(moved, rel=0.05)


def test_the_learning_rate_follows_the_steps_planned_now() -> None:
    assert AdamSettings(steps=20).learning_rate_at(10) == pytest.approx(0.03)
    assert AdamSettings(steps=40).learning_rate_at(20) == pytest.approx(0.03)
    assert AdamSettings(steps=40).learning_rate_at(10) > 0.05


def test_start_is_brought_within_the_bounds() -> None:
    assert list(first_weights([0.3, -1.0, 0.0], [1.0, -0.5, 1.0], AdamSettings(steps=5))) == [0.3, -0.5, 0.1]


def test_weight_decay_draws_what_has_no_gradient_to_the_base() -> None:
    settings = AdamSettings(steps=10, learning_rate=0.5, weight_decay=0.5)
    assert list(after([0.8, 0.8], [0.0, 0.0], settings)) == [pytest.approx(0.6)] * 2


def test_gradients_far_below_the_others_are_damped() -> None:
    settings = AdamSettings(steps=10, start=0.0, eps=1e-2)
    moved = after([0.0, 0.0, 0.0], [1.0, 1e-6, 0.0], settings)
    assert moved[0] == pytest.approx(0.06, rel=0.02)
    assert 0 < moved[1] < 1e-4
    assert moved[2] == 0


def test_what_does_not_fit_is_refused() -> None:
    settings = AdamSettings(steps=5)
    state = update(AdamState.begin(2), [1.0, 2.0], settings)
    with pytest.raises(ValueError, match="does not fit a state"):
        update(state, [1.0], settings)
    with pytest.raises(ValueError, match="not a finite number"):
        update(state, [np.nan, 0.0], settings)
    with pytest.raises(ValueError, match="not one length"):
        next_weights([0.0], state, [0], [1], settings)
    with pytest.raises(ValueError, match="not a finite number"):
        next_weights([0.0, np.inf], state, [0, 0], [1, 1], settings)
    with pytest.raises(ValueError, match="no step was taken"):
        next_weights([0.0], AdamState.begin(1), [0], [1], settings)
    with pytest.raises(ConfigError, match="steps 0: use more than 0"):
        AdamSettings(steps=0)
    with pytest.raises(ConfigError, match="beta1"):
        AdamSettings(steps=1, beta1=1.0)


def test_weight_decay_and_negative_penalty_draw_weights_back() -> None:
    """Without a gradient all weights lose the decay's share, and those below 0 the penalty's on top."""
    settings = AdamSettings(10, learning_rate=0.1, weight_decay=0.5, negative_penalty=0.2)
    moved = after([0.5, -0.4, 0.0, 1.0, -0.1], [0.0] * 5, settings)
    assert moved == pytest.approx([0.5 * 0.95, -0.4 * 0.93, 0.0, 0.95, -0.1 * 0.93])
    free = gradient_search(AdamSettings(steps=60), 60)[-1]
    kept = gradient_search(AdamSettings(steps=60, negative_penalty=3.0), 60)[-1]
    assert free[1] < kept[1] < 0, "the second weight's top lies below 0"
    assert kept[0] == pytest.approx(free[0], abs=0.03)
