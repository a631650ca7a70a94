"""Models by hub id (`owner/name`, `owner/name@revision`): the copy in the cache if it is whole, else a download.

A whole copy is used as it is, without asking the network: a model does not change between two runs because somebody
uploaded another one. `hf download` updates the cache.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from benchmark.errors import InputError
from benchmark.pipelines.quiet import quiet_diffusers
from benchmark.pipelines.variants import PREFERRED
from benchmark.reading import NOT_JSON

Portion = Literal["whole", "denoiser", "vae", "configuration"]
"""What of a model is wanted: all that draws; the weights of the denoiser or of the VAE; the configuration alone."""

_SMALL = ("*.json", "*.txt", "*.model")
_DENOISERS = ("unet", "transformer")
_ALL: Mapping[Portion, tuple[str, ...]] = {
    "whole": (*_SMALL, "*/*.safetensors"),
    "denoiser": ("*.json", "unet/*.safetensors", "transformer/*.safetensors"),
    "vae": ("*.json", "vae/*.safetensors", "diffusion_pytorch_model.safetensors"),
    "configuration": _SMALL,
}
_UNUSED = ("safety_checker",)
_SMALL_PARTS = (
    "tokenizer",
    "scheduler",
    "feature_extractor",
    "image_processor",
    "processor",
    "image_noising_scheduler",
)


def fetch(hub_id: str, portion: Portion = "whole") -> Path:
    """The folder of a model on this disk. Raises InputError with the command that fetches the missing files."""
    folder = cached(hub_id)
    if folder is not None and not lacking(folder, portion):
        return folder
    from huggingface_hub.errors import HfHubHTTPError

    try:
        folder = _download(hub_id, portion)
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise InputError(_refusal(hub_id, portion, folder, error)) from error
    if lacking(folder, portion):
        raise InputError(_refusal(hub_id, portion, folder, None))
    return folder


def cached(hub_id: str) -> Path | None:
    """The folder of a model in the hub's cache, whole or not; None if it is not there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    repository, _, revision = hub_id.partition("@")
    try:
        return Path(snapshot_download(repository, revision=revision or None, local_files_only=True, allow_patterns=[]))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def lacking(folder: Path, portion: Portion = "whole") -> list[str]:
    """Patterns of the files that a diffusers folder lacks for `portion`; empty if it lacks nothing."""
    if portion in ("denoiser", "vae"):  # alone at the top of some repositories
        names = _DENOISERS if portion == "denoiser" else ("vae",)
        inside = next((folder / name for name in names if (folder / name).is_dir()), folder)
        return [] if _has_weights(inside) else list(_ALL[portion])
    try:
        index = dict(json.loads((folder / "model_index.json").read_text(encoding="utf-8")))
    except (*NOT_JSON, TypeError):
        return list(_ALL[portion])
    missing = []
    for name, kind in index.items():
        if name in _UNUSED or not isinstance(kind, list) or None in kind:
            continue
        if not any((folder / name).glob("*.json")):
            missing.append(f"{name}/*")
        elif portion == "whole" and not name.startswith(_SMALL_PARTS) and not _has_weights(folder / name):
            missing.append(f"{name}/*.safetensors")
    return missing


def command(hub_id: str, patterns: Sequence[str] = _ALL["whole"]) -> str:
    """The command that fetches these files into the cache; without patterns, all that draws."""
    repository, _, revision = hub_id.partition("@")
    words = ["hf", "download", repository, *(("--revision", revision) if revision else ())]
    for pattern in patterns:
        words += ["--include", pattern]
    return shlex.join(words)


def _download(hub_id: str, portion: Portion) -> Path:
    repository, _, revision = hub_id.partition("@")
    if portion == "whole":  # diffusers knows which files of a repository it will read
        return _download_whole(repository, revision)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(repository, revision=revision or None, allow_patterns=list(_ALL[portion])))


def _download_whole(repository: str, revision: str) -> Path:
    """Fetches all that draws: the plain weights, or those of a variant (fp16, ...) if a part has no others.

    diffusers does not look for a variant by itself. It raises an error without the plain weights of a part, or fetches
    the configuration alone. Raises what the first try raised if no variant does better.
    """
    import diffusers

    options = {"revision": revision or None, "use_safetensors": True, "safety_checker": None}
    folder, refused = None, None
    for variant in (None, *PREFERRED):
        try:
            with quiet_diffusers():
                folder = Path(diffusers.DiffusionPipeline.download(repository, variant=variant, **options))
        except (OSError, ValueError) as error:
            refused = refused or error
            if "variant=" not in str(error):  # the network's, or a repository that is none
                break
        else:
            if not lacking(folder):
                return folder
    if folder is None and refused is not None:
        raise refused
    assert folder is not None
    return folder


def _has_weights(folder: Path) -> bool:
    """Whether a component's weights are there: one file, or all the shards that an index names."""
    for index in folder.glob("*.safetensors.index*.json"):  # also a variant's: index.fp16.json
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (*NOT_JSON, KeyError, TypeError, AttributeError):
            return False
        return all((folder / str(name)).is_file() for name in names)
    return any(folder.glob("*.safetensors"))


def _refusal(hub_id: str, portion: Portion, folder: Path | None, error: Exception | None) -> str:
    patterns = list(_ALL[portion]) if folder is None else lacking(folder, portion)
    where = "is not here, neither as a folder nor in the hub's cache" if folder is None else "is not whole in the cache"
    reason = "" if error is None else f", and cannot be fetched ({_reason(error)})"
    return f"{hub_id}: {where}{reason}. Fetch it where there is a network: {command(hub_id, patterns)}"


def _reason(error: BaseException) -> str:
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    if any(isinstance(each, OfflineModeIsEnabled) for each in chain):
        return "HF_HUB_OFFLINE is set"
    if any(isinstance(each, (LocalEntryNotFoundError, ConnectionError)) for each in chain):
        return "the hub cannot be reached"
    lines = (line.strip() for line in str(error).splitlines())
    return next((line.rstrip(".")[:160] for line in lines if line), type(error).__name__)
