"""What checkpoint files are and whether they fit together, as a table of plain values and as text."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from merger.checkpoints import Checkpoint, open_checkpoint, read_unet_config
from merger.errors import CheckpointError, RecipeError
from merger.fitting import check_fit
from merger.layers import group, sizes
from merger.recipe import METADATA_KEY, Recipe


def inspect_files(paths: Sequence[Path], pipeline: Path | None = None) -> dict[str, Any]:
    """Describe checkpoints; the first is taken as the base the others are to fit.

    Returns {"files": [{name, path, family, layout, bytes, tensors, parameters, dtypes, other_tensors, sha256, layers,
    recipe}], "fit": {"ok", "problem", "left_out"}}; `layers` is {block: parameters}. Raises CheckpointError for a file
    that cannot be opened; files that do not fit together are no error, but said in "fit".
    """
    config = read_unet_config(pipeline) if pipeline is not None else None
    names = unique_names(paths)
    opened = [open_checkpoint(path, name=name, unet_config=config) for path, name in zip(paths, names, strict=True)]
    fit: dict[str, Any] = {"ok": True, "problem": None, "left_out": {}}
    try:
        if opened:
            fit["left_out"] = {name: list(extra) for name, extra in check_fit(opened[0], opened[1:]).items()}
    except CheckpointError as error:
        fit |= {"ok": False, "problem": str(error)}
    return {"files": [_describe(checkpoint) for checkpoint in opened], "fit": fit}


def unique_names(paths: Sequence[Path]) -> list[str]:
    """Names for checkpoints: the file's, with its folder's in front (or a number behind) where two are alike."""
    stems = [Path(path).name.removesuffix(".safetensors") for path in paths]
    doubled = {stem for stem, count in Counter(stems).items() if count > 1}
    names: list[str] = []
    for path, stem in zip(paths, stems, strict=True):
        name = f"{Path(path).absolute().parent.name}-{stem}" if stem in doubled else stem
        names.append(name if name not in names else f"{name}-{len(names) + 1}")
    return names


def format_inspection(found: dict[str, Any]) -> str:
    """The table of `inspect_files` as lines of text for a person."""
    lines = []
    for file in found["files"]:
        dtypes = ", ".join(f"{count} x {dtype}" for dtype, count in file["dtypes"].items())
        lines += [
            f"{file['path']}",
            f"  {file['family']} U-Net, {file['layout']} layout, {_size(file['bytes'])}",
            f"  denoiser: {file['parameters']:,} parameters in {file['tensors']} tensors ({dtypes}); "
            f"{file['other_tensors']} other tensors",
            f"  SHA-256 {file['sha256']}",
        ]
        if file["recipe"]:
            lines.append(
                f"  a blend made by layermerge {file['recipe']['version']} from {', '.join(file['recipe']['of'])}"
            )
    shapes = {tuple(file["layers"].items()) for file in found["files"]}
    for file in found["files"] if len(shapes) > 1 else found["files"][:1]:
        lines.append(f"layers of {file['name']} (parameters):" if len(shapes) > 1 else "layers (parameters):")
        cells = [f"{layer} {count:>11,}" for layer, count in file["layers"].items()]
        lines += ["  " + "   ".join(cells[i : i + 4]) for i in range(0, len(cells), 4)]
    if len(found["files"]) > 1:
        lines.append("they fit together" if found["fit"]["ok"] else f"they do not fit: {found['fit']['problem']}")
    for name, extra in found["fit"]["left_out"].items():
        lines.append(f"a blend leaves out {len(extra)} tensors of {name}, first '{extra[0]}'")
    return "\n".join(lines)


def _describe(checkpoint: Checkpoint) -> dict[str, Any]:
    elements = {name: math.prod(info.shape) for name, info in checkpoint.denoiser.items()}
    return {
        "name": checkpoint.name,
        "path": str(checkpoint.path),
        "family": checkpoint.family,
        "layout": checkpoint.layout,
        "bytes": sum(file.stat().st_size for file in checkpoint.files),
        "tensors": len(elements),
        "parameters": sum(elements.values()),
        "dtypes": dict(Counter(str(info.dtype).removeprefix("torch.") for info in checkpoint.denoiser.values())),
        "other_tensors": len(checkpoint.other_keys),
        "sha256": checkpoint.sha256,
        "layers": sizes(group(checkpoint.denoiser, "block"), elements),
        "recipe": _recipe_of(checkpoint),
    }


def _recipe_of(checkpoint: Checkpoint) -> dict[str, Any] | None:
    if METADATA_KEY not in checkpoint.metadata:
        return None
    try:
        recipe = Recipe.from_metadata(checkpoint.metadata)
    except RecipeError as error:
        raise CheckpointError(f"{checkpoint.path}: {error}") from None
    return {"version": recipe.version, "of": [recipe.base.name, *(donor.name for donor in recipe.used)]}


def _size(count: float) -> str:
    for unit in ("bytes", "KB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"
