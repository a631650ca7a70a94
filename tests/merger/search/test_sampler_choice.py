from __future__ import annotations

import pytest

from merger.search.sampler_choice import choose


@pytest.mark.parametrize(
    ("method", "no_gradients", "weights", "trials", "chosen", "why"),
    [
        ("auto", "", 400, 100, "gradient", "the tagger eye can be differentiated"),
        ("auto", "the eye is blind", 12, 100, "gp", "the eye is blind, 12 weights and 100 trials are few enough"),
        ("bayes", "", 12, 100, "gp", "few enough for a Gaussian process"),
        ("bayes", "", 21, 100, "cmaes", "21 weights are many"),
        ("bayes", "", 12, 300, "cmaes", "300 trials enough"),
        ("bayes", "", 21, 64, "tpe", "fewer than 5 generations"),
        ("bayes", "", 400, 104, "tpe", "fewer than 5 generations"),
        ("bayes", "", 400, 105, "cmaes", "400 weights are many"),
        ("gradient", "the eye is blind", 12, 100, "gradient", ""),
        ("random", "", 12, 100, "random", ""),
    ],
)
def test_what_is_left_open_is_chosen_and_said_why(
    method: str, no_gradients: str, weights: int, trials: int, chosen: str, why: str
) -> None:
    choice = choose(method, tagger="eye", no_gradients=no_gradients, weights=weights, trials=trials)
    assert choice.method == chosen
    assert why in choice.why
    assert bool(choice.why) == bool(why)
    assert choice.follows_gradients == (chosen == "gradient")


def test_a_generation_is_as_large_as_cma_es_takes_it() -> None:
    cmaes = pytest.importorskip("cmaes")
    import numpy as np

    for weights in (21, 60, 400):
        size = cmaes.SepCMA(mean=np.zeros(weights), sigma=1.0).population_size
        for trials, expected in ((5 * size - 1, "tpe"), (5 * size, "cmaes")):
            found = choose("bayes", tagger="", no_gradients="", weights=weights, trials=trials)
            assert found.method == expected
