"""A blend written in the form that was asked for: one file, the denoiser alone, or a diffusers folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from merger.checkpoints.checkpoint import Checkpoint
from merger.checkpoints.compatibility import in_words
from merger.errors import ConfigError
from merger.export.folder import export_folder
from merger.export.mecha import mecha_beside
from merger.export.recipe import Recipe
from merger.export.values import Nonfinite, to_stderr
from merger.export.write import export


@dataclass(frozen=True)
class ExportOptions:
    """How a blend is written.

    dtype: `fp16`, `bf16`, `fp32`; None as the base has it. pipeline: configuration folder, for a single file that
    becomes a folder. mecha: where to write sd-mecha's recipe as well. replace_folder: whether an existing folder may be
    replaced. nonfinite: what is done with values that are no finite numbers.
    """

    dtype: str | None = None
    denoiser_only: bool = False
    format: Literal["base", "diffusers"] = "base"
    pipeline: Path | None = None
    mecha: Path | None = None
    replace_folder: bool = False
    nonfinite: Nonfinite = "refuse"


AS_IT_IS = ExportOptions()


def export_as(
    recipe: Recipe,
    output: Path,
    how: ExportOptions = AS_IT_IS,
    *,
    base: Checkpoint,
    donors: Sequence[Checkpoint],
    extra_metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write the blend that `recipe` describes. A diffusers folder as base gives a folder again.

    Raises ConfigError for two forms at once, and what `merger.export.write`, `merger.export.folder` and
    `merger.export.mecha` raise.
    """
    if how.denoiser_only and how.format == "diffusers":
        raise ConfigError("--denoiser-only is one file and --format diffusers is a folder: choose one")
    beside = nullcontext() if how.mecha is None else mecha_beside(recipe, how.mecha, base=base, donors=donors)
    with beside:
        if is_folder(base, how):
            return export_folder(
                recipe,
                output,
                base=base,
                donors=donors,
                pipeline=how.pipeline,
                dtype=how.dtype,
                extra_metadata=extra_metadata,
                replace_folder=how.replace_folder,
                nonfinite=how.nonfinite,
            )
        form: Literal["base", "denoiser"] = "denoiser" if how.denoiser_only else "base"
        if how.denoiser_only and not_seen(base):
            to_stderr(
                f"{output.name}: {in_words(base.prediction, base.zero_snr)}, which a file with diffusers' keys says in "
                "its metadata alone: ComfyUI samples it as noise prediction unless a ModelSampling node says else"
            )
        return export(
            recipe,
            output,
            base=base,
            donors=donors,
            dtype=how.dtype,
            form=form,
            extra_metadata=extra_metadata,
            nonfinite=how.nonfinite,
        )


def not_seen(base: Checkpoint) -> bool:
    """Whether ComfyUI does not see what a blend of this base alone predicts.

    Of a U-Net with diffusers' keys it keeps the tensors that it has names for, so no marker helps
    (`load_diffusion_model_state_dict` in comfy/sd.py, as of 2025). What an SD 2 model predicts it tells by its weights.
    """
    return base.layout != "original" and base.prediction in ("v", "edm", "edm-v") and not base.family.startswith("sd2")


def is_folder(base: Checkpoint, how: ExportOptions = AS_IT_IS) -> bool:
    """Whether a blend of this base is written as a diffusers folder."""
    return how.format == "diffusers" or (base.layout == "folder" and not how.denoiser_only)
