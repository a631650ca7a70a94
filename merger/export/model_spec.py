"""What an exported file says of itself, in the formats that other programs read.

ModelSpec 1.0.0 (https://github.com/Stability-AI/ModelSpec): `modelspec.*`. Automatic1111's merger: `sd_merge_recipe`
and `sd_merge_models`, JSON in text (`run_modelmerger` in its modules/extras.py). Pure but for `legacy_hash`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol

from merger.checkpoints.families import family_named
from merger.export.recipe import Recipe
from merger.weights import as_json, by_channel

HASH_KEY = "modelspec.hash_sha256"
UNKNOWN_HASH = "0x" + "0" * 64  # as long as every other, so that the true one can take its place
_PREDICTIONS = ("epsilon", "v")  # all that ModelSpec has for Stable Diffusion

_HOLDS = (
    "modelspec.architecture",
    "modelspec.resolution",
    "modelspec.prediction_type",
    "modelspec.timestep_range",
    "modelspec.encoder_layer",
    "modelspec.preprocessor",
)
"""What a base's file says of its kind of network and of how it is used, which is true of a blend too.

Everything else that it says is true of the base alone: who made it and under which licence, what triggers it, how it
looks, how it was trained (`ss_*`), its hashes (`sshs_*`).
"""


class Described(Protocol):
    """What metadata tell of a source; `merger.checkpoints.checkpoint.Checkpoint` has it."""

    @property
    def name(self) -> str:
        """What the weights call it."""

    @property
    def path(self) -> Path:
        """Where it lies."""

    @property
    def family(self) -> str:
        """The name of its record in `merger.checkpoints.families`."""

    @property
    def layout(self) -> str:
        """How its tensors are named."""

    @property
    def prediction(self) -> str:
        """What its denoiser predicts."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """What its file says."""


def legacy_hash(path: Path) -> str | None:
    """Automatic1111's old hash of a model file; None for a folder.

    The first 8 digits of the SHA-256 of 64 KiB from 1 MiB on, or of what the file has there (`model_hash` in its
    modules/sd_models.py). Raises OSError if the file cannot be read.
    """
    if not path.is_file():
        return None
    with path.open("rb") as file:
        file.seek(0x100000)
        return hashlib.sha256(file.read(0x10000)).hexdigest()[:8]


def metadata_of(
    recipe: Recipe,
    base: Described,
    donors: Sequence[Described],
    title: str,
    when: datetime | None = None,
    *,
    own_keys: bool = True,
) -> dict[str, str]:
    """The metadata of a blend: what still holds of the base's, ModelSpec's fields and Automatic1111's.

    when: the time it is made; now by default. own_keys: whether the file has the base's keys; otherwise it has
    diffusers' names. `modelspec.hash_sha256` is a placeholder for the hash of all tensor bytes, which is known once
    they are written.
    """
    family = family_named(base.family)
    date = (when or datetime.now(UTC)).isoformat(timespec="seconds")
    used = [base, *(donor for donor in donors if donor.name in {each.name for each in recipe.used})]
    # what is empty is left out, and what the base's own file says comes before what its family does
    usual = {
        "modelspec.architecture": family.architecture_of(base.prediction),
        "modelspec.resolution": family.resolution_of(base.prediction),
    }
    kept = {key: base.metadata[key] for key in _HOLDS if key in base.metadata}
    original = own_keys and base.layout == "original"
    titles = [each.metadata.get("modelspec.title", each.name) for each in used]
    spec = {
        **{key: value for key, value in usual.items() if value},
        **kept,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.implementation": family.implementation if original else "diffusers",
        "modelspec.title": title,
        "modelspec.description": f"A blend of {', '.join(each.name for each in used)}, made by layermerge.",
        "modelspec.date": date,
        "modelspec.merged_from": ", ".join(" ".join(title.replace(",", " ").split()) for title in titles),
        HASH_KEY: UNKNOWN_HASH,
    }
    if base.prediction in _PREDICTIONS:
        spec["modelspec.prediction_type"] = base.prediction
    return {"format": "pt"} | spec | _automatic1111(recipe, used, title)


def _automatic1111(recipe: Recipe, used: Sequence[Described], title: str) -> dict[str, str]:
    hashes = [recipe.base.sha256, *(source.sha256 for source in recipe.used)]
    ordinals = ("primary", "secondary", "tertiary")
    said: dict[str, Any] = {"type": "layermerge"}
    said |= {f"{ordinal}_model_hash": each for ordinal, each in zip_longest(ordinals, hashes[: len(ordinals)])}
    said |= {
        "interp_method": "weights per layer",
        "custom_name": title,
        "granularity": recipe.granularity if isinstance(recipe.granularity, str) else dict(recipe.granularity),
        "weights": "by channel, in a file of their own" if by_channel(recipe.weights) else as_json(recipe.weights),
    }
    if recipe.granularity == "block":
        said["block_names"] = recipe.block_names
    models: dict[str, Any] = {}
    for each, sha256 in zip(used, hashes, strict=True):
        models |= _table(each.metadata.get("sd_merge_models"))
        own = _table(each.metadata.get("sd_merge_recipe")) or None
        models[sha256] = {"name": each.path.name, "legacy_hash": legacy_hash(each.path), "sd_merge_recipe": own}
    return {"sd_merge_recipe": json.dumps(said), "sd_merge_models": json.dumps(models)}


def _table(text: str | None) -> dict[str, Any]:
    """A JSON table out of a file's metadata; empty for anything else."""
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
