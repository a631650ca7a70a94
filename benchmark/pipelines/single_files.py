"""What a pipeline needs that a single file does not say: its configuration, the parts it lacks, what it predicts."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.errors import InputError
from benchmark.hub_ids import is_hub_id
from benchmark.notices import say
from benchmark.pipelines import hub
from benchmark.pipelines.file_parts import holds, open_single_file, read_part, refuse_strays
from benchmark.pipelines.model_index import NAME, component_class, parts_of, read_index
from benchmark.pipelines.variants import said, variant_in, variants_in

if TYPE_CHECKING:
    import torch


_EDM = ("edm_mean", "edm_vpred.sigma_max")


def configuration_of(path: Path, config: str | None) -> Path:
    """The folder of the configuration that a single file is read with: the one named, or diffusers' own for its family.

    config: a folder, or a hub id, which is fetched if it is not in the cache. Raises InputError if there is none.
    """
    if config is None:
        repository = default_repository(open_single_file(path).shapes)
        if repository is None:
            raise InputError(f"{path}: diffusers does not know its family. Name its pipeline's configuration folder.")
        try:
            return hub.fetch(repository, "configuration")
        except InputError as error:
            raise InputError(
                f"{path}: name its pipeline's configuration folder, or let it be found. {error}"
            ) from error
    folder = Path(config)
    return folder if folder.exists() or not is_hub_id(config) else hub.fetch(config, "configuration")


def default_repository(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """The hub id whose configuration diffusers would read a file of these tensors with; None if it knows none."""
    import torch
    from diffusers.loaders.single_file_utils import DIFFUSERS_DEFAULT_PIPELINE_PATHS, infer_diffusers_model_type

    shells = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    try:
        kind = infer_diffusers_model_type(shells)
    except (KeyError, IndexError, ValueError, UnboundLocalError):
        return None
    found = DIFFUSERS_DEFAULT_PIPELINE_PATHS.get(kind)
    return None if found is None else str(found["pretrained_model_name_or_path"])


def components_beside(path: Path, folder: Path, dtype: torch.dtype, to_fill: Collection[str] = ()) -> dict[str, Any]:
    """{name: part} of the networks that diffusers would not find in a single file.

    A VAE or text encoder that the file lacks is read from its configuration's folder; one without weights there comes
    untrained if `to_fill` names it. What the file holds in another spelling (`key_names`) is read from the file. Raises
    InputError for a part that is in neither, for one that the file holds where it cannot be read, and as `read_index`
    and `component_class` do.
    """
    file = open_single_file(path)
    parts = dict(parts_of(read_index(folder), folder / NAME))
    refuse_strays(file, parts, to_fill)
    respelled = "denoiser" in file.kinds_respelled()
    found: dict[str, Any] = {}
    for name, (library, class_name) in parts.items():
        if not (name.startswith(("vae", "text_encoder")) or (name in ("unet", "transformer") and respelled)):
            continue
        kind = component_class(folder, name, library, class_name)
        if holds(file, name, class_name, folder):
            if (part := read_part(file, kind, name, folder, dtype)) is not None:
                found[name] = part
            continue
        if any((folder / name).glob("*.safetensors")):
            found[name] = _pretrained(kind, folder / name, dtype)
        elif name in to_fill:
            found[name] = _untrained(kind, folder / name).to(dtype)
        else:
            raise InputError(
                f"{path}: holds no {name}, and {folder / name} has no weights of one. Put them there, or name another "
                f"{'VAE' if name.startswith('vae') else 'checkpoint for the text encoders'}."
            )
    return found


def parts_of_variants(folder: Path, index: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """{name: part} of a diffusers folder's parts that have weights under a variant's name only; says which.

    index: its `model_index.json`, as `read_index` gives it.
    """
    variants = variants_in(folder)
    classes = {name: each for name, each in parts_of(dict(index), folder / NAME) if name in variants}
    used = {name: variants[name] for name in classes if name != "safety_checker"}
    if used:
        say(said(folder, used))
    return {name: _pretrained(component_class(folder, name, *classes[name]), folder / name, dtype) for name in used}


def _pretrained(kind: Any, part: Path, dtype: torch.dtype) -> Any:
    options = {"torch_dtype": dtype, "local_files_only": True, "use_safetensors": True, "variant": variant_in(part)}
    return kind.from_pretrained(part, **options)


def as_marked(path: Path, scheduler: Any) -> Any:
    """The scheduler, changed to the prediction type that the file's marker keys name (`v_pred`, `ztsnr`).

    Models with and without markers share one configuration, which names another prediction type. Raises InputError for
    a file made for EDM's noise levels (Playground 2.5, CosXL) if the scheduler is for others: images would be wrong.
    """
    keys = open_single_file(path).shapes
    edm = next((marker for marker in _EDM if marker in keys), None)
    if edm and not type(scheduler).__name__.startswith("EDM"):
        raise InputError(
            f"{path}: is made for EDM's noise levels ('{edm}'), which {type(scheduler).__name__} does not have: let "
            "the configuration folder name EDMEulerScheduler or EDMDPMSolverMultistepScheduler."
        )
    if edm:
        return scheduler
    if "v_pred" not in keys:
        return scheduler
    changes: dict[str, Any] = {"prediction_type": "v_prediction"}
    if "ztsnr" in keys:
        changes["rescale_betas_zero_snr"] = True
    return type(scheduler).from_config(scheduler.config, **changes)


def _untrained(kind: Any, folder: Path) -> Any:
    """A network as its configuration describes it, with random weights."""
    if getattr(kind, "config_class", None) is not None:  # transformers'
        return kind(kind.config_class.from_pretrained(folder))
    return kind.from_config(kind.load_config(folder))
