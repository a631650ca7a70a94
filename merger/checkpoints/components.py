"""What a pipeline has besides its denoiser: another VAE, other text encoders, and the configuration it is read with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmark.pipelines import hub
from benchmark.pipelines.loading import load_pipeline
from benchmark.pipelines.single_files import default_repository as repository_of
from benchmark.pipelines.variants import variant_in, weights_of_variant
from merger.checkpoints.checkpoint import Checkpoint
from merger.checkpoints.families import family_named
from merger.checkpoints.headers import FLOATING
from merger.checkpoints.names.unet import VAE_PREFIX, vae_names
from merger.checkpoints.weight_files import open_weights
from merger.errors import CheckpointError


def use_vae(pipeline: Any, source: Path, *, allow_pickle: bool = False) -> None:
    """Give the pipeline the VAE in `source`, in the pipeline's own configuration and dtype.

    source: a file that holds a VAE, alone or within a checkpoint, under original or diffusers keys; or a diffusers
    folder, of a pipeline or of a VAE. Raises CheckpointError if a tensor is missing, of another shape, or quantised.
    """
    file = _vae_file(Path(source))
    weights = open_weights(file, allow_pickle=allow_pickle)
    held = pipeline.vae.state_dict()
    keys = _vae_keys(weights.header.tensors, list(held), dict(pipeline.vae.config))
    if missing := [name for name in held if name not in keys]:
        raise CheckpointError(
            f"{file}: is not this pipeline's kind of VAE: it has no '{missing[0]}' ({len(missing)} such)."
        )
    with torch.no_grad():
        for name, kept in held.items():
            tensor = weights.get(keys[name])
            if kept.is_floating_point() and tensor.dtype not in FLOATING:
                raise CheckpointError(f"{file}: '{keys[name]}' is {tensor.dtype}: a quantised VAE cannot be used.")
            if tensor.numel() != kept.numel():
                raise CheckpointError(
                    f"{file}: '{keys[name]}' is {list(tensor.shape)}, the pipeline's VAE has {list(kept.shape)}."
                )
            kept.copy_(tensor.reshape(kept.shape))


def use_text_encoders(pipeline: Any, source: Path, *, config: Path | None = None) -> None:
    """Give the pipeline the text encoders of another whole checkpoint or diffusers folder, in its own dtype and place.

    config: the configuration folder that a single file is read with. Raises CheckpointError if the other checkpoint's
    text encoders are of another kind, and InputError if it cannot be loaded.
    """
    own = {
        name: part for name, part in pipeline.components.items() if name.startswith("text_encoder") and part is not None
    }
    source = Path(source)
    other = load_pipeline(source, config=config if source.is_file() else None, dtype=torch.float32)
    for name, part in own.items():
        found = other.components.get(name)
        theirs = {} if found is None else found.state_dict()
        held = part.state_dict()
        if {key: tensor.shape for key, tensor in theirs.items()} != {key: tensor.shape for key, tensor in held.items()}:
            raise CheckpointError(f"{source}: its {name} is not of the kind that the base has.")
        with torch.no_grad():
            for key, tensor in held.items():
                tensor.copy_(theirs[key])


def check_overrides(**sources: Path | None) -> None:
    """Make sure that the files that replace the base's components exist: {setting: path}. Raises CheckpointError."""
    for key, source in sources.items():
        if source is not None and not source.exists():
            raise CheckpointError(f"{key}: {source}: no such file or folder.")


def check_configuration(base: Checkpoint, pipeline: Path | None) -> None:
    """Make sure that a single file can be read: its pipeline's configuration is named, or in the hub's cache.

    Raises CheckpointError with the command that fetches it, and for a base that prompts alone cannot score. Makes no
    network request.
    """
    if why := family_named(base.family).not_from_text:
        raise CheckpointError(f"{base.path}: {why}. It can be blended with `merger merge`, without a search.")
    if pipeline is not None and not (pipeline / "model_index.json").is_file():
        missing = "there is no such folder" if not pipeline.exists() else "it has no model_index.json"
        raise CheckpointError(f"pipeline: {pipeline}: {missing}. {_advice(base, pipeline.name)}")
    if pipeline is not None or not base.path.is_file():
        return
    repository = default_repository(base)
    if repository is None or not _cached(repository):
        raise CheckpointError(
            f"{base.path}: the configuration of its pipeline is not here. {_advice(base, 'pipeline')}"
        )


def default_repository(base: Checkpoint) -> str | None:
    """The hub id whose configuration diffusers would read this single file with; None if it knows none."""
    return repository_of({key: info.shape for key, info in base.tensors.items()})


def _advice(base: Checkpoint, folder: str) -> str:
    repository = default_repository(base) or "OWNER/NAME"
    return (
        f"Fetch its small files with: hf download {repository} --include '*.json' --include '*.txt' "
        f"--include '*.model' --local-dir {folder}; then say 'pipeline: {folder}'."
    )


def _cached(repository: str) -> bool:
    folder = hub.cached(repository)
    return folder is not None and not hub.lacking(folder, "configuration")


def _vae_file(source: Path) -> Path:
    if not source.is_dir():
        return source
    inside = source / "vae" if (source / "vae").is_dir() else source
    if variant := variant_in(inside):
        return weights_of_variant(inside, variant)
    found = sorted(inside.glob("diffusion_pytorch_model*.safetensors"))
    if not found:
        raise CheckpointError(f"{inside}: no VAE weights here.")
    return found[0]


def _vae_keys(keys: Mapping[str, object], names: list[str], config: Mapping[str, object]) -> dict[str, str]:
    """{diffusers name: key in the file} of the tensors that the file has."""
    own = next((name for name in names if "mid_block" in name), names[0])  # the original layout has no such name
    for prefix in ("", "vae."):
        if prefix + own in keys:
            return {name: prefix + name for name in names if prefix + name in keys}
    try:
        originals = vae_names(config)
    except (CheckpointError, ValueError):  # the original layout has no place for this VAE
        return {}
    for prefix in (VAE_PREFIX, "", "vae."):
        found = {name: prefix + key.removeprefix(VAE_PREFIX) for name, key in originals.items()}
        if any(key in keys for key in found.values()):
            return {name: key for name, key in found.items() if key in keys}
    return {}
