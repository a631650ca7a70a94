"""The denoiser in a file's keys: which of them it is, under diffusers names, and of which family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from benchmark.pipelines.key_names import by_usual_key
from benchmark.pipelines.variants import variant_in
from merger.checkpoints.families import markers, transformer_family, unet_family
from merger.checkpoints.headers import FLOATING
from merger.checkpoints.kinds import is_controlnet, kind_of
from merger.checkpoints.names.pieces import Piece, whole
from merger.checkpoints.names.transformer import network_shapes, transformer_names_in
from merger.checkpoints.names.unet import DENOISER_PREFIX, denoiser_names, denoiser_names_in
from merger.checkpoints.source import TensorInfo, assembled
from merger.checkpoints.weight_files import INDEX, PICKLES, files_of_variant, shards
from merger.errors import CheckpointError, NoDenoiser

_INPUT = "conv_in.weight"
_UNET_MARK = "down_blocks.0.resnets.0.conv1.weight"
_UNET_PREFIXES = ("", "unet.", DENOISER_PREFIX, "diffusion_model.")
_UNET_PARTS = (
    "conv_in.",
    "conv_out.",
    "conv_norm_out.",
    "time_embedding.",
    "add_embedding.",
    "class_embedding.",
    "encoder_hid_proj.",
    "down_blocks.",
    "mid_block.",
    "up_blocks.",
)
SCALES = (".scale_weight", ".weight_scale", "scaled_fp8")
"""Ends of the keys that say that a file's weights are scaled, so quantised."""
_EMA = "model_ema.diffusion_model"

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class FoundDenoiser:
    """A denoiser in a file. own_names: whether the keys are diffusers' own. names: {diffusers name: its pieces}."""

    family: str
    own_names: bool
    names: Mapping[str, tuple[Piece, ...]]


def find_denoiser(path: Path, shapes: Shapes) -> FoundDenoiser:
    """Find the denoiser among a file's keys. shapes: {key: shape} of the whole file.

    Raises NoDenoiser, with the kind of weights they are, if there is none, and CheckpointError if diffusers' converter
    cannot read it.
    """
    try:
        kept = by_usual_key(shapes)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None
    usual = {key: shapes[own] for key, own in kept.items()}
    if (found := _find(path, usual)) is not None:
        names = {
            name: tuple(replace(piece, key=kept[piece.key]) for piece in each) for name, each in found.names.items()
        }
        return replace(found, names=names)
    if any(key.startswith(_EMA) for key in usual):
        words = "only an EMA copy of a denoiser ('model_ema.'), whose names have lost their dots"
        raise NoDenoiser(f"{path}: holds {words}. Use the file with the model itself.", "ema", words)
    kind, words = kind_of(usual)
    if kind != "unknown":
        raise NoDenoiser(f"{path}: is {words}. There is no denoiser in it.", kind, words)
    first = next(iter(shapes), "")
    why = f"holds no denoiser that is known here ({len(shapes)} tensors, first '{first}')."
    raise NoDenoiser(f"{path}: {why}", kind, words)


def _find(path: Path, shapes: Shapes) -> FoundDenoiser | None:
    """The denoiser among keys in diffusers' spelling; None if there is none."""
    if is_controlnet(shapes):  # half of a ControlNet looks like a denoiser
        return None
    if (unet := _find_unet(path, shapes)) is not None:
        return unet
    if kind_of(shapes)[0] == "lora":  # whose keys begin as a transformer's do
        return None
    stem, names = transformer_names_in(shapes, str(path), markers())
    if not names:
        return None
    own = all(len(each) == 1 and each[0].key.endswith(name) for name, each in names.items())
    return FoundDenoiser(stem or transformer_family(names), own, names)


def _find_unet(path: Path, shapes: Shapes) -> FoundDenoiser | None:
    for prefix in _UNET_PREFIXES:
        keys: Mapping[str, str] = {}
        own = prefix + _UNET_MARK in shapes and prefix + _INPUT in shapes
        if own:
            bare = {key.removeprefix(prefix): key for key in shapes if key.startswith(prefix)}
            keys = {name: key for name, key in bare.items() if name.startswith(_UNET_PARTS)}
        elif prefix + "input_blocks.0.0.weight" in shapes:
            keys = denoiser_names_in(shapes, prefix, str(path))
        if _INPUT in keys:
            used = set(keys.values())
            others = [key for key in shapes if key not in used]
            family = unet_family({name: shapes[key] for name, key in keys.items()}, others)
            return FoundDenoiser(family, own, {name: (whole(key, shapes[key]),) for name, key in keys.items()})
    return None


def denoiser_tensors(
    path: Path, names: Mapping[str, tuple[Piece, ...]], tensors: Mapping[str, TensorInfo]
) -> dict[str, TensorInfo]:
    """{diffusers name: TensorInfo} in the order of the file. tensors: all of the file, by key.

    Raises CheckpointError for quantised weights, which cannot be blended.
    """
    if scaled := next((key for key in tensors if key.endswith(SCALES)), None):
        raise CheckpointError(f"{path}: '{scaled}' says its weights are scaled: quantised models cannot be blended.")
    place = {key: i for i, key in enumerate(tensors)}
    denoiser = {}
    for name, pieces in sorted(names.items(), key=lambda item: (place[item[1][0].key], item[1][0].start)):
        for piece in pieces:
            if (dtype := tensors[piece.key].dtype) not in FLOATING:
                raise CheckpointError(f"{path}: '{piece.key}' is {dtype}: quantised models cannot be blended.")
        denoiser[name] = assembled(pieces, tensors)
    return denoiser


def check_names(path: Path, found: Mapping[str, object], config: Mapping[str, object]) -> None:
    """Make sure that a denoiser has the tensors of a network, by name.

    found: {diffusers name: anything}. config: the network's `config.json`. Raises CheckpointError naming the first
    tensor that is missing or too many.
    """
    network = str(config.get("_class_name", "UNet2DConditionModel"))
    unet = network.startswith("UNet")
    wanted = list(denoiser_names(config) if unet else network_shapes(config, f"{path}: the pipeline's configuration"))
    missing = [name for name in wanted if name not in found]
    known = set(wanted)
    extra = [name for name in found if name not in known]
    if missing or extra:
        what = f"lacks '{(missing or extra)[0]}'" if missing else f"has '{extra[0]}' besides"
        part = "unet" if unet else "transformer"
        raise CheckpointError(
            f"{path}: {what}, so it is not the {'U-Net' if unet else 'transformer'} of the pipeline's "
            f"{part}/config.json ({len(missing)} tensors missing, {len(extra)} too many)."
        )


def denoiser_folder(folder: Path) -> Path:
    """Where a diffusers folder has its denoiser: in a folder of its own, or at the top."""
    return next((folder / part for part in ("unet", "transformer") if (folder / part).is_dir()), folder)


def denoiser_files(folder: Path) -> tuple[Path, ...]:
    """The weight files of a diffusers folder's denoiser: one, or its shards. Raises CheckpointError if it has none."""
    inside = denoiser_folder(folder)
    if (index := inside / f"diffusion_pytorch_model{INDEX}").exists():
        return shards(index)
    if (whole_file := inside / "diffusion_pytorch_model.safetensors").exists():
        return (whole_file,)
    if variant := variant_in(inside):
        return files_of_variant(inside, variant)
    if files := sorted(inside.glob("*-of-*.safetensors")):
        return tuple(files)
    if any(file.suffix in PICKLES for file in inside.iterdir()):
        raise CheckpointError(
            f"{inside}: holds pickle weights only, which are not opened. Save it as safetensors first."
        )
    raise CheckpointError(f"{inside}: no denoiser weights here (a configuration folder belongs under 'pipeline').")
