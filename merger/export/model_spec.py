"""What an exported file says of itself, in the formats that other programs read.

ModelSpec 1.0 (https://github.com/Stability-AI/ModelSpec): `modelspec.*`. Automatic1111's merger: `sd_merge_recipe` and
`sd_merge_models`, JSON in text. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

from merger.checkpoints.families import family_named
from merger.export.recipe import Recipe

HASH_KEY = "modelspec.hash_sha256"
UNKNOWN_HASH = "0x" + "0" * 64  # as long as every other, so that the true one can take its place
_PREDICTIONS = ("epsilon", "v")  # all that ModelSpec has


class Described(Protocol):
    """What metadata tell of a source; `merger.checkpoints.checkpoint.Checkpoint` has it."""

    @property
    def name(self) -> str:
        """What the weights call it."""

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


def metadata_of(
    recipe: Recipe, base: Described, donors: Sequence[Described], title: str, when: datetime | None = None
) -> dict[str, str]:
    """The metadata of a blend: ModelSpec's fields and Automatic1111's. when: the time it is made; now by default.

    `modelspec.hash_sha256` is a placeholder for the hash of all tensor bytes, which is known once they are written.
    """
    date = (when or datetime.now(UTC)).isoformat(timespec="seconds")
    used = [base, *(donor for donor in donors if donor.name in {each.name for each in recipe.used})]
    own = base.metadata.get("modelspec.architecture")
    spec = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": own or family_named(base.family).architecture_of(base.prediction),
        "modelspec.implementation": "sgm" if base.layout == "original" else "diffusers",
        "modelspec.title": title,
        "modelspec.description": f"A blend of {', '.join(each.name for each in used)}, made by layermerge.",
        "modelspec.date": date,
        "modelspec.merged_from": ", ".join(each.metadata.get("modelspec.title", each.name) for each in used),
        HASH_KEY: UNKNOWN_HASH,
    }
    if base.prediction in _PREDICTIONS:
        spec["modelspec.prediction_type"] = base.prediction
    return spec | _automatic1111(recipe, used, title)


def _automatic1111(recipe: Recipe, used: Sequence[Described], title: str) -> dict[str, str]:
    hashes = [recipe.base.sha256, *(source.sha256 for source in recipe.used)]
    ordinals = ("primary", "secondary", "tertiary")
    said: dict[str, Any] = {"type": "layermerge"}
    said |= {f"{ordinal}_model_hash": each for ordinal, each in zip(ordinals, hashes, strict=False)}
    said |= {
        "interp_method": "weights per layer",
        "custom_name": title,
        "granularity": recipe.granularity if isinstance(recipe.granularity, str) else dict(recipe.granularity),
        "weights": {layer: dict(row) for layer, row in recipe.weights.items()},
    }
    if recipe.granularity == "block":
        said["block_names"] = recipe.block_names
    models: dict[str, Any] = {}
    for each, sha256 in zip(used, hashes, strict=True):
        models |= _table(each.metadata.get("sd_merge_models"))
        own = _table(each.metadata.get("sd_merge_recipe")) or None
        models[sha256] = {"name": each.name, "legacy_hash": sha256[:8], "sd_merge_recipe": own}
    return {"sd_merge_recipe": json.dumps(said), "sd_merge_models": json.dumps(models)}


def _table(text: str | None) -> dict[str, Any]:
    """A JSON table out of a file's metadata; empty for anything else."""
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
