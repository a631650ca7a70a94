"""Small sound checkpoints of several layouts, of random weights, for the tests that break them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from merger.checkpoints.checkpoint import open_checkpoint
from tests.merger.conftest import small_sd3_keys, unet_config
from tests.merger.tiny_models import Family, Kind, make, save, whole_pipeline

_SCHEDULER = ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1})


def _sd1() -> Kind:
    return Kind("sd1", unet_config("sd1"), scheduler=_SCHEDULER)


def sd1_files(folder: Path) -> Family:
    """SD 1: a base, two donors, and the configuration of their pipeline."""
    (folder / "sd1").mkdir()
    return make(_sd1(), folder / "sd1")


def make_sound_files(folder: Path) -> dict[str, Path]:
    """Sound files, by name.

    `base` and `donor` (SD 1), `sdxl`, `sd3` under original keys, `unet` and `transformer` under diffusers names; and
    `folder`, SD 1 as diffusers keeps it, its U-Net with an index of one shard; and `pickle`.
    """
    xl = unet_config("sdxl") | {"projection_class_embeddings_input_dim": 36, "transformer_layers_per_block": (1, 1, 2)}
    one = sd1_files(folder)
    (folder / "xl").mkdir()
    kind = Kind("sdxl", xl, "StableDiffusionXLPipeline", "two clips", scheduler=_SCHEDULER, markers=("v_pred",))
    two = make(kind, folder / "xl")
    files = {"base": one.files["base"], "donor": one.files["one"], "sdxl": two.files["base"]}
    source = torch.Generator().manual_seed(0)
    files["sd3"] = folder / "sd3.safetensors"
    tensors = {key: torch.randn(shape, generator=source).half() for key, shape in small_sd3_keys().items()}
    save_file(tensors, files["sd3"])
    for name, original in (("unet", "base"), ("transformer", "sd3")):
        opened = open_checkpoint(files[original])
        files[name] = folder / f"{name}.safetensors"
        save_file({key: opened.read(key).contiguous().clone() for key in opened.denoiser}, files[name])
    files["folder"] = folder / "diffusers"
    save(whole_pipeline(_sd1()), files["folder"])
    _index(files["folder"] / "unet" / "diffusion_pytorch_model.safetensors")
    files["pickle"] = folder / "small.ckpt"
    torch.save({"state_dict": {key: value for key, value in tensors.items() if value.numel() < 300}}, files["pickle"])
    return files


def _index(weights: Path) -> None:
    """Makes one file of weights the only shard of its index."""
    shard = weights.with_name(f"{weights.stem}-00001-of-00001.safetensors")
    weights.rename(shard)
    from merger.checkpoints.headers import read_header

    table = {"metadata": {}, "weight_map": dict.fromkeys(read_header(shard).tensors, shard.name)}
    weights.with_name(f"{weights.name}.index.json").write_text(json.dumps(table))
