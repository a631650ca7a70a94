"""The search itself: runs the trials of a study until there is a reason to stop.

It is handed its objective and knows nothing of it, so it is tested with a plain function.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from merger.errors import StudyError
from merger.search.endings import Move
from merger.search.members import Courses, next_move
from merger.search.mixtures import Mixture
from merger.search.settings import SearchSettings
from merger.search.study import Study
from merger.search.trials import (
    SEARCH,
    STEP,
    Asked,
    GradientStep,
    Objective,
    PrunedObjective,
    Report,
    TrialRecord,
    best_of,
)

BEFORE_ANY = Move()
"""Stands for the move before the first one of a sitting."""


def search(
    objective: Objective,
    study: Study,
    settings: SearchSettings,
    *,
    take_step: GradientStep | None = None,
    pruned: PrunedObjective | None = None,
    interrupted: Callable[[], bool | Asked] = lambda: Asked.NOTHING,
    report: Report | None = None,
    on_start: Callable[[int], None] = lambda number: None,
    on_trial: Callable[[TrialRecord, Sequence[TrialRecord]], None] = lambda record, records: None,
    say: Callable[[str], None] = lambda line: None,
) -> str:
    """Runs trials until there is a reason to stop, and returns it (`interrupted` if it was asked to stop).

    Whatever the objective raises goes through, and the next sitting finishes its trial. `on_trial` gets each finished
    trial and all of them so far. `take_step` takes the steps of a gradient search. `pruned` scores what a sampler
    without gradients proposed, if such trials may be pruned. interrupted: what the user wants, asked between trials;
    True is to stop. A search that ended goes on under a larger limit, or with more steps planned. `say` gets a line
    when the learning rate begins to fall, and when it is held again.
    """
    courses = Courses.of(study.records())
    before = BEFORE_ANY
    while True:
        move = next_move(courses, settings, Asked(interrupted()))
        if move.ends:
            return move.reason
        _say_turn(before, move, courses, settings, say)
        before = move
        trial, weights = study.next_trial(settings, move)
        on_start(trial.number)
        began, best = time.perf_counter(), best_of(courses.records)
        role = trial.user_attrs["role"]
        if role == STEP:
            if take_step is None or settings.adam is None:
                raise StudyError(f"method: '{settings.method}' needs an objective with gradients")
            score = study.step(trial, weights, take_step, settings.adam)
        elif pruned is not None and best is not None and role == SEARCH and settings.adam is None:
            score = pruned(weights, best.score, report)
        else:
            score = objective(weights, report)
        if not score.seconds:  # the objective did not take the time itself
            score = replace(score, seconds=time.perf_counter() - began)
        courses.add(study.finish(trial, score))
        on_trial(courses.records[-1], courses.records)


def _say_turn(before: Move, now: Move, courses: Courses, settings: SearchSettings, say: Callable[[str], None]) -> None:
    """Says which search goes on, when a learning rate begins to fall, when it is held again, and what is averaged."""
    course, count = courses.member(now.member), settings.searches
    if now.mixture is not None:
        say(_mixture_said(now.mixture, courses, count, now.reason))
        return
    which = f"search {now.member + 1} of {count}: " if count > 1 else ""
    if which and (before is BEFORE_ANY or before.member != now.member):
        say(which + (f"it goes on after {course.steps} steps" if course.steps else "it begins"))
    taken, decay = course.held_steps, course.decay
    if now.average:
        why = "no decay, as there is no room for one or none is wanted"
        say(f"{which}{why}: the last steps are averaged ({now.reason})")
    elif now.decay is not None and decay != now.decay:
        say(
            f"{which}after {taken} steps the learning rate falls to 0, over {now.decay.over - 1} updates ({now.reason})"
        )
    elif now.decay is None and decay is not None:
        say(f"{which}the learning rate is held again: the search goes on after its {taken} steps before the decay")


def _mixture_said(mixture: Mixture, courses: Courses, count: int, reason: str) -> str:
    """What is averaged, of how many searches, and why not of more."""
    if mixture.strength != 1:
        return f"strength of the whole blend: {mixture.name}"
    ended = [course for course in courses.ended(count) if course.end is not None]
    trials = ", ".join(map(str, mixture.of))
    short = [course.steps for course in ended if course.end is not None and course.end.number not in mixture.of]
    left_out = f"; left out, as too short: {', '.join(f'{steps} steps' for steps in short)}" if short else ""
    return f"{len(mixture.of)} of {count} searches are averaged, trials {trials}{left_out} ({reason})"
