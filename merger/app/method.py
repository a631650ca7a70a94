"""Which sampler a search uses: what the configuration's `method` comes to, in a new search and in a resumed one."""

from __future__ import annotations

from benchmark.taggers.tagger import Tagger
from merger.app.session import Session
from merger.errors import ConfigError, StudyError
from merger.scoring.objective import TAGGER
from merger.search.adam import SHORTEST_DECAY, AdamSettings
from merger.search.baselines import most_trials
from merger.search.sampler_choice import Choice, choose
from merger.search.samplers import too_wide
from merger.search.settings import SearchSettings


def choose_method(session: Session, no_gradients: str = "") -> Choice:
    """The sampler for this search, and why it is taken.

    no_gradients: why the search must do without gradients although its tagger has them; '' if it need not. Raises
    `ConfigError` for weights by channel without gradients, which no sampler could search.
    """
    config, space = session.config, session.sources.space
    tagger = session.exam.taggers[TAGGER]
    why_not = _not_differentiable(tagger) or no_gradients
    choice = choose(
        config.method,
        tagger=tagger.name,
        no_gradients=why_not,
        weights=space.size,
        trials=max(config.trials - most_trials(space, config.baselines), 0),
    )
    if space.wide and not choice.follows_gradients:
        raise ConfigError(too_wide(choice.method, space) + (f" ({why_not})" if why_not else ""))
    return choice


def choose_as_begun(session: Session, choice: Choice, begun: str | None, name: str, no_gradients: str) -> Choice:
    """The sampler with which a search goes on that began with the method `begun`; None is a search that is new.

    choice: what would be chosen now. A search that began with gradients needs them in every sitting, and one that began
    without them stays without, however much memory there is. Raises `StudyError` if it cannot go on. name: the run's.
    """
    if begun is None or Choice(begun).follows_gradients == choice.follows_gradients:
        return choice
    if Choice(begun).follows_gradients:
        raise StudyError(f"'{name}' began with gradients, and now {no_gradients}: continue it where there is more")
    return choose_method(session, "it began without gradients")


def search_settings(session: Session, method: str) -> SearchSettings:
    """What the study needs of the configuration. method: the sampler's name."""
    config = session.config
    gradient = config.gradient
    adam = None
    if Choice(method).follows_gradients:
        adam = AdamSettings(
            gradient.steps,
            gradient.learning_rate,
            gradient.start,
            weight_decay=gradient.weight_decay,
            negative_penalty=gradient.negative_penalty,
            decay=decayed_steps(gradient.steps, gradient.decay),
        )
    return SearchSettings(
        method,
        config.seed,
        config.trials,
        config.patience,
        config.time_limit,
        adam,
        gradient.eval_every,
        config.baselines,
        gradient.searches,
    )


def decayed_steps(steps: int, share: float) -> int | None:
    """Over how many of `steps` the learning rate falls; None if it is never held."""
    return None if share >= 1 else max(SHORTEST_DECAY, round(share * steps))


def _not_differentiable(tagger: Tagger) -> str:
    return "" if hasattr(tagger, "logits") else f"the tagger {tagger.name} cannot be differentiated"
