"""A search from its first trial to its last page: the study's trials, the selection of the winner, the outputs."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from merger.app.final_evaluation import FinalEvaluation
from merger.app.identity import check_sources, identity_of
from merger.app.interrupt import Interrupt
from merger.app.memory_planner import Planned, plan_memory
from merger.app.method import choose_as_begun, choose_method, search_settings
from merger.app.outputs import write_outputs
from merger.app.runs import Run
from merger.app.runtime import Runtime, load_runtime
from merger.app.session import Session
from merger.checkpoints.finite import check_finite, check_range
from merger.checkpoints.watch import SourceWatch
from merger.errors import InputError, NoRoom
from merger.layers.reading import rows_for_reading
from merger.report.progress import SearchProgress
from merger.scoring.evaluation_cache import spent_on
from merger.scoring.selection import select_winner
from merger.scoring.several_searches import searches_of
from merger.search.artifacts import Artifacts
from merger.search.baselines import baselines_of, most_trials, outcomes
from merger.search.importance import FEWEST_STEPS, importance
from merger.search.loop import search
from merger.search.registry import sampler_named
from merger.search.sampler_choice import Choice
from merger.search.storage import refusals_said
from merger.search.study import Study, open_study
from merger.search.trials import TrialRecord


@dataclass(frozen=True)
class _Plan:
    """How a search will proceed: the sampler, and how it uses the device's memory."""

    choice: Choice
    memory: Planned


def run_search(session: Session, run: Run, interrupt: Interrupt, *, create: bool | None = None) -> dict[str, Any]:
    """Begins or continues the search in `run` and finishes it. Returns the result that is also written.

    create: whether its study may be begun; else it must be there (None: if nothing was begun in `run`). Raises
    `InputError` before anything is written, or `StudyError` if `run` began differently; and `KeyboardInterrupt` when
    asked to stop, with all finished trials kept.
    """
    run.check_free()
    create = not run.exists() if create is None else create
    if create:
        session = _with_room_to_search(session)
    choice = choose_method(session)
    kept = f"What is finished is kept: fix that, then `merger resume {run.folder}`."
    watch = SourceWatch((session.sources.base, *session.sources.donors), kept)
    identity = identity_of(session.config, session.sources, session.exam, choice)
    check_finite(session.sources.base, session.sources.donors, drawn=True)  # hashing has looked at the values already
    check_range(session.sources.base, session.sources.donors)
    runtime = load_runtime(session, gradients=choice.follows_gradients, hold="file")
    watch.check()
    interrupt.stop_if_asked()
    choice, memory, no_gradients = _with_gradients_if_they_fit(session, runtime, choice)
    interrupt.stop_if_asked()
    new = not run.folder.exists() or not any(run.folder.iterdir())
    run.make_folder()
    storage = run.storage(session.config)
    with run.held(storage, run.study_name(session.config), new), refusals_said(storage, kept):
        study = _open(session, run, identity, new=new, create=create)
        choice = choose_as_begun(session, choice, study.noted("method"), run.name, no_gradients)
        if memory.steps is not None and not choice.follows_gradients:  # it began without
            memory = plan_memory(session, runtime, gradients=False)
        return _search(session, runtime, _Plan(choice, memory), study, run, interrupt, watch)


def _with_room_to_search(session: Session) -> Session:
    """The session with a limit of trials that leaves as many to the sampler as the baselines take; a raise is printed.

    Only for a search that begins: later the limit is what the user says.
    """
    config = session.config
    most = most_trials(session.sources.space, config.baselines)
    if config.trials >= 2 * most:
        return session
    print(
        f"trials: the baselines alone take up to {most}, so the limit of {config.trials} is raised to {2 * most}, "
        "which leaves as many to the search (with fewer `baselines` it takes fewer)",
        file=sys.stderr,
    )
    return replace(session, config=config.model_copy(update={"trials": 2 * most}))


def _with_gradients_if_they_fit(session: Session, runtime: Runtime, choice: Choice) -> tuple[Choice, Planned, str]:
    """(the sampler, how memory is used, why there are no gradients although the tagger can be differentiated)."""
    if not choice.follows_gradients:
        return choice, plan_memory(session, runtime, gradients=False), ""
    try:
        return choice, plan_memory(session, runtime, gradients=True), ""
    except NoRoom as error:
        if session.config.method != "auto" or session.config.memory is not None:
            raise
        choice = choose_method(session, str(error))
        return choice, plan_memory(session, runtime, gradients=False), str(error)


def _search(
    session: Session,
    runtime: Runtime,
    plan: _Plan,
    study: Study,
    run: Run,
    interrupt: Interrupt,
    watch: SourceWatch,
) -> dict[str, Any]:
    config, sources, exam = session.config, session.sources, session.exam
    baselines = baselines_of(sources.space, sources.base.name, config.baselines)
    progress = SearchProgress(config.trials, config.time_limit)
    # What `bayes` comes to depends on the limit of trials, which may change between sittings. The study keeps it.
    method = study.noted("method") or plan.choice.method
    sampler_named(method)  # the study may have begun with a sampler that is not registered here
    study.note("method", method)
    _say_beginning(session, plan, method, study, run, progress)

    settings = search_settings(session, method)
    interrupt.ends_well = settings.ends_well(study.records())

    def start(number: int) -> None:
        interrupt.doing = f"trial {number}"
        progress.start(f"trial {number}")

    def finished(record: TrialRecord, records: Sequence[TrialRecord]) -> None:
        interrupt.ends_well = settings.ends_well(records)
        progress.trial(record, records)

    reason = search(
        watch.around(runtime.objective),
        study,
        settings,
        take_step=watch.around(plan.memory.steps) if plan.memory.steps else None,
        pruned=watch.around(runtime.pruned_objective) if config.pruning else None,
        interrupted=interrupt,
        report=progress.drawn,
        on_start=start,
        on_trial=finished,
        say=progress.say,
    )
    interrupt.ended()
    if reason == "interrupted":
        interrupt.stop_if_asked()
    progress.say(f"search ended ({reason}); choosing the winner on fresh prompts")
    study.note("stopped_because", reason)
    interrupt.doing = "this image batch"
    records = study.records()
    evaluate = FinalEvaluation(runtime, run, progress, interrupt, watch.check)
    selection = select_winner(
        records,
        (*baselines, *outcomes(sources.space, sources.base.name, config.baselines, records)),
        evaluate,
        thresholds=exam.thresholds,
        category_of=exam.vocabulary.category,
        floors=exam.floors,
        name=run.study_name(config),
        stopped_because=reason,
        say=progress.say,
        expect=evaluate.expect,
    )
    selection.result.update(spent_on(records, run.scores), memory=plan.memory.plan.as_json)
    selection.result["searches"] = searches_of(records, settings.searches if settings.adam is not None else 1)
    selection.result["importance"] = _importance(session, study, selection.winner.number)
    study.note("finalists", [finalist["trial"] for finalist in selection.result["finalists"]])
    study.note("winner", selection.winner.number)  # which need not be the best on the search prompts
    study.note("recommended", selection.result["recommended"])
    interrupt.stop_if_asked()
    interrupt.doing = "writing the results"
    watch.check()
    check_sources(study.identity, session.sources, run.study_name(config))
    write_outputs(session, run, study.identity, method, records, selection)
    return selection.result


def _importance(session: Session, study: Study, winner: int) -> dict[str, Any] | None:
    """The importance map of the steps that led to the trial `winner`; None if there are no steps, or too few."""
    gains = study.gains_until(winner)
    if gains is None or any(len(own) < FEWEST_STEPS for own in gains):
        return None
    sources = session.sources
    return importance(gains, sources.space, rows_for_reading(sources.layers, sources.block_names))


def _say_beginning(
    session: Session, plan: _Plan, method: str, study: Study, run: Run, progress: SearchProgress
) -> None:
    """Says which method searches, why, and how much there is to do."""
    sources, prompts = session.sources, len(session.exam.prompts["search"])
    if plan.choice.why:
        why = f"as {plan.choice.why}" if method == plan.choice.method else "as it began"
        progress.say(f"method: {method}, {why}")
    count = session.config.gradient.searches if plan.choice.follows_gradients else 1
    several = f" in {count} searches" if count > 1 else ""
    progress.say(
        f"{run.name}: {len(sources.space.layers)} layers x {len(sources.donors)} donors, "
        f"{sources.space.size} weights by {method}{several}, {prompts} prompts a trial, {session.device}; "
        f"{len(study.records())} trials done"
    )
    most = most_trials(sources.space, session.config.baselines)
    progress.say(f"baselines take at most {most} trials, {most * prompts} images")
    for remark in session.exam.remarks():
        progress.say(remark)
    for line in plan.memory.plan.lines:
        progress.say(line)


def _open(session: Session, run: Run, identity: Mapping[str, str], *, new: bool, create: bool) -> Study:
    """The run's study. A folder made for a study that then cannot be opened is removed again.

    The configuration is written last. So a folder that holds one has a study, however the search that made it ended.
    """
    config, sources = session.config, session.sources
    storage, name = run.storage(config), run.study_name(config)
    baselines = baselines_of(sources.space, sources.base.name, config.baselines)
    try:
        study = open_study(
            storage,
            name,
            sources.space,
            identity=identity,
            baselines=baselines,
            create=create,
            artifacts=Artifacts(run.artifacts),
        )
    except InputError:
        if new:
            shutil.rmtree(run.folder)
        raise
    run.create(config)
    return study
