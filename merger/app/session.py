"""Everything that a configuration names, opened and checked before a model is loaded or a file is written.

Most bad input shows here, within a second: in headers, taggers and vocabulary. `merger.app.runtime` then loads the
models.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmark.errors import first_line
from benchmark.writing import there
from merger.app.exam import Exam, open_exam
from merger.app.source_paths import local
from merger.app.sources import BlendSources, open_sources
from merger.checkpoints.components import check_overrides
from merger.config.config import Config
from merger.errors import ConfigError, ConfigProblems
from merger.scoring.objective import TAGGER
from merger.search.registry import CHOOSERS, sampler_named


@dataclass(frozen=True)
class Session:
    """A search's configuration (hub ids replaced by folders), its sources and its exam. device: torch's name for it."""

    config: Config
    sources: BlendSources
    exam: Exam
    device: str


def open_session(config: Config) -> Session:
    """Opens and checks all that `config` names. Raises `InputError` in one line."""
    _check_exam_is_there(config)
    config = local(config)
    device = _device(config.device)
    check_overrides(vae=config.vae, text_encoders_from=config.text_encoders_from)
    sources = open_sources(config)
    exam = open_exam(config, device)
    tagger = exam.taggers[TAGGER]
    named = None if config.method in CHOOSERS else sampler_named(config.method)
    if named and named.needs_gradients and not hasattr(tagger, "logits"):
        raise ConfigError(
            f"method: the tagger {tagger.name} cannot be differentiated, so there is no gradient to follow. "
            "Use a transformers tagger, a WD tagger's PyTorch weights (kind: wd-timm), or another method."
        )
    return Session(config, sources, exam, device)


def _check_exam_is_there(config: Config) -> None:
    """Raises `ConfigError`, with a line for each, if a tagger or the vocabulary is not where it should be.

    Loading a tagger takes long, so a mistyped judge must not show only after the tagger is loaded.
    """
    paths = {"tagger": config.tagger.path, "judge": config.judge and config.judge.path}
    lines = [f"{key}: {path}: there is no such folder" for key, path in paths.items() if path and not there(path)]
    vocabulary = config.vocabulary.path
    if vocabulary and not there(vocabulary):
        lines.append(f"vocabulary: {vocabulary}: there is no such file")
    if lines:
        raise ConfigProblems(lines)


def _device(named: str) -> str:
    if named == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=named)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device: '{named}' cannot be used here ({first_line(error)})") from None
    return named
