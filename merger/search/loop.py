"""The search itself: runs the trials of a study until there is a reason to stop.

It is handed its objective and knows nothing of it, so it is tested with a plain function.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from merger.errors import StudyError
from merger.search.study import SearchSettings, Study
from merger.search.trials import (
    SEARCH,
    STEP,
    GradientStep,
    Objective,
    PrunedObjective,
    Report,
    TrialRecord,
    best_of,
    improved_at,
    last_improvement,
    why_stop,
)


def search(
    objective: Objective,
    study: Study,
    settings: SearchSettings,
    *,
    take_step: GradientStep | None = None,
    pruned: PrunedObjective | None = None,
    interrupted: Callable[[], bool] = lambda: False,
    report: Report | None = None,
    on_start: Callable[[int], None] = lambda number: None,
    on_trial: Callable[[TrialRecord, Sequence[TrialRecord]], None] = lambda record, records: None,
) -> str:
    """Runs trials until there is a reason to stop, and returns it (see `trials.why_stop`; `interrupted` if asked to).

    Whatever the objective raises goes through, and the next sitting finishes its trial. `on_trial` gets each finished
    trial and all of them so far. `take_step` takes the steps of a gradient search. `pruned` scores what a sampler
    without gradients proposed, if such trials may be pruned. A search that ended goes on under a larger limit, or with
    more steps planned.
    """
    records = study.records()
    mark = last_improvement(records)
    steps = settings.adam.steps if settings.adam is not None else None
    while True:
        reason = why_stop(
            records,
            trials=settings.trials,
            patience=settings.patience,
            time_limit=settings.time_limit,
            steps=steps,
            mark=mark,
        )
        # the weights that the last steps led to are still to be scored: one trial more
        last = reason is not None and records[-1].role == STEP and len(records) < settings.trials
        if reason is not None and not last:
            return reason
        if interrupted():
            return "interrupted"
        trial, weights = study.next_trial(settings, last=last)
        on_start(trial.number)
        began, best = time.perf_counter(), best_of(records)
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
        records.append(study.finish(trial, score))
        mark = improved_at(records, len(records) - 1, mark)
        on_trial(records[-1], records)
