"""What an exported file says of itself, for the programs that read such things.

ModelSpec 1.0 (https://github.com/Stability-AI/ModelSpec): `modelspec.*`. Automatic1111's merger: `sd_merge_recipe` and
`sd_merge_models`, JSON in text. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

from merger.export.recipe import Recipe

HASH_KEY = "modelspec.hash_sha256"
UNKNOWN_HASH = "0x" + "0" * 64  # as long as every other, so that the true one can take its place
_ARCHITECTURES = {
    "sd1": "stable-diffusion-v1",
    "sd2": "stable-diffusion-v2",
    "sdxl": "stable-diffusion-xl-v1-base",
    "sdxl-refiner": "stable-diffusion-xl-v1-refiner",
    "sd3": "stable-diffusion-3",
    "flux": "flux-1",
    "lumina2": "lumina-2",
    "zimage": "z-image",
    "qwenimage": "qwen-image",
}
_PREDICTIONS = {"epsilon": "epsilon", "v": "v"}


class Described(Protocol):
    """What is told of a source; `merger.checkpoints.checkpoint.Checkpoint` has it."""

    @property
    def name(self) -> str:
        """What the weights call it."""

    @property
    def family(self) -> str:
        """Which kind of model it is."""

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
    """The metadata of a blend: ModelSpec's fields and Automatic1111's. when: of its making; now by default.

    `modelspec.hash_sha256` is a place holder: the hash of all tensor bytes, to be put in when they are written.
    """
    date = (when or datetime.now(UTC)).isoformat(timespec="seconds")
    used = [base, *(donor for donor in donors if donor.name in {each.name for each in recipe.used})]
    own = base.metadata.get("modelspec.architecture")
    spec = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": own or architecture_of(base.family, base.prediction),
        "modelspec.implementation": "sgm" if base.layout == "original" else "diffusers",
        "modelspec.title": title,
        "modelspec.description": f"A blend of {', '.join(each.name for each in used)}, made by layermerge.",
        "modelspec.date": date,
        "modelspec.merged_from": ", ".join(each.metadata.get("modelspec.title", each.name) for each in used),
        HASH_KEY: UNKNOWN_HASH,
    }
    if base.prediction in _PREDICTIONS:
        spec["modelspec.prediction_type"] = _PREDICTIONS[base.prediction]
    return spec | _automatic1111(recipe, used, title)


def architecture_of(family: str, prediction: str) -> str:
    """ModelSpec's identifier of a family, or the family's own name where ModelSpec has none."""
    stem, _, extra = family.partition("-") if family not in _ARCHITECTURES else (family, "", "")
    found = _ARCHITECTURES.get(stem, stem)
    if stem == "sd2":
        found += {"v": "-768-v", "epsilon": "-512"}.get(prediction, "") if not extra else ""
    return f"{found}-{extra}" if extra else found


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
    models: dict[str, Any] = {}
    for each, sha256 in zip(used, hashes, strict=True):
        models |= _table(each.metadata.get("sd_merge_models"))
        own = _table(each.metadata.get("sd_merge_recipe")) or None
        models[sha256] = {"name": each.name, "legacy_hash": sha256[:8], "sd_merge_recipe": own}
    return {"sd_merge_recipe": json.dumps(said), "sd_merge_models": json.dumps(models)}


def _table(text: str | None) -> dict[str, Any]:
    """A JSON table out of a file's metadata; anything else is as good as none."""
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
