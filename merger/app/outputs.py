"""The files that a finished search leaves in its run's folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from merger.app.runs import Run
from merger.app.scored_files import export_trial
from merger.app.session import Session
from merger.export.forms import ExportOptions, is_folder
from merger.export.recipe_weights import beside
from merger.report.report import ReportInput, write_report, write_samples
from merger.scoring.objective import TAGGER
from merger.scoring.selection import SHOWN, Selection
from merger.search.trials import TrialRecord
from merger.weights import by_channel, means


def write_outputs(
    session: Session,
    run: Run,
    identity: Mapping[str, str],
    method: str,
    records: Sequence[TrialRecord],
    selection: Selection,
) -> None:
    """Writes checkpoint, samples, report and result; the result last, so that it never names files that are missing.

    identity: the study's. method: the sampler's name.
    """
    base = session.sources.base
    best = run.folder / ("best" if is_folder(base) else "best.safetensors")
    export_trial(session.sources, selection.winner, best, ExportOptions(replace_folder=True), identity=identity)
    if by_channel(selection.winner.weights):  # too many for a table, which has their means
        selection.result["winner"]["weights_file"] = beside(best).relative_to(run.folder).as_posix()
    # The models are sorted by accuracy. The best parent may be the base, which is shown anyway.
    donor = next(model["name"] for model in selection.result["models"] if model["role"] == "donor")
    samples = {
        "base": selection.tests[base.name],
        "best donor": selection.tests[donor],
        "winner": selection.tests[f"trial {selection.winner.number}"],
    }
    write_samples(run.samples, samples)
    exam = session.exam
    shown = ReportInput(
        result=selection.result,
        records=records,
        weights=means(selection.winner.weights),
        space=session.sources.space,
        base=base.name,
        samples=samples,
        sample_prompts=exam.prompts["test"][:SHOWN],
        threshold=exam.thresholds[TAGGER],
        objective=exam.metric.kind,
        search_prompts=len(exam.prompts["search"]),
        test_prompts=len(exam.prompts["test"]),
        settings=_settings(session, method),
    )
    write_report(run.report, shown)
    run.write_result(selection.result)


def _settings(session: Session, method: str) -> dict[str, str]:
    """The report's table of how the winner was made."""
    config, space = session.config, session.sources.space
    granularity = config.granularity if isinstance(config.granularity, str) else "own table"
    return {
        "base": str(config.base),
        "donors": ", ".join(space.donors),
        "granularity": f"{granularity}: {len(space.layers)} layers",
        **({"blended": "denoiser and text encoders"} if config.blends_text else {}),
        "method": f"{method}, {space.size} free weights",
        "tagger": f"{session.exam.taggers[TAGGER].name}, threshold {config.tagger_threshold:g}",
        "sampling": f"{config.steps} steps, guidance {config.guidance:g}, {config.size[0]} x {config.size[1]} pixels",
        "seed": str(config.seed),
    }
