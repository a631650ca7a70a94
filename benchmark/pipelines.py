"""Opening diffusers pipelines: a single file with a configuration folder, a diffusers folder, a hub id.

diffusers only here and in `generation.py`. Nothing is fetched for a local file, and no pickle is ever loaded.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.errors import InputError, did_you_mean

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
) -> Pipeline:
    """Load a text-to-image pipeline, without a safety checker and without progress bars, ready to draw on `device`.

    `source`: a `.safetensors` single file (with `config`, the folder or hub id of its pipeline's configuration), a
    diffusers folder, or a hub id (`owner/name`). `dtype` None is float16 on a GPU and float32 on a CPU. Raises
    InputError with one line for anything that is missing, cut short or not a model.
    """
    import torch

    dtype = dtype or (torch.float32 if str(device).startswith("cpu") else torch.float16)
    with quiet_diffusers():
        pipeline = _load(str(source), None if config is None else str(config), dtype)
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


def _load(source: str, config: str | None, dtype: torch.dtype) -> Pipeline:
    import diffusers
    from diffusers.loaders.single_file_utils import SingleFileComponentError
    from safetensors import SafetensorError

    options: dict[str, Any] = {"torch_dtype": dtype, "safety_checker": None}
    advice = ""
    try:
        path = local_source(source)
        if path.is_dir():
            return diffusers.DiffusionPipeline.from_pretrained(
                path, use_safetensors=True, local_files_only=True, **options
            )
        check_single_file(path)
        if config is None:
            advice = " Name the folder of its pipeline's configuration with --pipeline."
        else:
            options |= {"config": config, "local_files_only": Path(config).exists()}
        return _single_file_class(path, config).from_single_file(source, **options)
    except NotImplementedError as error:  # a parameter without a value stayed on torch's "meta" device
        expects = config or "its family"
        raise InputError(f"{source}: lacks tensors that {expects} expects. Is it whole, and of this family?") from error
    except (*_LOADING_ERRORS, SafetensorError, SingleFileComponentError) as error:
        raise InputError(f"{source}: diffusers cannot load it ({first_line(error)}).{advice}") from error


def local_source(source: Path | str) -> Path:
    """The file or folder that a source is on this disk; a hub id (`owner/name`) is fetched first, where it is not.

    Raises InputError for what is neither.
    """
    path, text = Path(source), str(source)
    if path.is_file():
        return path
    if path.is_dir():
        if not (path / "model_index.json").is_file():
            raise InputError(f"{path}: is no diffusers folder; it has no model_index.json.")
        return path
    if path.suffix == ".safetensors" or path.is_absolute() or text.startswith(".") or text.count("/") != 1:
        raise InputError(f"{text}: there is no such file or folder.")
    import diffusers

    try:
        return Path(diffusers.DiffusionPipeline.download(text, use_safetensors=True))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{text}: is no file here, and cannot be fetched from the hub ({first_line(error)})."
        ) from error


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


def _single_file_class(path: Path, config: str | None) -> Any:
    """The pipeline class: as the configuration folder says, else by the file's own text encoders."""
    import diffusers
    from safetensors import safe_open

    index = Path(config or "") / "model_index.json"
    if config is not None and Path(config).exists():
        try:
            name = str(json.loads(index.read_text(encoding="utf-8"))["_class_name"])
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                f"{config}: is no pipeline configuration; its model_index.json cannot be read ({error})."
            ) from None
        found = getattr(diffusers, name, None)
        if found is None or not hasattr(found, "from_single_file"):
            raise InputError(f"{index}: '{name}' is no diffusers pipeline that reads single files.")
        return found
    with safe_open(path, framework="numpy") as file:
        two_encoders = any(key.startswith("conditioner.embedders.1.") for key in file.keys())  # noqa: SIM118 - no iterator
    return diffusers.StableDiffusionXLPipeline if two_encoders else diffusers.StableDiffusionPipeline


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


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type where it has none."""
    return next((line for line in str(error).strip().splitlines() if line), type(error).__name__)
