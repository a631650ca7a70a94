"""A search from its first trial to its last page: the study's trials, the selection of the winner, the outputs."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from merger.app.final_evaluation import FinalEvaluation
from merger.app.gradient_memory import GradientSearch, fit_into_memory
from merger.app.identity import identity_of
from merger.app.interrupt import Interrupt
from merger.app.method import choose_as_begun, choose_method, search_settings
from merger.app.outputs import write_outputs
from merger.app.runs import Run
from merger.app.runtime import Runtime, load_runtime
from merger.app.session import Session
from merger.errors import InputError, NoRoom, StudyError
from merger.report.progress import SearchProgress
from merger.scoring.selection import select_winner
from merger.search.baselines import baselines_of, most_trials, outcomes
from merger.search.loop import search
from merger.search.registry import sampler_named
from merger.search.sampler_choice import Choice
from merger.search.storage import refusals_said
from merger.search.study import Study, open_study


@dataclass(frozen=True)
class _Plan:
    """How a search will proceed. gradient: None unless the sampler chosen follows gradients."""

    choice: Choice
    gradient: GradientSearch | None


def run_search(session: Session, run: Run, interrupt: Interrupt) -> dict[str, Any]:
    """Begins or continues the search in `run` and finishes it. Returns the result that is also written.

    Raises `InputError` before anything is written, or `StudyError` if `run` began differently; and `KeyboardInterrupt`
    when asked to stop, with all finished trials kept.
    """
    choice = choose_method(session)
    if run.folder.exists() and not run.exists() and any(run.folder.iterdir()):
        raise StudyError(f"{run.folder}: exists already and is not a run; choose another --name")
    identity = identity_of(session.config, session.sources, session.exam, choice)
    runtime = load_runtime(session, gradients=choice.follows_gradients)
    interrupt.stop_if_asked()
    choice, gradient, no_gradients = _with_gradients_if_they_fit(session, runtime, choice)
    interrupt.stop_if_asked()
    new = not run.exists()
    run.make_folder()
    kept = f"What is finished is kept: fix that, then `merger resume {run.folder}`."
    storage = run.storage(session.config)
    with run.held(storage, new), refusals_said(storage, kept):
        study = _open(session, run, identity, new)
        choice = choose_as_begun(session, choice, study.noted("method"), run.name, no_gradients)
        plan = _Plan(choice, gradient if choice.follows_gradients else None)
        return _search(session, runtime, plan, study, run, interrupt)


def _with_gradients_if_they_fit(
    session: Session, runtime: Runtime, choice: Choice
) -> tuple[Choice, GradientSearch | None, str]:
    """(the sampler, what takes its gradient steps, why there are none although the tagger can be differentiated)."""
    if not choice.follows_gradients:
        return choice, None, ""
    try:
        return choice, fit_into_memory(session, runtime), ""
    except NoRoom as error:
        if session.config.method != "auto":
            raise
        return choose_method(session, str(error)), None, str(error)


def _search(
    session: Session, runtime: Runtime, plan: _Plan, study: Study, run: Run, interrupt: Interrupt
) -> dict[str, Any]:
    config, sources, exam = session.config, session.sources, session.exam
    baselines = baselines_of(sources.space, sources.base.name, config.baselines)
    progress = SearchProgress(config.trials, config.time_limit)
    # What `bayes` comes to depends on the limit of trials, which may change between sittings. The study keeps it.
    method = study.noted("method") or plan.choice.method
    sampler_named(method)  # the study may have begun with a sampler that is not registered here
    study.note("method", method)
    _say_beginning(session, plan, method, study, run, progress)

    def start(number: int) -> None:
        interrupt.doing = f"trial {number}"
        progress.start(f"trial {number}")

    reason = search(
        runtime.objective,
        study,
        search_settings(session, method),
        take_step=plan.gradient.steps if plan.gradient else None,
        pruned=runtime.pruned_objective if config.pruning else None,
        interrupted=interrupt,
        report=progress.drawn,
        on_start=start,
        on_trial=progress.trial,
    )
    if reason == "interrupted":
        raise KeyboardInterrupt
    progress.say(f"search ended ({reason}); choosing the winner on fresh prompts")
    study.note("stopped_because", reason)
    interrupt.doing = "this image batch"
    records = study.records()
    selection = select_winner(
        records,
        (*baselines, *outcomes(sources.space, sources.base.name, config.baselines, records)),
        FinalEvaluation(runtime, run, progress, interrupt),
        thresholds=exam.thresholds,
        category_of=exam.vocabulary.category,
        name=run.name,
        stopped_because=reason,
        say=progress.say,
    )
    write_outputs(session, run, study.identity, method, records, selection)
    return selection.result


def _say_beginning(
    session: Session, plan: _Plan, method: str, study: Study, run: Run, progress: SearchProgress
) -> None:
    """Says which method searches, why, and how much there is to do."""
    sources, prompts = session.sources, len(session.exam.prompts["search"])
    if plan.choice.why:
        why = f"as {plan.choice.why}" if method == plan.choice.method else "as it began"
        progress.say(f"method: {method}, {why}")
    progress.say(
        f"{run.name}: {len(sources.space.layers)} layers x {len(sources.donors)} donors, "
        f"{len(sources.space.parameters)} weights by {method}, {prompts} prompts a trial, {session.device}; "
        f"{len(study.records())} trials done"
    )
    most = most_trials(sources.space, session.config.baselines)
    progress.say(f"baselines take at most {most} trials, {most * prompts} images")
    for remark in session.exam.remarks():
        progress.say(remark)
    if plan.gradient is not None:
        progress.say(str(plan.gradient.memory))


def _open(session: Session, run: Run, identity: Mapping[str, str], new: bool) -> Study:
    """The run's study. A folder made for a study that then cannot be opened is removed again."""
    config, sources = session.config, session.sources
    baselines = baselines_of(sources.space, sources.base.name, config.baselines)
    if new:
        run.create(config)
    try:
        study = open_study(run.storage(config), run.name, sources.space, identity=identity, baselines=baselines)
    except InputError:
        if new:
            shutil.rmtree(run.folder)
        raise
    run.create(config)
    return study
