"""What must be the same for a search to be continued: all that decides a score or a proposal, by name."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from benchmark.hashing import files_fingerprint
from benchmark.prompts.prompt_set import fingerprint

if TYPE_CHECKING:
    from merger.app.session import Session

_AS_THEY_ARE = (
    "granularity",
    "baselines",
    "method",
    "objective",
    "steps",
    "sampler",
    "guidance",
    "size",
    "dtype",
    "seed",
)
"""Settings that count as they were written."""


def identity_of(session: Session) -> dict[str, str]:
    """{name: text, JSON or hash}. Hashes every source once. What came later is named only where it is used."""
    config = session.config
    named: dict[str, Any] = {f"source {session.base.name}": session.base.sha256}
    named |= {f"source {donor.name}": donor.sha256 for donor in session.donors}
    named |= {role: f"{tagger.name} {tagger.fingerprint}" for role, tagger in session.taggers.items()}
    if config.pipeline is not None:
        files = sorted(file for file in config.pipeline.rglob("*") if file.is_file())
        named["pipeline"] = files_fingerprint(files)
    for key in ("vae", "text_encoders_from"):
        if (source := getattr(config, key)) is not None:
            named[key] = files_fingerprint(sorted(source.rglob("*.safetensors")) if source.is_dir() else [source])
    if config.blends_text:
        named["components"] = config.components
    if session.chosen.method == "gradient":
        named["polish"] = config.polish
        named["gradient"] = config.gradient.model_dump()
    if config.coarse_to_fine:
        named["coarse_to_fine"] = dict(config.coarse_to_fine)
    named |= {key: getattr(config, key) for key in _AS_THEY_ARE}
    if config.clip_skip != 1:
        named["clip_skip"] = config.clip_skip
    named["negative prompt"] = config.negative_prompt
    named |= {f"threshold of the {role}": session.thresholds[role] for role in session.taggers}
    named["weights searched"] = [asdict(parameter) for parameter in session.space.parameters]
    named["racing"] = config.racing
    named["frozen"] = dict(session.space.fixed)
    named |= {f"number of {which} prompts": len(session.prompts[which]) for which in session.prompts}
    named |= {f"{which} prompts": fingerprint(session.prompts[which]) for which in session.prompts}
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in named.items()}
