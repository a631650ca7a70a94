"""Trials as checkpoint files that record the score they had, and the score of such a file as it lies on disk."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmark.errors import first_line
from benchmark.evaluate.runner import evaluate
from benchmark.prompts.prompt_set import fingerprint
from merger.app.identity import search_prompts_fingerprint, tagger_fingerprint
from merger.app.runs import Run
from merger.app.runtime import load_file
from merger.app.session import open_session
from merger.app.sources import BlendSources
from merger.errors import CheckpointError, StudyError
from merger.export.forms import AS_IT_IS, ExportOptions, export_as
from merger.scoring.objective import TAGGER
from merger.search.trials import TrialRecord

SCORE_KEY = "layermerge.score"
"""The metadata key under which an exported blend records the score of its trial."""

_NUMBERS = ("accuracy", "accuracy_stderr", "probability")
_RECORDED = {*_NUMBERS, "dtype", "prompts", "tagger"}


def export_trial(
    sources: BlendSources,
    trial: TrialRecord,
    output: Path,
    how: ExportOptions = AS_IT_IS,
    *,
    identity: Mapping[str, str],
) -> Path:
    """Writes a trial's blend as a checkpoint with its recipe and, if it was scored on all search prompts, its score.

    identity: the study's, which names the prompts and the tagger of the score. Neither is opened.
    """
    score = {
        "trial": trial.number,
        "accuracy": trial.score.accuracy,
        "accuracy_stderr": trial.score.accuracy_stderr,
        "probability": trial.score.probability,
        "dtype": how.dtype or "base",
        "prompts": search_prompts_fingerprint(identity),
        "tagger": tagger_fingerprint(identity),
    }
    return export_as(
        sources.recipe(trial.weights),
        output,
        how,
        base=sources.base,
        donors=sources.donors,
        extra_metadata={SCORE_KEY: json.dumps(score)} if trial.whole else {},
    )


def read_score(file: Path, text: str) -> dict[str, Any]:
    """The score that a file's metadata record, from its JSON. Raises CheckpointError, naming `file`, if it is none."""
    try:
        recorded = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: its recorded score cannot be read ({first_line(error)}).") from None
    if not isinstance(recorded, dict):
        raise CheckpointError(f"{file}: its recorded score is no table.")
    if missing := _RECORDED - recorded.keys():
        raise CheckpointError(f"{file}: its recorded score lacks '{min(missing)}'")
    for key in _NUMBERS:
        if not isinstance(recorded[key], int | float) or not math.isfinite(recorded[key]):
            raise CheckpointError(f"{file}: its recorded score has no number for '{key}'.")
    return recorded


def score_file(file: Path, run: Run, recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Scores a checkpoint file as loaded from disk on its run's search prompts, and compares with the recorded score.

    recorded: as `read_score` gives it.

    In the base's own dtype a file holds the very weights that were scored, so only kernel rounding may differ (`same`
    allows 0.005). In another dtype the score may differ by its standard error. Raises `StudyError` if the run's prompts
    or tagger are no longer those of the record.
    """
    session = open_session(run.config())
    exam = session.exam
    if recorded.get("prompts") != fingerprint(exam.prompts["search"]):
        raise StudyError(f"{file}: its score was taken on other prompts than those of {run.folder}")
    if recorded.get("tagger") != exam.taggers[TAGGER].fingerprint:
        raise StudyError(f"{file}: its score was taken with another tagger than that of {run.folder}")
    evaluation = evaluate(load_file(session, file), {TAGGER: exam.taggers[TAGGER]}, exam.prompts["search"])
    score = exam.metric.score(evaluation)
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
