"""A search's identity: everything that decides a score or a proposal, by name. It must be the same in every sitting.

A setting is part of the identity unless it is named in `MAY_CHANGE`. So a new key of the configuration counts from the
day it is added, until someone decides otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmark.hashing import files_fingerprint
from benchmark.prompts.prompt_set import fingerprint
from merger.app.exam import Exam
from merger.app.previous_version import GRADIENT_THEN
from merger.app.sources import BlendSources
from merger.blend.prepared import minus_of, steps_of
from merger.checkpoints.checkpoint import Checkpoint
from merger.config.config import Config
from merger.config.parts import Settings
from merger.errors import StudyError
from merger.layers.components import DENOISER
from merger.layers.unet import EARLIER
from merger.scoring.objective import TAGGER
from merger.search.sampler_choice import Choice
from merger.search.space import Parameter
from merger.search.study import describe_difference

MAY_CHANGE = {
    "name",  # another name is another study, which has an identity of its own
    "allow_pickle",  # decides whether a file may be read, not what is in it
    "allow_mixed_prediction",  # decides whether donors may be used, not what they are
    "trials",  # a limit: earlier trials do not depend on it
    "patience",  # a limit
    "time_limit",  # a limit
    "storage",  # where the study lies
    "batch_size",  # an image does not depend on its batch, except for rounding
    "device",  # devices differ only in rounding
    "memory",  # ways of computing differ only in rounding
    "threads",  # numbers of threads differ only in rounding
    "gradient.steps",  # more may be taken; the learning rate then follows the longer schedule
    "gradient.searches",  # more may be made; those before them stay as they are, and so do averages of fewer
}
"""Settings that may differ between two sittings of the same search."""

_PROMPTS = ("search prompts", "validation prompts", "test prompts")

BY_CONTENT = {
    "base": ("source BASE",),
    "base_name": ("source BASE",),
    "donors.path": ("source DONOR",),
    "donors.name": ("source DONOR", "weights searched"),
    "donors.bounds": ("weights searched",),
    "donors.minus": ("source DONOR",),
    "donors.prepare": ("source DONOR",),
    "pipeline": ("pipeline",),
    "vae": ("vae",),
    "text_encoders_from": ("text_encoders_from",),
    "components": ("components",),
    "granularity": ("granularity",),
    "block_names": ("block names",),
    "bounds": ("weights searched",),
    "frozen": ("frozen",),
    "tied": ("weights searched",),
    "tagger.path": ("tagger",),
    "tagger.kind": ("tagger",),
    "tagger.threshold": ("threshold of the tagger",),
    "judge.path": ("judge",),
    "judge.kind": ("judge",),
    "judge.threshold": ("threshold of the judge",),
    "threshold": ("threshold of the tagger", "threshold of the judge"),
    "vocabulary.path": _PROMPTS,
    "vocabulary.top": _PROMPTS,
    "tags_per_prompt": _PROMPTS,
    "template": _PROMPTS,
    "distinct_prompts": ("validation prompts", "test prompts"),
    "prompts": ("search prompts", "number of search prompts"),
    "validation_prompts": ("validation prompts", "number of validation prompts"),
    "test_prompts": ("test prompts", "number of test prompts"),
    "negative_prompt": ("negative prompt",),
}
"""{setting: the parts of the identity that it decides}. These settings count by what they lead to: a file by its bytes,
wherever it lies; a vocabulary by the prompts that are made from it."""

_ALWAYS = ("baselines", "method", "objective", "steps", "sampler", "guidance", "size", "dtype", "seed", "pruning")
"""Settings that every stored identity names. All others are named only if they are not at their default, so that an
identity stored before such a setting existed still compares equal."""


def identity_of(config: Config, sources: BlendSources, exam: Exam, choice: Choice) -> dict[str, str]:
    """{name: text, JSON or hash} of a search. Hashes every source once.

    choice: the sampler. The settings of the gradient search count only for a sampler that follows gradients.
    """
    named: dict[str, Any] = {**identity_of_sources(sources)}
    named |= {role: f"{tagger.name} {tagger.fingerprint}" for role, tagger in exam.taggers.items()}
    named |= {f"threshold of the {role}": exam.thresholds[role] for role in exam.taggers}
    if config.pipeline is not None:
        named["pipeline"] = files_fingerprint(sorted(file for file in config.pipeline.rglob("*") if file.is_file()))
    named |= {key: _of_weights(path) for key in ("vae", "text_encoders_from") if (path := getattr(config, key))}
    named["weights searched"] = [_searched(parameter) for parameter in sources.space.parameters]
    named["frozen"] = dict(sources.space.fixed)
    named["negative prompt"] = config.negative_prompt
    for which, prompts in exam.prompts.items():
        named |= {f"number of {which} prompts": len(prompts), f"{which} prompts": fingerprint(prompts)}
    if choice.follows_gradients:
        named["gradient"] = {
            key: value
            for key, value in config.gradient.model_dump().items()
            # stored identities did not always name these: they are named only at other values than they then had
            if f"gradient.{key}" not in MAY_CHANGE and GRADIENT_THEN.get(key) != value
        }
    for key in _by_value():
        value = getattr(config, key)
        if key in _ALWAYS or value != Config.model_fields[key].get_default(call_default_factory=True):
            named[key] = value.model_dump() if isinstance(value, Settings) else value
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in named.items()}


def _searched(parameter: Parameter) -> dict[str, Any]:
    """A parameter without its width if that is 1, which earlier versions took for granted."""
    return {key: value for key, value in asdict(parameter).items() if key != "width" or value != 1}


def _by_value() -> list[str]:
    """The settings that count as they are written: all that are neither excepted nor counted by content above."""
    elsewhere = {key.partition(".")[0] for key in BY_CONTENT} | {"gradient"} | MAY_CHANGE
    return [key for key in Config.model_fields if key not in elsewhere]


def identity_of_sources(sources: BlendSources) -> dict[str, str]:
    """The part of an identity that decides which blend some weights are. Hashes every source once."""
    named = {f"source {source.name}": _source(source) for source in (sources.base, *sources.donors)}
    granularity = sources.granularity
    named["granularity"] = granularity if isinstance(granularity, str) else json.dumps(granularity)
    if granularity == "block" and sources.block_names != EARLIER:  # which earlier versions took for granted
        named["block names"] = sources.block_names
    if sources.components != (DENOISER,):  # which earlier versions took for granted
        named["components"] = json.dumps(sources.components)
    return named


def _source(source: Checkpoint) -> str:
    """A source's hash, with what its difference is taken from and how it is prepared."""
    minus, steps = minus_of(source), steps_of(source)
    said = [source.sha256, *([f"minus {minus.sha256}"] if minus else [])]
    return " ".join([*said, *(json.dumps(step.to_json()) for step in steps)])


def check_sources(stored: Mapping[str, str], sources: BlendSources, name: str) -> None:
    """Raises `StudyError` if the study `name`, whose identity is `stored`, began with other sources or layers."""
    now = identity_of_sources(sources)
    optional = ("components", "block names")
    before = {key: stored[key] for key in stored if key in now or key.startswith("source ") or key in optional}
    if differences := describe_difference(before, now):
        raise StudyError(f"'{name}' began differently, so its weights mean another blend: {'; '.join(differences)}")


def tagger_fingerprint(identity: Mapping[str, str]) -> str:
    """The fingerprint of the search's tagger, from the identity that was stored when the search began."""
    return identity[TAGGER].rpartition(" ")[2]


def search_prompts_fingerprint(identity: Mapping[str, str]) -> str:
    """The fingerprint of the search prompts, from the identity that was stored when the search began."""
    return identity["search prompts"]


def _of_weights(source: Path) -> str:
    """A hash of a file, or of all weight files in a folder."""
    return files_fingerprint(sorted(source.rglob("*.safetensors")) if source.is_dir() else [source])
