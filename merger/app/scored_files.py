"""Trials as checkpoint files that carry the score they had, and the score of such a file as it lies on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmark.evaluate.runner import evaluate
from benchmark.prompts.prompt_set import fingerprint
from merger.app.runs import Run
from merger.app.session import Session, open_session
from merger.errors import CheckpointError, StudyError
from merger.export.forms import AS_IT_IS, ExportOptions, export_as
from merger.scoring.objective import TAGGER
from merger.search.trials import TrialRecord

SCORE_KEY = "layermerge.score"
"""The metadata key under which an exported blend carries the score its trial had."""

_RECORDED = {"accuracy", "accuracy_stderr", "probability", "dtype", "prompts", "tagger"}


def export_trial(session: Session, trial: TrialRecord, output: Path, how: ExportOptions = AS_IT_IS) -> Path:
    """Writes a trial's blend as a checkpoint that carries its recipe and, where it was scored whole, its score."""
    score = {
        "trial": trial.number,
        "accuracy": trial.score.accuracy,
        "accuracy_stderr": trial.score.accuracy_stderr,
        "probability": trial.score.probability,
        "dtype": how.dtype or "base",
        "prompts": fingerprint(session.prompts["search"]),
        "tagger": session.taggers[TAGGER].fingerprint,
    }
    return export_as(
        session.recipe(trial.weights),
        output,
        how,
        base=session.base,
        donors=session.donors,
        extra_metadata={SCORE_KEY: json.dumps(score)} if trial.whole else {},
    )


def score_file(file: Path, run: Run, recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Scores a checkpoint file as loaded from disk on its run's search prompts, and compares with what is recorded.

    In the base's own dtype a file holds the very weights that were scored, so only kernel rounding may differ (`same`
    allows 0.005); in another dtype the score may move by its standard error. Raises `StudyError` where the run's
    prompts or tagger are no longer those of the record.
    """
    if missing := _RECORDED - recorded.keys():
        raise CheckpointError(f"{file}: its recorded score lacks '{min(missing)}'")
    session = open_session(run.config())
    if recorded.get("prompts") != fingerprint(session.prompts["search"]):
        raise StudyError(f"{file}: its score was taken on other prompts than those of {run.folder}")
    if recorded.get("tagger") != session.taggers[TAGGER].fingerprint:
        raise StudyError(f"{file}: its score was taken with another tagger than that of {run.folder}")
    generator = session.load_file(file)
    evaluation = evaluate(generator, {TAGGER: session.taggers[TAGGER]}, session.prompts["search"])
    score = session.metric.score(evaluation)
    allowed = 0.005 if recorded["dtype"] == "base" else max(0.005, recorded["accuracy_stderr"])
    moved = (score.accuracy - recorded["accuracy"], score.probability - recorded["probability"])
    return {
        "same": all(abs(difference) <= allowed for difference in moved),
        "recorded_accuracy": recorded["accuracy"],
        "accuracy": score.accuracy,
        "recorded_probability": recorded["probability"],
        "probability": score.probability,
        "difference": moved[0],
    }
