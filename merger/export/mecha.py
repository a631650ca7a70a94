"""A blend as a recipe of sd-mecha (https://github.com/ljleb/sd-mecha), for users of that program.

The text is `.mecha` 0.1.0: `base + weight (donor - base)` for one donor after the other, with a weight for each key.
sd-mecha need not be installed to write it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmark.pipelines.key_names import usual
from benchmark.writing import whole_or_nothing
from merger.blend.prepared import minus_of, steps_of
from merger.checkpoints.checkpoint import Checkpoint
from merger.checkpoints.families import family_named, known_families
from merger.checkpoints.names.unet import DENOISER_PREFIX
from merger.errors import RecipeError
from merger.export.layout import Layout
from merger.export.recipe import Recipe
from merger.weights import Channels

_VERSION = "version 0.1.0"
_HOMES = (DENOISER_PREFIX, "cond_stage_model.", "conditioner.", "text_encoders.")
# What sd-mecha 1.1.8 reads under two keys, by `aliases` in its model configurations: a denoiser without its prefix, and
# CLIP without `text_model.`
_BARE = {
    "flux-flux": ("double_blocks.", "single_blocks.", "final_layer.", "img_", "txt_", "time_", "vector_", "guidance_")
}
_CLIP_EITHER_WAY = ("sd1-ldm",)


@contextmanager
def mecha_beside(recipe: Recipe, output: Path, *, base: Checkpoint, donors: Sequence[Checkpoint]) -> Iterator[None]:
    """Write `recipe` as a `.mecha` file with absolute paths, which appears only if the block ends without an error.

    Raises RecipeError for an output of another ending, and what `mecha_text` raises.
    """
    if output.suffix != ".mecha":
        raise RecipeError(f"{output}: the name must end in .mecha.")
    text = mecha_text(recipe, base, donors)
    with whole_or_nothing(output) as partial:
        partial.write_text(text, encoding="utf-8")
        yield


def mecha_text(recipe: Recipe, base: Checkpoint, donors: Sequence[Checkpoint]) -> str:
    """The text of a `.mecha` file.

    Raises RecipeError for what sd-mecha cannot express: families it does not know, sources in other layouts than the
    original one (adapters too), keys in other spellings than it looks for, and weights that differ within one tensor of
    the file.
    """
    layout = Layout(recipe, base, donors)
    config = family_named(base.family).mecha
    if not config:
        known = ", ".join(family.name for family in known_families() if family.mecha)
        raise RecipeError(f"--mecha: sd-mecha knows {known} models, and {base.name} is {base.family}.")
    if prepared := [donor.name for donor in layout.donors if steps_of(donor)]:
        raise RecipeError(f"--mecha: {prepared[0]} is prepared, and preparations are not written for sd-mecha.")
    for source in (base, *(part for donor in layout.donors for part in donor.parts)):
        if source.layout != "original" or len(source.files) != 1 or not source.path.is_file():
            raise RecipeError(f"--mecha: {source.path} is no single file with original keys, as sd-mecha wants it.")
        _check_keys(source, config)
    for donor in layout.donors:
        if donor.lent:
            raise RecipeError(f"--mecha: {donor.name} holds no {donor.lent[0]}, and sd-mecha wants one to blend.")
    lines = [_VERSION, _model(base, config)]
    current = 0
    for column, donor in enumerate(layout.donors):
        weights = _weights(layout, column)
        taken_from = 0
        if (minus := minus_of(donor)) is not None:
            taken_from = len(lines) - 1
            lines.append(_model(minus, config))
        at = len(lines) - 1
        lines += [
            _model(donor, config),
            f'merge "subtract" &{at} &{taken_from}',
            "dict " + " ".join(f"{key}={weight!r}" for key, weight in weights.items()),
            f'literal &{at + 2} model_config="{config}" merge_space="param"',
            f'merge "fallback" &{at + 3} 0.0',
            f'merge "add_difference" &{current} &{at + 1} alpha=&{at + 4}',
        ]
        current = at + 5
    return "\n".join(lines)


def _check_keys(source: Checkpoint, config: str) -> None:
    """Raise RecipeError for a file whose keys sd-mecha would not find: it would take them for absent.

    It looks for the keys of its model configuration, and for the other spellings that this one names.
    """
    blended = {key for info in source.blended.values() for key in (info.key, *(piece.key for piece in info.pieces))}
    for key in (key for file in source.files for key in source.keys_of(file)):
        inside = key in blended and not key.startswith(_HOMES)
        if _spelled(key, config) != key or (inside and not (config in _BARE and key.startswith(_BARE[config]))):
            raise RecipeError(
                f"--mecha: {source.path} has '{key}', and sd-mecha looks for it under another key: its names of this "
                "family are the original ones, without what training frameworks put around them."
            )


def _spelled(key: str, config: str) -> str:
    """The key as sd-mecha wants it."""
    wanted = usual(key)
    return key if config in _CLIP_EITHER_WAY and wanted.replace("text_model.", "") == key else wanted


def _weights(layout: Layout, column: int) -> dict[str, float]:
    """{key: weight of one donor}."""
    weights: dict[str, float] = {}
    for key, rows in layout.key_rows.items():
        found = {layout.weights[part.name][column] for part in rows}
        weight = found.pop()
        if found or isinstance(weight, Channels):
            count = len(weight) if isinstance(weight, Channels) else 1 + len(found)
            raise RecipeError(f"--mecha: '{key}' has {count} different weights, and sd-mecha takes one a tensor.")
        weights[key] = weight
    return weights


def _model(source: Checkpoint, config: str) -> str:
    path = str(source.path.absolute()).replace("\\", "\\\\").replace('"', '\\"')
    return f'model "{path}" model_config="{config}" merge_space="weight"'
