"""Export as a diffusers folder: what is blended is streamed under diffusers names, everything else is the base's.

If the base is a folder, all its other files are copied. If it is a single file, diffusers takes the other components
out of it, and holds them in memory meanwhile. The folder appears whole or not at all.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch

from benchmark.writing import whole_or_nothing
from merger.checkpoints.checkpoint import Checkpoint
from merger.checkpoints.hashing import nonfinite_in
from merger.checkpoints.text_encoders import TEXT_FILE, components_of
from merger.errors import CheckpointError
from merger.export.layout import DTYPES, Form
from merger.export.recipe import Recipe
from merger.export.recipe_weights import beside, weights_beside
from merger.export.values import Nonfinite, ValueCheck
from merger.export.write import as_written, write_file

WEIGHTS = "diffusion_pytorch_model.safetensors"
_HEAVY = (".safetensors", ".bin", ".ckpt", ".pt", ".msgpack", ".onnx", ".safetensors.index.json")


def export_folder(
    recipe: Recipe,
    output: Path,
    *,
    base: Checkpoint,
    donors: Sequence[Checkpoint],
    pipeline: Path | None = None,
    dtype: str | None = None,
    extra_metadata: Mapping[str, str] | None = None,
    replace_folder: bool = False,
    nonfinite: Nonfinite = "refuse",
) -> Path:
    """Write the blend that `recipe` describes as a diffusers folder.

    pipeline: the configuration folder of a base that is a single file. dtype: of the denoiser and, if the base is a
    single file, of the other components. replace_folder: whether the new folder replaces an existing one once it is
    whole. nonfinite: what is done with values that are no finite numbers. The metadata of the denoiser's file hold the
    recipe. Raises CheckpointError for an output that exists, for a single file without its pipeline's configuration,
    for a base that is no whole pipeline, and for values that are no finite numbers.
    """
    output = Path(output)
    if output.exists() and not (replace_folder and output.is_dir()):
        raise CheckpointError(f"{output}: is there already. Choose another name for the folder.")
    if any(output.resolve() == source.path.resolve() for source in (base, *donors)):
        raise CheckpointError(f"{output}: is one of the blend's own sources. Choose another name.")
    text = components_of(base.text)
    values = ValueCheck(nonfinite)
    values.sources(recipe, base, donors)
    recipe = as_written(recipe, dtype, values)
    with whole_or_nothing(output) as partial:
        if base.layout == "folder":
            _copy(base.path, partial, text)
        else:
            _take_apart(base, partial, pipeline, dtype, text, values)
        inside = next((partial / part for part in ("unet", "transformer") if (partial / part).is_dir()), partial)
        files: dict[Form, Path] = {"diffusers": inside / WEIGHTS}
        files |= {cast(Form, component): partial / component / TEXT_FILE for component in text}
        with weights_beside(recipe, beside(partial)) as channels:
            for form, file in files.items():
                write_file(
                    recipe,
                    file,
                    base=base,
                    donors=donors,
                    form=form,
                    extra_metadata=extra_metadata,
                    title=output.name,
                    values=values,
                    channels=channels,
                )
    return output


def _copy(source: Path, target: Path, text: Sequence[str]) -> None:
    """Copy a diffusers folder without the weights of its denoiser and of these text encoders."""
    own = next((source / part for part in ("unet", "transformer") if (source / part).is_dir()), source)
    written = {own, *(source / component for component in text)}

    def left_out(folder: str, names: list[str]) -> list[str]:
        return [name for name in names if Path(folder) in written and name.endswith(_HEAVY)]

    shutil.copytree(source, target, ignore=left_out)


def _take_apart(
    base: Checkpoint,
    target: Path,
    pipeline: Path | None,
    dtype: str | None,
    text: Sequence[str],
    values: ValueCheck,
) -> None:
    """Write a single file as its configuration folder, with the weights of all components but denoiser and `text`."""
    from safetensors import SafetensorError

    from benchmark.pipelines.loading import load_pipeline

    if pipeline is None:
        raise CheckpointError(
            f"{base.path}: to become a diffusers folder it needs its pipeline's configuration: "
            "name the folder with --pipeline."
        )
    shutil.copytree(pipeline, target, ignore=lambda _, names: [name for name in names if name.endswith(_HEAVY)])
    stored = {info.dtype for info in base.denoiser.values()}
    kind = DTYPES.get(dtype or "", next(iter(stored)) if len(stored) == 1 else torch.float32)
    loaded = load_pipeline(base.path, config=pipeline, dtype=torch.float32 if kind.itemsize == 1 else kind)

    @cache
    def in_float32() -> Any:  # loaded only if a value may have been lost
        return load_pipeline(base.path, config=pipeline, dtype=torch.float32)

    clamped: list[str] = []
    for name, component in loaded.components.items():
        if isinstance(component, torch.nn.Module) and name not in ("unet", "transformer", *text):
            for key, tensor in component.state_dict().items():
                if nonfinite_in(tensor) and values.overflow(
                    f"{name}.{key}", tensor, in_float32().components[name].state_dict()[key]
                ):
                    clamped.append(f"{name}.{key}")
            try:
                component.save_pretrained(target / name)  # type: ignore[operator]
            except SafetensorError as error:  # what its writer raises if the disk refuses
                raise OSError(f"{name}: {error}") from error
    values.finish(clamped)
    loaded.scheduler.save_pretrained(target / "scheduler")  # a folder has here what a file says by markers
