"""The search itself: an Optuna study of blends, created or taken up again. Its database is opened in `storage`.

The study is handed its objective and knows nothing of it. Of every trial it keeps the whole blend as one attribute
(and, up to 256 weights, as Optuna parameters), the value, and every field of the `Score` as a user attribute.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from merger.errors import StudyError
from merger.search.adam import AdamSettings
from merger.search.baselines import Baseline, known_of, next_baseline
from merger.search.samplers import GRADIENT, WEIGHTS, Level, make_sampler
from merger.search.space import Space, Weights
from merger.search.storage import stored
from merger.search.trials import (
    POLISH,
    PROPOSED,
    STEP,
    GradientStep,
    Objective,
    Race,
    Report,
    Score,
    TrialRecord,
    best_of,
    why_stop,
)

MOST_ROWS = 256
"""Weights up to which each is also an Optuna parameter, a database row of its own (about 2.5 ms each)."""


@dataclass(frozen=True)
class SearchSettings:
    """How to search and when to stop. `time_limit` is in seconds of trials, over all sittings.

    `adam` is how to climb, for the method `gradients`; after every `eval_every` steps, and after the last, the weights
    reached are scored on the fixed prompts. So too in the last trial that a limit allows. `baselines` are kinds of
    them: those that are found by trying follow the ones that the study was opened with. `polish` is how many black-box
    trials follow a climb. `levels` is what CMA-ES moves together before it moves every weight by itself.
    """

    method: str
    seed: int
    trials: int
    patience: int
    time_limit: float | None = None
    adam: AdamSettings | None = None
    eval_every: int = 8
    baselines: tuple[str, ...] = ()
    polish: int = 0
    levels: tuple[Level, ...] = ()


class Study:
    """A stored study of one space. Open it with `open_study`."""

    def __init__(self, study: optuna.Study, space: Space) -> None:
        self._study, self.space = study, space

    @property
    def identity(self) -> dict[str, str]:
        """What was fixed when the study began: sources, tagger, prompts and settings by name."""
        return dict(self._study.user_attrs["identity"])

    def records(self) -> list[TrialRecord]:
        """The finished trials in order."""
        done = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return [_record(trial, self.space) for trial in done]

    def record(self, number: int) -> TrialRecord:
        """The finished trial `number`. Raises `StudyError` if there is none."""
        trials = self._study.get_trials(deepcopy=False)
        if 0 <= number < len(trials) and trials[number].state == TrialState.COMPLETE:
            return _record(trials[number], self.space)
        done = [trial.number for trial in trials if trial.state == TrialState.COMPLETE]
        there = f"0 to {done[-1]}" if done else "none yet"
        raise StudyError(f"there is no finished trial {number} in this study (finished: {there})")

    def note(self, key: str, value: Any) -> None:
        """Keeps a JSON value with the study."""
        self._study.set_user_attr(key, value)

    def noted(self, key: str) -> Any:
        """What was kept under `key`; None if nothing was."""
        return self._study.user_attrs.get(key)

    def next_trial(self, settings: SearchSettings, *, last: bool = False) -> tuple[Trial, dict[str, dict[str, float]]]:
        """The next trial and its blend: one that was left under way, else a baseline, else the sampler's proposal.

        The `last` one of a sitting takes no step: it scores where the steps have led.
        """
        left = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        every = self._study.get_trials(deepcopy=False)
        waiting = [trial.number for trial in every if trial.state == TrialState.WAITING]
        number = left[0].number if left else waiting[0] if waiting else len(every)
        role = _role_of(number, every, settings, last=last)
        method = POLISH if role == POLISH else settings.method
        self._study.sampler = make_sampler(
            method,
            self.space,
            seed=settings.seed,
            number=number,
            adam=settings.adam,
            levels=settings.levels,
        )
        trial = Trial(self._study, left[0]._trial_id) if left else self._study.ask()
        given = trial.user_attrs.get(WEIGHTS)
        if given is not None:
            return trial, self.space.unflatten(given)
        wanted = self._wanted(every, settings.baselines)
        if wanted is not None:
            weights = self.space.unflatten(self.space.flatten(wanted.weights))
            trial.set_user_attr("role", wanted.role)
            trial.set_user_attr("name", wanted.name)
        else:
            weights = self.space.to_weights(self._propose(trial))
            trial.set_user_attr("role", role)
        trial.set_user_attr(WEIGHTS, self.space.flatten(weights))
        return trial, weights

    def finish(self, trial: Trial, score: Score) -> None:
        """Keeps what was found. Raises `StudyError` for a value that is no number."""
        if not math.isfinite(score.value):
            raise StudyError(f"trial {trial.number} scored {score.value}: the search cannot go on from that")
        fields = asdict(score)
        for key, value in {**fields.pop("attributes"), **fields}.items():
            trial.set_user_attr(key, list(value) if isinstance(value, tuple) else value)
        self._study.tell(trial, score.value)

    def step(self, trial: Trial, weights: Weights, climb: GradientStep) -> Score:
        """Has the step `trial` taken at its place among all steps; its gradients come along as attributes."""
        done = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        place = sum(other.user_attrs["role"] == STEP for other in done)
        score, gradients = climb(weights, place)
        # the gradient of a weight that layers share is the sum of theirs
        found = [
            sum(gradients[layer][parameter.donor] for layer in parameter.layers) for parameter in self.space.parameters
        ]
        if not all(map(math.isfinite, found)):
            raise StudyError(
                f"trial {trial.number}: a gradient is not a finite number: the search cannot go on from that"
            )
        return replace(score, attributes={**score.attributes, GRADIENT: found, "place": place})

    def _wanted(self, trials: Sequence[FrozenTrial], kinds: Sequence[str]) -> Baseline | None:
        """The next baseline that is found by trying; None where all are known. None is wanted once the search began."""
        done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
        if not kinds or not done or done[-1].user_attrs["role"] in PROPOSED:
            return None
        base = next(trial.user_attrs["name"] for trial in done if trial.user_attrs["role"] == "base")
        tried = [(trial.user_attrs[WEIGHTS], trial.value) for trial in done if trial.value is not None]
        return next_baseline(self.space, base, kinds, known_of(self.space, tried))

    def _propose(self, trial: Trial) -> Mapping[str, float]:
        """The sampler's values; written down as parameters too unless they are too many."""
        if len(self.space.parameters) > MOST_ROWS:
            return dict(trial.relative_params)
        return {
            parameter.name: trial.suggest_float(parameter.name, parameter.low, parameter.high)
            for parameter in self.space.parameters
        }


def open_study(
    storage: str,
    name: str,
    space: Space,
    *,
    identity: Mapping[str, str],
    baselines: Sequence[Baseline] = (),
    create: bool = True,
) -> Study:
    """The study `name` in `storage` (a database URL), created with `baselines` waiting if it is not there yet.

    With `create` off it must be there. `identity` names all that must not change between sittings. Raises `StudyError`
    where the stored study differs.
    """
    if not create:
        read_study(storage, name)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with stored(storage) as database:
        study = optuna.create_study(storage=database(), study_name=name, direction="maximize", load_if_exists=True)
    before = study.user_attrs.get("identity")
    if before is None:
        for baseline in baselines[len(study.get_trials(deepcopy=False)) :]:  # some may wait from a broken-off start
            # no parameters: a parent may lie outside the bounds, and the sampler is shown the weights anyway
            attributes = {"role": baseline.role, "name": baseline.name, WEIGHTS: space.flatten(baseline.weights)}
            study.enqueue_trial({}, user_attrs=attributes)
        study.set_user_attr("space", {"layers": space.layers, "donors": space.donors})
        study.set_user_attr("identity", dict(identity))  # last: a study without it was not made whole
        return Study(study, space)
    differences = describe_difference(before, identity)
    if differences:
        raise StudyError(f"'{name}' was begun differently and cannot be continued: {'; '.join(differences)}")
    return Study(study, space)


def read_study(storage: str, name: str) -> Study:
    """The study as it is, for looking at; none of its sources are needed. Raises `StudyError` if there is none."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with stored(storage) as database:
            study = optuna.load_study(study_name=name, storage=database())
        space = study.user_attrs["space"]
    except KeyError:
        raise StudyError(f"there is no study '{name}' in {storage}") from None
    return Study(study, Space(tuple(space["layers"]), tuple(space["donors"]), ()))


def describe_difference(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What differs between two identities, one phrase each; long values (hashes) are cut."""
    phrases = []
    for key in [*before, *(key for key in now if key not in before)]:
        old, new = before.get(key, "nothing"), now.get(key, "nothing")
        if old != new:
            short = [value if len(value) <= 40 else f"{value[:12]}…" for value in (old, new)]
            phrases.append(f"{key} was {short[0]}, is {short[1]}")
    return phrases


def search(
    objective: Objective,
    study: Study,
    settings: SearchSettings,
    *,
    baselines: int,
    climb: GradientStep | None = None,
    race: Race | None = None,
    interrupted: Callable[[], bool] = lambda: False,
    report: Report | None = None,
    on_start: Callable[[int], None] = lambda number: None,
    on_trial: Callable[[TrialRecord, Sequence[TrialRecord]], None] = lambda record, records: None,
) -> str:
    """Runs trials until there is a reason to stop, and returns it (see `trials.why_stop`; `interrupted` if asked to).

    Whatever the objective raises goes through, and leaves its trial to be taken up again. `on_trial` gets each finished
    trial and all of them so far. `baselines` counts those the study was opened with. `climb` takes the steps of the
    method `gradients`; `race` scores what a black-box sampler proposed, where such trials may be given up.
    """
    records = study.records()
    while True:
        reason = why_stop(
            records,
            trials=settings.trials,
            patience=settings.patience,
            time_limit=settings.time_limit,
            baselines=max(baselines, sum(record.role not in PROPOSED for record in records)),
        )
        if reason is None and settings.adam is not None:
            reason = _why_arrived(records, settings.adam, settings.polish)
        # a climb that stops for time has not been scored since its last check: one trial more
        last = reason is not None and records[-1].role == STEP and len(records) < settings.trials
        if reason is not None and not last:
            return reason
        if interrupted():
            return "interrupted"
        trial, weights = study.next_trial(settings, last=last)
        on_start(trial.number)
        began, best = time.perf_counter(), best_of(records)
        if trial.user_attrs["role"] == STEP:
            if climb is None:
                raise StudyError("method: 'gradient' needs an objective with gradients")
            score = study.step(trial, weights, climb)
        elif race is not None and best is not None and _is_black_box(trial.user_attrs["role"], settings):
            score = race(weights, best.score, report)
        else:
            score = objective(weights, report)
        study.finish(trial, _timed(score, time.perf_counter() - began))
        records.append(study.record(trial.number))
        on_trial(records[-1], records)


def incumbent(study: Study) -> TrialRecord:
    """The trial of the highest value. Raises `StudyError` if none is finished."""
    best = best_of(study.records())
    if best is None:
        raise StudyError("no trial of this study is finished yet")
    return best


def _is_black_box(role: str, settings: SearchSettings) -> bool:
    """Whether a sampler that follows no gradients proposed it; where a climb stands is always scored whole."""
    return role == POLISH or (role == "search" and settings.adam is None)


def _role_of(number: int, trials: Sequence[FrozenTrial], settings: SearchSettings, *, last: bool) -> str:
    """Whether the trial `number` after `trials` takes a step or is scored on the fixed prompts."""
    if settings.adam is None:
        return "search"
    roles = [trial.user_attrs.get("role") for trial in trials if trial.number < number]
    steps = roles.count(STEP)
    last = last or number + 1 >= settings.trials
    if steps >= settings.adam.steps and roles[-1] != STEP:
        return POLISH
    due = last or steps % settings.eval_every == 0 or steps >= settings.adam.steps
    return "search" if due and roles and roles[-1] == STEP else STEP


def _why_arrived(records: Sequence[TrialRecord], adam: AdamSettings, polish: int) -> str | None:
    """The reason to end a climb: all steps taken, the weights they led to scored, and all trials near them made."""
    steps = sum(record.role == STEP for record in records)
    arrived = steps >= adam.steps and records[-1].role != STEP
    if not arrived or sum(record.role == POLISH for record in records) < polish:
        return None
    return f"gradients: all {adam.steps} steps are taken" + (f", and {polish} trials near the best" if polish else "")


def _timed(score: Score, seconds: float) -> Score:
    """`score` with its seconds, where the objective did not take the time itself."""
    return score if score.seconds else Score(**{**score.__dict__, "seconds": seconds})


def _record(trial: FrozenTrial, space: Space) -> TrialRecord:
    stored = dict(trial.user_attrs)
    weights = space.unflatten(stored.pop(WEIGHTS))
    role, name = stored.pop("role"), stored.pop("name", "")
    known = {key: stored.pop(key) for key in Score.__dataclass_fields__ if key in stored}
    return TrialRecord(trial.number, role, name, weights, Score(**known, attributes=stored))
