"""What a pipeline needs that a single file does not say: configuration, components it lacks, what it predicts.

Nothing is loaded here but components that are beside the file; diffusers is imported where it is needed.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.errors import InputError
from benchmark.pipelines import hub

if TYPE_CHECKING:
    import torch


def configuration_of(path: Path, config: str | None) -> Path:
    """The folder of the configuration that a single file is read with: the one named, or diffusers' own for its family.

    config: a folder or hub id; one that is not on this disk is fetched. Raises InputError where there is none.
    """
    if config is None:
        repository = default_repository(_shapes(path))
        if repository is None:
            raise InputError(f"{path}: diffusers does not know its family. Name its pipeline's configuration folder.")
        try:
            return hub.fetch(repository, "configuration")
        except InputError as error:
            raise InputError(
                f"{path}: name its pipeline's configuration folder, or let it be found. {error}"
            ) from error
    folder = Path(config)
    return folder if folder.exists() or not hub.is_hub_id(config) else hub.fetch(config, "configuration")


def default_repository(shapes: dict[str, tuple[int, ...]]) -> str | None:
    """The hub id whose configuration diffusers would read a file of these tensors with; None where it knows none."""
    import torch
    from diffusers.loaders.single_file_utils import DIFFUSERS_DEFAULT_PIPELINE_PATHS, infer_diffusers_model_type

    shells = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    try:
        kind = infer_diffusers_model_type(shells)
    except (KeyError, IndexError, ValueError, UnboundLocalError):
        return None
    found = DIFFUSERS_DEFAULT_PIPELINE_PATHS.get(kind)
    return None if found is None else str(found["pretrained_model_name_or_path"])


def pipeline_class(folder: Path) -> Any:
    """The diffusers class that a configuration folder names. Raises InputError where it reads no single files."""
    import diffusers

    file = folder / "model_index.json"
    try:
        name = str(_index(folder)["_class_name"])
    except KeyError:
        raise InputError(f"{file}: does not say which pipeline it is ('_class_name').") from None
    found = getattr(diffusers, name, None)
    if found is None or not hasattr(found, "from_single_file"):
        raise InputError(f"{file}: '{name}' is no diffusers pipeline that reads single files.")
    return found


def components_beside(path: Path, folder: Path, dtype: torch.dtype, to_fill: Collection[str] = ()) -> dict[str, Any]:
    """{name: component} of those that a single file lacks ("U-Net only"), read from its configuration's folder.

    Those that have no weights there and are named in `to_fill` come untrained. Raises InputError for the others.
    """
    from diffusers.loaders.single_file_utils import is_clip_model_in_single_file, is_t5_in_single_file

    keys = dict.fromkeys(_shapes(path))
    found: dict[str, Any] = {}
    for name, entry in _index(folder).items():
        if not isinstance(entry, list) or not name.startswith(("vae", "text_encoder")) or None in entry:
            continue
        kind = getattr(importlib.import_module(entry[0]), entry[1])
        if name.startswith("vae"):
            held = any(key.startswith(("first_stage_model.", "vae.")) for key in keys)
        else:
            t5 = entry[1].startswith(("T5", "UMT5"))
            held = is_t5_in_single_file(keys) if t5 else is_clip_model_in_single_file(kind, keys)
        if held:
            continue
        if any((folder / name).glob("*.safetensors")):
            found[name] = kind.from_pretrained(folder / name, torch_dtype=dtype, local_files_only=True)
        elif name in to_fill:
            found[name] = _untrained(kind, folder / name).to(dtype)
        else:
            raise InputError(
                f"{path}: holds no {name}, and {folder / name} has no weights of one. Put them there, or name another "
                f"{'VAE' if name.startswith('vae') else 'checkpoint for the text encoders'}."
            )
    return found


def as_marked(path: Path, scheduler: Any) -> Any:
    """The scheduler, changed to what the file's marker keys say that it predicts (`v_pred`, `ztsnr`).

    Models with markers share the configuration of those without, which says something else.
    """
    keys = _shapes(path)
    if "v_pred" not in keys:
        return scheduler
    changes: dict[str, Any] = {"prediction_type": "v_prediction"}
    if "ztsnr" in keys:
        changes["rescale_betas_zero_snr"] = True
    return type(scheduler).from_config(scheduler.config, **changes)


def _untrained(kind: Any, folder: Path) -> Any:
    """A network as its configuration describes it; what it holds means nothing."""
    if getattr(kind, "config_class", None) is not None:  # transformers'
        return kind(kind.config_class.from_pretrained(folder))
    return kind.from_config(kind.load_config(folder))


def _index(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / "model_index.json").read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder}: is no pipeline configuration; its model_index.json cannot be read ({error})."
        ) from None


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """{key: shape}, from the header alone."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - no iterator
