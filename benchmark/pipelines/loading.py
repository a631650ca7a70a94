"""Opening diffusers pipelines: a single file with a configuration folder, a diffusers folder, a hub id.

diffusers only here and in `generation.py`. Nothing is fetched for a local file, and no pickle is ever loaded.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.errors import InputError, did_you_mean, first_line
from benchmark.pipelines import hub
from benchmark.pipelines.single_files import as_marked, components_beside, configuration_of, pipeline_class

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
_LOADING_ERRORS = (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError)
OWN_SAMPLER = "default"  # the one the checkpoint or its configuration folder brings


def dtypes() -> dict[str, torch.dtype]:
    """torch's types by the names that command lines, configurations and recipes have for them."""
    import torch

    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def denoiser_of(pipeline: Pipeline) -> torch.nn.Module:
    """The network that is blended: a pipeline's U-Net or, where it has none, its transformer."""
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
    diffusers folder, or a hub id (`owner/name`). What a single file does not hold (VAE, text encoders) is read from
    `config` where that has weights; components named in `to_fill` may be nowhere: they come untrained, for the caller
    to fill. `dtype` None is float16 on a GPU and float32 on a CPU. Raises InputError with one line for anything that
    is missing, cut short or not a model.
    """
    import torch

    dtype = dtype or (torch.float32 if str(device).startswith("cpu") else torch.float16)
    with quiet_diffusers():
        pipeline = _load(str(source), None if config is None else str(config), dtype, to_fill)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to(device)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False).eval()
    return pipeline


def quicken(pipeline: Pipeline, *, channels_last: bool, compiled: bool) -> None:
    """Lay convolutions out as a GPU's kernels like them best, and compile the denoiser, in place.

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
    except (*_LOADING_ERRORS, SafetensorError, SingleFileComponentError) as error:
        raise InputError(f"{source}: diffusers cannot load it ({first_line(error)}).") from error
    pipeline.scheduler = as_marked(path, pipeline.scheduler)
    return pipeline


def check_draws_from_text(pipeline: Pipeline) -> None:
    """Raise InputError for a pipeline that draws from an image; one that takes a mask draws with all of it masked."""
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
    """The file or folder that a source is on this disk; of a hub id (`owner/name`), `hub.fetch` finds or makes one.

    Raises InputError for what is neither.
    """
    path, text = Path(source), str(source)
    if path.is_file():
        return path
    if path.is_dir():
        if not (path / "model_index.json").is_file():
            raise InputError(f"{path}: is no diffusers folder; it has no model_index.json.")
        return path
    if not hub.is_hub_id(text):
        raise InputError(f"{text}: there is no such file or folder.")
    return hub.fetch(text)


def check_single_file(path: Path) -> None:
    """Raise InputError unless the file is safetensors and whole, as its header says."""
    from safetensors import SafetensorError, safe_open

    if path.suffix in {".ckpt", ".pt", ".pth", ".bin"}:
        raise InputError(f"{path}: is a pickle, which can run code when opened. Convert it to .safetensors first.")
    try:
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: is no safetensors file, or was cut short ({error}).") from None


def make_scheduler(pipeline: Pipeline, sampler: str) -> Any:
    """A scheduler for the pipeline by name: its own noise schedule and prediction type, another solver.

    Raises InputError for an unknown name, and where the model's kind (flow matching) has only its own sampler.
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


@contextmanager
def quiet_diffusers() -> Iterator[None]:
    """diffusers' and transformers' bars, notices and deprecations off for a while; what goes wrong is still raised.

    Without torchvision, transformers prints at diffusers' import that it falls back to Pillow; it is as good here.
    """
    from transformers.utils import logging as transformers_logging

    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    from diffusers.utils import logging as diffusers_logging

    own_level, own_bars = diffusers_logging.get_verbosity(), diffusers_logging.is_progress_bar_enabled()
    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        diffusers_logging.set_verbosity(own_level)
        transformers_logging.set_verbosity(level)
        if own_bars:
            diffusers_logging.enable_progress_bar()
        if bars:
            transformers_logging.enable_progress_bar()
