"""The search itself: runs the trials of a study until there is a reason to stop.

It is handed its objective and knows nothing of it, so it is tested with a plain function.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from merger.errors import StudyError
from merger.search.endings import Course, Move, next_move
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
    course = Course.of(study.records())
    before = Move(decay=course.decay)
    while True:
        move = next_move(course, settings, Asked(interrupted()))
        if move.ends:
            return move.reason
        _say_turn(before, move, course, say)
        before = move
        trial, weights = study.next_trial(settings, move)
        on_start(trial.number)
        began, best = time.perf_counter(), best_of(course.records)
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
        course.add(study.finish(trial, score))
        on_trial(course.records[-1], course.records)


def _say_turn(before: Move, now: Move, course: Course, say: Callable[[str], None]) -> None:
    """Says when the learning rate begins to fall, when it is held again, and when there is no room for a decay."""
    taken = sum(record.role == STEP for record in course.held)
    if now.average:
        say(f"no decay, as there is no room for one or none is wanted: the last steps are averaged ({now.reason})")
    elif now.decay is not None and before.decay != now.decay:
        say(f"after {taken} steps the learning rate falls to 0, over {now.decay.over - 1} updates ({now.reason})")
    elif now.decay is None and before.decay is not None:
        say(f"the learning rate is held again: the search goes on after its {taken} steps before the decay")
