"""A search from its first trial to its last page: the study's trials, the honest end, the file, the report."""

from __future__ import annotations

import math
import os
import shutil
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any, cast

import torch

from benchmark.evaluate.runner import Evaluation
from merger.app.runs import Run
from merger.app.scored_files import export_trial
from merger.app.session import Loaded, Session
from merger.blend.sources import SHARE, free_memory
from merger.errors import InputError, NoRoom, StudyError
from merger.export.forms import ExportOptions, is_folder
from merger.report.progress import Progress
from merger.report.report import write_report, write_samples
from merger.scoring.gradients.gradients import BlendGradients
from merger.scoring.gradients.memory import StepMemory, step_memory
from merger.scoring.gradients.steps import FreshSteps
from merger.scoring.objective import TAGGER, evaluate_blend
from merger.scoring.reward_hacking import THUMBNAILS, Thumbnails, changed_taggers
from merger.scoring.selection import SHOWN, Cache, Ending, conclude
from merger.search.baselines import baselines_of, most_trials, outcomes
from merger.search.samplers import check_method
from merger.search.space import Weights
from merger.search.storage import refusals_said
from merger.search.study import Study, open_study, search
from merger.search.trials import TrialRecord


class Interrupt:
    """Whether the user asked for an end: the first Ctrl-C is noted and said, the second stops at once."""

    def __init__(self) -> None:
        self.asked = False
        self.doing = ""

    def __call__(self) -> bool:
        """Whether to end as soon as that loses nothing."""
        return self.asked

    def drop(self) -> None:
        """Ends what can be done again at no loss of its own."""
        if self.asked:
            raise KeyboardInterrupt

    @contextmanager
    def listening(self) -> Iterator[Interrupt]:
        """Until the end of the block, the first Ctrl-C only sets `asked`."""
        before = signal.signal(signal.SIGINT, self._handle)
        try:
            yield self
        finally:
            signal.signal(signal.SIGINT, before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        said = f"\nstopping after {self.doing or 'loading'}; Ctrl-C again stops at once\n"
        os.write(2, said.encode())  # a print could break into one that is under way


def run_search(session: Session, run: Run, interrupt: Interrupt) -> dict[str, Any]:
    """Begins or continues the search in `run`, to its end. Returns the result that is also written.

    Raises `InputError` before anything is written, or `StudyError` where `run` was begun differently; and
    `KeyboardInterrupt` when asked to stop, with all finished trials kept.
    """
    _check_before(session, run)
    identity = session.identity()
    loaded = session.load()
    interrupt.drop()
    session, climb = _with_room(session, loaded)
    interrupt.drop()
    new = not run.exists()
    run.make_folder()
    kept = f"What is finished is kept: mend that, then `merger resume {run.folder}`."
    with run.lock(), refusals_said(run.storage(session.config), kept):
        study = _open(session, run, identity, new)
        session = _as_begun(session, run.name, study.noted("method"))
        return _search(session, loaded, climb if session.chosen.method == "gradient" else None, study, run, interrupt)


@dataclass(frozen=True)
class _GradientSearch:
    """What takes the steps of a climb, and what each will take in memory."""

    gradient_steps: FreshSteps
    memory: StepMemory


def _with_room(session: Session, loaded: Loaded) -> tuple[Session, _GradientSearch | None]:
    """How to climb in the memory there is: with one copy of the gradients, else streamed, without any.

    Where that has no room either, `auto` does without gradients, as the session returned says; asked for by name, gradients
    are tried.
    """
    prompts, by_name = session.prompts["search"], session.config.method != "auto"
    free = SHARE * free_memory(torch.device(session.device))  # the rest is for what the estimate does not see
    ways = [(False, free)] if session.config.blends_text else [(False, free), (True, free)]
    refusal = ""
    for streamed, room in [*ways, (ways[-1][0], math.inf)] if by_name else ways:
        gradient_steps = session.gradient_steps(loaded, streamed=streamed)
        if gradient_steps is None:
            return session, None
        try:
            memory = step_memory(cast(BlendGradients, gradient_steps.gradients), prompts[0], len(prompts), room)
        except NoRoom as error:
            refusal = str(error)
        else:
            return session, _GradientSearch(gradient_steps, memory)
    if by_name:
        raise NoRoom(refusal)
    return replace(session, no_gradients=refusal), None


def _as_begun(session: Session, name: str, begun: str | None) -> Session:
    """The session that goes on as the search was `begun`, by gradients or without, whatever room there is now."""
    if begun is None or (begun == "gradient") == (session.chosen.method == "gradient"):
        return session
    if begun == "gradient":
        raise StudyError(f"'{name}' was begun by gradients, and now {session.no_gradients}: go on where there is more")
    return replace(session, no_gradients="it was begun without gradients")


def _search(
    session: Session, loaded: Loaded, climb: _GradientSearch | None, study: Study, run: Run, interrupt: Interrupt
) -> dict[str, Any]:
    config = session.config
    baselines = baselines_of(session.space, session.base.name, config.baselines)
    progress = Progress(config.trials, config.time_limit)
    free = len(session.space.parameters)
    chosen = session.chosen
    # what `bayes` comes to depends on the limit of trials, which may change between sittings: it is kept
    method = study.noted("method") or chosen.method
    check_method(method)
    study.note("method", method)
    if chosen.why:
        progress.say(f"method: {method}" + (f", as {chosen.why}" if method == chosen.method else ", as it was begun"))
    progress.say(
        f"{run.name}: {len(session.space.layers)} layers x {len(session.donors)} donors, {free} weights by "
        f"{method}, {len(session.prompts['search'])} prompts a trial, {session.device}; "
        f"{len(study.records())} trials done"
    )
    most = most_trials(session.space, config.baselines)
    progress.say(f"baselines take at most {most} trials, {most * len(session.prompts['search'])} images")

    if climb is not None:
        progress.say(str(climb.memory))

    def start(number: int) -> None:
        interrupt.doing = f"trial {number}"
        progress.start(f"trial {number}")

    reason = search(
        session.objective(loaded),
        study,
        replace(session.search_settings, method=method),
        baselines=len(baselines),
        climb=climb.gradient_steps if climb else None,
        race=session.racer(loaded),
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
    ending = conclude(
        records,
        (*baselines, *outcomes(session.space, session.base.name, config.baselines, records)),
        _evaluator(session, loaded, run, progress, interrupt),
        thresholds=session.thresholds,
        category_of=session.vocabulary.category,
        name=run.name,
        stopped_because=reason,
        say=progress.say,
    )
    _write(session, run, records, ending)
    return ending.result


def _write(session: Session, run: Run, records: list[TrialRecord], ending: Ending) -> None:
    """The files a finished search leaves; the result last, so that it never speaks of files that are not there."""
    best = run.folder / ("best" if is_folder(session.base) else "best.safetensors")
    export_trial(session, ending.winner, best, ExportOptions(replace_folder=True))
    prompts = session.prompts["test"][:SHOWN]
    # the models are in the order of their accuracy; the best parent may be the base, which is shown anyway
    donor = next(model["name"] for model in ending.result["models"] if model["role"] == "donor")
    models = {
        "base": ending.tests[session.base.name],
        "best donor": ending.tests[donor],
        "winner": ending.tests[f"trial {ending.winner.number}"],
    }
    write_samples(run.samples, models)
    write_report(run.report, session, records, ending, models, prompts)
    run.write_result(ending.result)


def _check_before(session: Session, run: Run) -> None:
    """What would otherwise fail only after the folder is made, or after hours."""
    check_method(session.chosen.method)
    if run.folder.exists() and not run.exists() and any(run.folder.iterdir()):
        raise StudyError(f"{run.folder}: is there already and is no run; choose another --name")


def _open(session: Session, run: Run, identity: Mapping[str, str], new: bool) -> Study:
    """The run's study; a folder made for a study that then cannot be opened does not stay."""
    config = session.config
    baselines = baselines_of(session.space, session.base.name, config.baselines)
    if new:
        run.create(config)
    try:
        study = open_study(run.storage(config), run.name, session.space, identity=identity, baselines=baselines)
    except InputError:
        if new:
            shutil.rmtree(run.folder)
        raise
    run.create(config)
    return study


def _evaluator(session: Session, loaded: Loaded, run: Run, progress: Progress, interrupt: Interrupt) -> Any:
    """How the ending scores a blend on a prompt set: kept on disk, said aloud, dropped when the user asks."""
    # where the winner is chosen, its images are looked at twice: as they are, and changed a little
    taggers = {"test": session.taggers, "validation": {**session.taggers, **changed_taggers(session.taggers[TAGGER])}}
    caches = {
        which: Cache(run.scores, session.prompts, {name: tagger.fingerprint for name, tagger in asked.items()})
        for which, asked in taggers.items()
    }

    def evaluate_once(which: str, weights: Weights) -> Evaluation:
        kept = caches[which].get(which, weights)
        if kept is not None:
            return kept
        progress.start(f"{which} prompts")

        def report(images: int, value: float) -> None:
            interrupt.drop()
            progress.drawn(images, value)

        evaluation = evaluate_blend(
            loaded.live,
            loaded.generator,
            taggers[which],
            session.prompts[which],
            weights,
            report=report,
            keep_images=SHOWN if which == "test" else 0,
            extractors={THUMBNAILS: Thumbnails()} if which == "validation" else None,
        )
        caches[which].put(which, weights, evaluation)
        accuracy = evaluation.accuracy(TAGGER, session.thresholds[TAGGER])
        progress.say(f"{which} prompts: {accuracy.value:.4f} ± {accuracy.stderr:.4f}")
        return evaluation

    return evaluate_once
