"""A blend as a recipe of sd-mecha (https://github.com/ljleb/sd-mecha), for those who merge with it.

The text is `.mecha` 0.1.0: `base + weight (donor - base)` for one donor after the other, with a weight for each key.
sd-mecha need not be installed to write it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmark.writing import whole_or_nothing
from merger.checkpoints.checkpoint import Checkpoint
from merger.errors import RecipeError
from merger.export.layout import Plan
from merger.export.recipe import Recipe

_VERSION = "version 0.1.0"
# family -> what sd-mecha calls files of its original layout
_CONFIGS = {"sd1": "sd1-ldm", "sdxl": "sdxl-sgm", "sd3": "sd3-comfyui", "flux": "flux-flux"}


def write_mecha(recipe: Recipe, output: Path, *, base: Checkpoint, donors: Sequence[Checkpoint]) -> Path:
    """Write `recipe` as a `.mecha` file with absolute paths.

    Raises RecipeError where sd-mecha has no way to say it: families it does not know, sources in other layouts than the
    original one (adapters too), and weights that differ within one tensor of the file.
    """
    with mecha_beside(recipe, Path(output), base=base, donors=donors):
        return Path(output)


@contextmanager
def mecha_beside(recipe: Recipe, output: Path, *, base: Checkpoint, donors: Sequence[Checkpoint]) -> Iterator[None]:
    """`write_mecha`, but the file appears only where the block ends well: with the blend or not at all."""
    if output.suffix != ".mecha":
        raise RecipeError(f"{output}: the name must end in .mecha.")
    text = mecha_text(recipe, base, donors)
    with whole_or_nothing(output) as partial:
        partial.write_text(text, encoding="utf-8")
        yield


def mecha_text(recipe: Recipe, base: Checkpoint, donors: Sequence[Checkpoint]) -> str:
    """The text of a `.mecha` file. Raises RecipeError as `write_mecha` does."""
    plan = Plan(recipe, base, donors)
    config = _CONFIGS.get(base.family)
    if config is None:
        raise RecipeError(f"--mecha: sd-mecha knows {', '.join(_CONFIGS)} models, and {base.name} is {base.family}.")
    for source in (base, *plan.donors):
        if source.layout != "original" or len(source.files) != 1 or not source.path.is_file():
            raise RecipeError(f"--mecha: {source.path} is no single file with original keys, as sd-mecha wants it.")
    for donor in plan.donors:
        if donor.lent:
            raise RecipeError(f"--mecha: {donor.name} holds no {donor.lent[0]}, and sd-mecha wants one to blend.")
    lines = [_VERSION, _model(base, config)]
    current = 0
    for column, donor in enumerate(plan.donors):
        weights = _weights(plan, column)
        at = len(lines) - 1
        lines += [
            _model(donor, config),
            f'merge "subtract" &{at} &0',
            "dict " + " ".join(f"{key}={weight!r}" for key, weight in weights.items()),
            f'literal &{at + 2} model_config="{config}" merge_space="param"',
            f'merge "fallback" &{at + 3} 0.0',
            f'merge "add_difference" &{current} &{at + 1} alpha=&{at + 4}',
        ]
        current = at + 5
    return "\n".join(lines)


def _weights(plan: Plan, column: int) -> dict[str, float]:
    """{key: weight of one donor}."""
    weights: dict[str, float] = {}
    for key, parts in plan.parts.items():
        rows = {plan.rows[part.name][column] for part in parts}
        if len(rows) > 1:
            raise RecipeError(f"--mecha: '{key}' has {len(rows)} different weights, and sd-mecha takes one a tensor.")
        weights[key] = rows.pop()
    return weights


def _model(source: Checkpoint, config: str) -> str:
    path = str(source.path.absolute()).replace("\\", "\\\\").replace('"', '\\"')
    return f'model "{path}" model_config="{config}" merge_space="weight"'
