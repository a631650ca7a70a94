"""Opening diffusers pipelines: a single file with a configuration folder, a diffusers folder, or a hub id.

No pickle is ever loaded, and no code that comes with a model is run.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.errors import UNFORESEEN, InputError, did_you_mean, first_line, out_of_memory
from benchmark.hub_ids import is_hub_id
from benchmark.pipelines import hub
from benchmark.pipelines.model_index import pipeline_class, read_index
from benchmark.pipelines.quiet import quiet_diffusers
from benchmark.pipelines.single_files import as_marked, components_beside, configuration_of, parts_of_variants

if TYPE_CHECKING:
    import torch

Pipeline = Any  # any diffusers text-to-image pipeline; they share no narrower type

# name on the command line -> (diffusers class, changes to the pipeline's own scheduler configuration)
SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpm++2m": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "use_karras_sigmas": False}),
    "dpm++2m-karras": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True}),
    "unipc": ("UniPCMultistepScheduler", {}),
}
OWN_SAMPLER = "default"  # the one the checkpoint or its configuration folder brings


def dtypes() -> dict[str, torch.dtype]:
    """torch's types by the names that command lines, configurations and recipes use."""
    import torch

    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def denoiser_of(pipeline: Pipeline) -> torch.nn.Module:
    """The network that is blended: a pipeline's U-Net or, if it has none, its transformer."""
    return pipeline.unet if getattr(pipeline, "unet", None) is not None else pipeline.transformer


def load_pipeline(
    source: Path | str,
    *,
    config: Path | str | None = None,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    to_fill: Collection[str] = (),
) -> Pipeline:
    """Load a text-to-image pipeline, without a safety checker and without progress bars, ready to draw on `device`.

    `source`: a `.safetensors` single file (with `config`, the folder or hub id of its pipeline's configuration), a
    diffusers folder, or a hub id (`owner/name`). A VAE or text encoder that a single file lacks is read from `config`;
    one that is not there either comes untrained if `to_fill` names it, for the caller to fill. `dtype` None is float16
    on a GPU and float32 on a CPU. Raises InputError, in one line, for anything that is missing, cut short, not a model,
    or that brings its own code.
    """
    import torch

    dtype = dtype or (torch.float32 if str(device).startswith("cpu") else torch.float16)
    with quiet_diffusers():
        pipeline = _load(str(source), None if config is None else str(config), dtype, to_fill)
    pipeline.set_progress_bar_config(disable=True)
    _check_values(str(source), pipeline)
    pipeline.to(device)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False).eval()
    return pipeline


def _check_values(source: str, pipeline: Pipeline) -> None:
    """Raise InputError if a tensor of a part got no value and stayed on torch's "meta" device."""
    import torch

    for name, part in pipeline.components.items():
        if not isinstance(part, torch.nn.Module):
            continue
        for key, tensor in part.state_dict(keep_vars=True).items():
            if isinstance(tensor, torch.Tensor) and tensor.is_meta:
                raise InputError(f"{source}: its {name} lacks '{key}'. Is it whole, and of this family?")


def quicken(pipeline: Pipeline, *, channels_last: bool, compiled: bool) -> None:
    """Lay convolutions out in the order that a GPU's kernels prefer, and compile the denoiser, in place.

    Images change by rounding only. The first image of each shape waits for the compiler, for minutes at full size.
    """
    import torch

    denoiser: Any = denoiser_of(pipeline)
    if channels_last:
        for part in (denoiser, pipeline.vae):
            if all(parameter.dim() < 5 for parameter in part.parameters()):  # there is no such layout for video's
                part.to(memory_format=torch.channels_last)
    if compiled:
        denoiser.compile()


def _load(source: str, config: str | None, dtype: torch.dtype, to_fill: Collection[str]) -> Pipeline:
    import diffusers
    from diffusers.loaders.single_file_utils import SingleFileComponentError
    from safetensors import SafetensorError

    options: dict[str, Any] = {"torch_dtype": dtype, "safety_checker": None}
    path = local_source(source)
    try:
        if path.is_dir():
            index = read_index(path)  # raises for one that names other code than diffusers' and transformers'
            options |= parts_of_variants(path, index, dtype)
            return diffusers.DiffusionPipeline.from_pretrained(
                path, use_safetensors=True, local_files_only=True, **options
            )
        check_single_file(path)
        folder = configuration_of(path, config)
        kind = pipeline_class(folder)
        options |= components_beside(path, folder, dtype, to_fill)
        pipeline = kind.from_single_file(str(path), config=str(folder), local_files_only=True, **options)
    except NotImplementedError as error:  # a parameter without a value stayed on torch's "meta" device
        expects = config or "its family"
        raise InputError(f"{source}: lacks tensors that {expects} expects. Is it whole, and of this family?") from error
    except (*UNFORESEEN, SafetensorError, SingleFileComponentError) as error:
        if out_of_memory(error):
            raise
        raise InputError(f"{source}: diffusers cannot load it ({first_line(error)}).") from error
    pipeline.scheduler = as_marked(path, pipeline.scheduler)
    return pipeline


def check_draws_from_text(pipeline: Pipeline) -> None:
    """Raise InputError for a pipeline that draws from an image. One that takes a mask draws with everything masked."""
    unet, vae = getattr(pipeline, "unet", None), getattr(pipeline, "vae", None)
    name, takes = type(pipeline).__name__, inspect.signature(pipeline.__call__).parameters
    if "mask_image" in takes:
        return
    if any(word in name for word in ("Img2Img", "Depth2Img", "Pix2Pix", "Upscale", "ImageVariation")):
        raise InputError(f"A {name} draws from an image and not from text alone: it can be blended, but not scored.")
    taken, latents = (
        getattr(getattr(part, "config", None), key, None)
        for part, key in ((unet, "in_channels"), (vae, "latent_channels"))
    )
    if taken is not None and latents is not None and taken != latents:
        mend = " Its model_index.json should say StableDiffusionInpaintPipeline." if taken == 2 * latents + 1 else ""
        raise InputError(
            f"A {name} cannot draw with a U-Net of {taken} input channels, {latents} of them latents: the others are "
            f"of an image.{mend}"
        )


def local_source(source: Path | str) -> Path:
    """The file or folder on this disk that a source names; `hub.fetch` finds or downloads a hub id's.

    Raises InputError for what is neither.
    """
    path, text = Path(source), str(source)
    if path.is_file():
        return path
    if path.is_dir():
        if not (path / "model_index.json").is_file():
            raise InputError(f"{path}: is no diffusers folder; it has no model_index.json.")
        return path
    if not is_hub_id(text):
        raise InputError(f"{text}: there is no such file or folder.")
    return hub.fetch(text)


def check_single_file(path: Path) -> None:
    """Raise InputError unless the file is safetensors and as long as its header says."""
    from safetensors import SafetensorError, safe_open

    if path.suffix in {".ckpt", ".pt", ".pth", ".bin"}:
        raise InputError(f"{path}: is a pickle, which can run code when opened. Convert it to .safetensors first.")
    try:
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: is no safetensors file, or was cut short ({error}).") from None


def make_scheduler(pipeline: Pipeline, sampler: str) -> Any:
    """A scheduler by name, with the pipeline's own noise schedule and prediction type.

    Raises InputError for an unknown name, and for any but its own sampler of a flow-matching model.
    """
    import diffusers

    if sampler == OWN_SAMPLER:
        return type(pipeline.scheduler).from_config(pipeline.scheduler.config)
    if sampler not in SAMPLERS:
        raise InputError(f"Unknown sampler '{sampler}'.{did_you_mean(sampler, [OWN_SAMPLER, *SAMPLERS])}")
    own = type(pipeline.scheduler).__name__
    if own.startswith("FlowMatch"):
        raise InputError(f"The sampler '{sampler}' does not fit a flow-matching model ({own}). Use '{OWN_SAMPLER}'.")
    name, changes = SAMPLERS[sampler]
    with quiet_diffusers():
        return getattr(diffusers, name).from_config(pipeline.scheduler.config, **changes)
