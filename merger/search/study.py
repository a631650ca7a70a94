"""A stored study of blends: created, continued, read. Its database is opened in `storage`.

Of every trial the study keeps the whole blend as one attribute (and, up to 256 weights, as Optuna parameters), the
value, and every field of the `Score` as a user attribute. In a wide space proposed blends and Adam's state are
`artifacts`, which attributes name. `merger.search.loop` runs the trials.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import optuna
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from merger.errors import StudyError
from merger.search import earlier
from merger.search.adam import AdamSettings
from merger.search.artifacts import ARTIFACT, Artifacts
from merger.search.baselines import Baseline, known_of, next_baseline
from merger.search.endings import ON, Move
from merger.search.gradient import GradientSampler
from merger.search.history import WEIGHTS
from merger.search.importance import steps_to, stored_gains
from merger.search.samplers import make_sampler
from merger.search.settings import SearchSettings
from merger.search.space import Floats, Space
from merger.search.steps import forget_states, marks_of, proposed, role_of, take
from merger.search.storage import Storage, damage_said, shown, stored
from merger.search.stored_trials import StoredTrials, texts
from merger.search.trials import PROPOSED, PRUNED_AFTER, STEP, GradientStep, Score, TrialRecord, best_of
from merger.weights import Weights

MOST_ROWS = 256
"""Weights up to which each is also an Optuna parameter, a database row of its own (about 2.5 ms each)."""


class Study:
    """A stored study of one space. Open it with `open_study`."""

    def __init__(self, study: optuna.Study, storage: BaseStorage, space: Space, artifacts: Artifacts) -> None:
        self._study, self._storage, self.space, self._artifacts = study, storage, space, artifacts
        self._stored = StoredTrials(space, artifacts)

    @property
    def identity(self) -> dict[str, str]:
        """What was fixed when the study began: sources, tagger, prompts and settings by name."""
        with damage_said(self._storage):
            return earlier.identity(self._study.user_attrs["identity"])

    def records(self) -> list[TrialRecord]:
        """The finished trials in order. Raises `StudyError` if what is stored of one is damaged."""
        with damage_said(self._storage):
            done = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            return [self._stored.record(trial) for trial in done]

    def record(self, number: int) -> TrialRecord:
        """The finished trial `number`. Raises `StudyError` if there is none, or if it is damaged."""
        with damage_said(self._storage):
            trials = self._study.get_trials(deepcopy=False)
            if 0 <= number < len(trials) and trials[number].state == TrialState.COMPLETE:
                return self._stored.record(trials[number])
        done = [trial.number for trial in trials if trial.state == TrialState.COMPLETE]
        there = f"0 to {done[-1]}" if done else "none yet"
        raise StudyError(f"there is no finished trial {number} in this study (finished: {there})")

    def note(self, key: str, value: Any) -> None:
        """Keeps a JSON value with the study."""
        self._study.set_user_attr(key, value)

    def noted(self, key: str) -> Any:
        """What was kept under `key`; None if nothing was."""
        with damage_said(self._storage):
            value = self._study.user_attrs.get(key)
            return earlier.method(value) if key == "method" else value

    def next_trial(self, settings: SearchSettings, move: Move = ON) -> tuple[Trial, Weights]:
        """The next trial and its blend: one that was left under way, else a baseline, else what `move` asks for."""
        every = self._study.get_trials(deepcopy=False)
        left = next((trial.number for trial in every if trial.state == TrialState.RUNNING), None)
        waiting = next((trial.number for trial in every if trial.state == TrialState.WAITING), len(every))
        number = waiting if left is None else left
        role = role_of(number, every, settings, move)
        adam = None if settings.adam is None else replace(settings.adam, begun=move.decay, member=move.member)
        sampler = make_sampler(settings.method, self.space, seed=settings.seed, number=number, adam=adam)
        self._study.sampler = sampler
        trial = self._study.ask() if left is None else self._resumed(left)
        given = trial.user_attrs.get(WEIGHTS)
        if given is not None:
            return trial, self._stored.weights(given)
        wanted = self._wanted(every, settings.baselines)
        if wanted is not None:
            kept: Any = self.space.flatten(wanted.weights)
            marks: dict[str, Any] = {"role": wanted.role, "name": wanted.name}
        else:
            kept = self._proposal(trial, sampler, every, move)
            marks = marks_of(role, move)
        for key, value in marks.items():
            if value or key in trial.user_attrs:  # it may have been left before it was whole
                trial.set_user_attr(key, value)
        trial.set_user_attr(WEIGHTS, kept)
        return trial, self._stored.weights(kept)

    def finish(self, trial: Trial, score: Score) -> TrialRecord:
        """Keeps what was found and returns it. Raises `StudyError` for a value that is not a finite number."""
        if not math.isfinite(score.value):
            raise StudyError(f"trial {trial.number} scored {score.value}: the search cannot go on from that")
        fields = asdict(score)
        if not fields["asked"]:
            del fields["asked"]
        for key, value in {**fields.pop("attributes"), **fields}.items():
            trial.set_user_attr(key, list(value) if isinstance(value, tuple) else value)
        if trial.user_attrs["role"] == STEP or PRUNED_AFTER in score.attributes:
            self._set_apart(trial.number)
        record = self._stored.record(self._study.tell(trial, score.value))
        if self.space.wide and record.role == STEP:
            forget_states(self._study.get_trials(deepcopy=False), self._artifacts)
        return record

    def _set_apart(self, number: int) -> None:
        """Keeps a trial that was scored on other prompts out of what Optuna's own tools call the best.

        To Optuna it breaks a constraint: `best_trial`, plots and the dashboard leave such trials out. Our samplers are
        not told of constraints. The form is the one that Optuna 4 and 5 both read.
        """
        study_id = self._storage.get_study_id_from_name(self._study.study_name)
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(study_id, number)
        self._storage.set_trial_system_attr(trial_id, "constraints", [1.0])

    def step(self, trial: Trial, weights: Weights, take_step: GradientStep, settings: AdamSettings) -> Score:
        """Has the step `trial` taken at its place among the steps that led to it. See `merger.search.steps.take`."""
        trials = self._study.get_trials(deepcopy=False)
        return take(trial, trials, weights, take_step, settings, self.space, self._artifacts)

    def gains_until(self, number: int) -> list[Floats] | None:
        """[T, 2, N] each: what the steps of the searches that led to trial `number` gained; None if not all tell it.

        See `merger.search.importance.stored_gains`.
        """
        with damage_said(self._storage):
            courses = steps_to(self._study.get_trials(deepcopy=False), number)
            gains = [stored_gains(steps, self.space, self._artifacts) for steps in courses]
            known = [each for each in gains if each is not None]
            return known if len(known) == len(gains) else None

    def _resumed(self, number: int) -> Trial:
        """The trial `number`, which a search that was killed left under way, to be finished.

        Optuna has no call for that: its own searches fail such a trial and begin another. Here the number decides the
        seed of the proposal, so that a search that was killed ends with the trials of one that was not.
        """
        study_id = self._storage.get_study_id_from_name(self._study.study_name)
        return Trial(self._study, self._storage.get_trial_id_from_study_id_trial_number(study_id, number))

    def _wanted(self, trials: Sequence[FrozenTrial], kinds: Sequence[str]) -> Baseline | None:
        """The next baseline that is found by trying; None if all are known, or once the search itself began."""
        done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
        if not kinds or not done or done[-1].user_attrs["role"] in PROPOSED:
            return None
        base = next(trial.user_attrs["name"] for trial in done if trial.user_attrs["role"] == "base")
        tried = [(trial.user_attrs[WEIGHTS], trial.value) for trial in done if trial.value is not None]
        return next_baseline(self.space, base, kinds, known_of(tried))

    def _proposal(self, trial: Trial, sampler: BaseSampler, trials: Sequence[FrozenTrial], move: Move) -> Any:
        """What is kept of the sampler's blend after `trials`: a list, or the artifact of a wide one."""
        if not (self.space.wide or move.average or move.mixture):
            return self.space.flatten(self.space.to_weights(self._propose(trial)))
        if not isinstance(sampler, GradientSampler):
            raise StudyError(f"{type(sampler).__name__} cannot propose the {self.space.size:,} weights of channels")
        values = proposed(sampler, trials, self._artifacts, move)
        if self.space.wide:
            return {ARTIFACT: self._artifacts.put(self.space.place(values))}
        names = [parameter.name for parameter in self.space.parameters]
        return self.space.flatten(self.space.to_weights(dict(zip(names, values.tolist(), strict=True))))

    def _propose(self, trial: Trial) -> Mapping[str, float]:
        """The sampler's values; stored as parameters too unless they are too many."""
        if len(self.space.parameters) > MOST_ROWS:
            return dict(trial.relative_params)
        return {
            parameter.name: trial.suggest_float(parameter.name, parameter.low, parameter.high)
            for parameter in self.space.parameters
        }


def open_study(
    storage: Storage,
    name: str,
    space: Space,
    *,
    identity: Mapping[str, str],
    baselines: Sequence[Baseline] = (),
    create: bool = True,
    artifacts: Artifacts | None = None,
) -> Study:
    """The study `name` in `storage` (a database URL or Optuna storage), created with `baselines` waiting if it is new.

    With `create` off it must be there, and nothing is written. `identity` names all that must not change between
    sittings. artifacts: where arrays of a wide study are kept; None keeps them in memory. Whoever runs trials holds
    `merger.search.locks.study_lock` meanwhile. Raises `StudyError` if the stored study differs, or is missing with
    `create` off.
    """
    if not create:
        study, database = _existing(storage, name)
    else:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with stored(storage) as database:
            study = optuna.create_study(storage=database, study_name=name, direction="maximize", load_if_exists=True)
    with damage_said(database):
        before = study.user_attrs.get("identity")
    if before is None and not create:
        raise StudyError(_no_study(storage, name))
    if before is None:
        for baseline in baselines[len(study.get_trials(deepcopy=False)) :]:  # some may wait from a broken-off start
            # no parameters: a parent may lie outside the bounds, and the sampler is shown the weights anyway
            attributes = {"role": baseline.role, "name": baseline.name, WEIGHTS: space.flatten(baseline.weights)}
            study.enqueue_trial({}, user_attrs=attributes)
        widths = {"widths": dict(space.widths)} if space.wide else {}
        study.set_user_attr("space", {"layers": space.layers, "donors": space.donors, **widths})
        study.set_user_attr("identity", dict(identity))  # last: a study without it was not made whole
        return Study(study, database, space, artifacts or Artifacts())
    with damage_said(database):
        differences = describe_difference(earlier.identity(before), identity)
    if differences:
        raise StudyError(f"'{name}' was begun differently and cannot be continued: {'; '.join(differences)}")
    return Study(study, database, space, artifacts or Artifacts())


def read_study(storage: Storage, name: str, *, artifacts: Artifacts | None = None) -> Study:
    """The study as it is, to be looked at; none of its sources are needed. Raises `StudyError` if there is none.

    artifacts: as in `open_study`; needed where weights of a wide study are looked at.
    """
    study, database = _existing(storage, name, read_only=True)
    with damage_said(database):
        space = study.user_attrs.get("space")
        if space is None:  # it was stopped while it was made
            raise StudyError(_no_study(storage, name))
        widths = {str(layer): int(width) for layer, width in space.get("widths", {}).items()}
        seen = Space(texts(space["layers"]), texts(space["donors"]), (), widths=widths)
        return Study(study, database, seen, artifacts or Artifacts())


def has_study(storage: Storage, name: str) -> bool:
    """Whether the study is there and was made whole. Raises `StudyError` if its database cannot be opened."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with stored(storage, create=False, read_only=True) as database:
            study = optuna.load_study(study_name=name, storage=database)
            with damage_said(database):
                return study.user_attrs.get("identity") is not None
    except KeyError:
        return False


def _existing(storage: Storage, name: str, *, read_only: bool = False) -> tuple[optuna.Study, BaseStorage]:
    """The study and its opened storage; nothing is created. Raises `StudyError` if there is none."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with stored(storage, create=False, read_only=read_only) as database:
            return optuna.load_study(study_name=name, storage=database), database
    except KeyError:
        raise StudyError(_no_study(storage, name)) from None


def _no_study(storage: Storage, name: str) -> str:
    return f"there is no study '{name}' in {shown(storage)}"


def describe_difference(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What differs between two identities, one phrase each; long values (hashes) are cut."""
    phrases = []
    for key in [*before, *(key for key in now if key not in before)]:
        old, new = before.get(key, "nothing"), now.get(key, "nothing")
        if old != new:
            short = [value if len(value) <= 40 else f"{value[:12]}…" for value in (old, new)]
            phrases.append(f"{key} was {short[0]}, is {short[1]}")
    return phrases


def incumbent(study: Study) -> TrialRecord:
    """The trial of the highest value. Raises `StudyError` if none is finished."""
    best = best_of(study.records())
    if best is None:
        raise StudyError("no trial of this study is finished yet")
    return best
