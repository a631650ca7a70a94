"""Families of U-Nets: recognised from tiny files of the true structure; what they predict; what is none of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from merger.checkpoints.checkpoint import open_checkpoint, read_unet_config
from merger.checkpoints.compatibility import check_compatible
from merger.checkpoints.families import prediction_of
from merger.checkpoints.inspect import format_inspection, inspect_files
from merger.checkpoints.kinds import kind_of
from merger.checkpoints.names.transformer import network_shapes
from merger.checkpoints.names.unet import DENOISER_PREFIX, denoiser_names
from merger.errors import CheckpointError, NoDenoiser

Config = Callable[[str], dict[str, Any]]


def write_unet(config: dict[str, Any], file: Path, prefix: str = DENOISER_PREFIX, **more: torch.Tensor) -> Path:
    """A random U-Net under its original keys."""
    shapes = network_shapes(config, str(file))
    names = denoiser_names(config)
    tensors = {
        names[name].replace(DENOISER_PREFIX, prefix): torch.randn(shape).half() for name, shape in shapes.items()
    }
    save_file(tensors | more, file)
    return file


def test_every_family_of_u_nets_is_recognised_whole(unet: str, denoiser_config: Config, tmp_path: Path) -> None:
    config = denoiser_config(unet)
    file = write_unet(config, tmp_path / "x.safetensors", **{"model_ema.decay": torch.zeros(())})
    checkpoint = open_checkpoint(file, unet_config=config)
    assert (checkpoint.family, checkpoint.layout) == (unet, "original")
    shapes = network_shapes(config, unet)
    assert {name: info.shape for name, info in checkpoint.denoiser.items()} == shapes
    assert checkpoint.other_keys == ("model_ema.decay",)
    found = inspect_files([file])
    assert f"{unet} U-Net, original layout" in format_inspection(found)
    assert sum(found["files"][0]["layers"].values()) == checkpoint.parameters


@pytest.mark.parametrize("prefix", ["", "unet.", "diffusion_model."])
def test_u_nets_alone_are_found_under_other_prefixes(prefix: str, denoiser_config: Config, tmp_path: Path) -> None:
    file = write_unet(denoiser_config("sd1"), tmp_path / "x.safetensors", prefix)
    assert len(open_checkpoint(file).denoiser) == 684


def test_a_diffusers_file_may_hold_more_than_the_u_net(denoiser_config: Config, tmp_path: Path) -> None:
    shapes = network_shapes(denoiser_config("sd1"), "x")
    tensors = {f"unet.{name}": torch.zeros(shape) for name, shape in shapes.items()}
    extra = {"vae.decoder.conv_in.weight": torch.zeros(1), "unet.ema.decay": torch.zeros(1)}
    save_file(tensors | extra, tmp_path / "x.safetensors")
    checkpoint = open_checkpoint(tmp_path / "x.safetensors")
    assert checkpoint.layout == "diffusers"
    assert checkpoint.denoiser.keys() == shapes.keys()
    assert set(checkpoint.other_keys) == set(extra)


@pytest.mark.parametrize(
    ("donor", "said"),
    [
        ("sd1-inpainting", "an inpainting model?"),
        ("sd1-instruct-pix2pix", "an image-editing model"),
        ("sd2", "a sd2 model; the base is sd1"),
        ("sdxl", "a sdxl model; the base is sd1"),
    ],
)
def test_families_that_do_not_fit_are_told_why(donor: str, said: str, denoiser_config: Config, tmp_path: Path) -> None:
    base = open_checkpoint(write_unet(denoiser_config("sd1"), tmp_path / "base.safetensors"))
    other = open_checkpoint(write_unet(denoiser_config(donor), tmp_path / "other.safetensors"))
    with pytest.raises(CheckpointError, match=f"^other.safetensors: .*{said.replace('?', '[?]')}"):
        check_compatible(base, [other])


def test_a_v_prediction_sdxl_says_so_by_its_markers(denoiser_config: Config, tmp_path: Path) -> None:
    markers = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    file = write_unet(denoiser_config("sdxl"), tmp_path / "noob.safetensors", **markers)
    checkpoint = open_checkpoint(file)
    assert (checkpoint.prediction, checkpoint.zero_snr) == ("v", True)
    assert "predicts v, zero terminal SNR" in format_inspection(inspect_files([file]))


def test_stable_diffusion_2_is_told_apart_by_the_pipeline(denoiser_config: Config, tmp_path: Path) -> None:
    config = denoiser_config("sd2")
    file = write_unet(config, tmp_path / "x.safetensors")
    assert open_checkpoint(file).prediction == "unknown"
    assert "noise (512) or v (768-v)" in format_inspection(inspect_files([file]))
    import json

    for folder, text in (("unet", json.dumps(config)), ("scheduler", '{"prediction_type": "v_prediction"}')):
        (tmp_path / "pipeline" / folder).mkdir(parents=True)
        name = "config.json" if folder == "unet" else "scheduler_config.json"
        (tmp_path / "pipeline" / folder / name).write_text(text)
    assert read_unet_config(tmp_path / "pipeline")["cross_attention_dim"] == 1024
    assert inspect_files([file], tmp_path / "pipeline")["files"][0]["prediction"] == "v"


@pytest.mark.parametrize(
    ("family", "keys", "metadata", "scheduler", "wanted"),
    [
        ("sd1", [], {}, None, ("epsilon", False)),
        ("sd2", [], {"modelspec.architecture": "stable-diffusion-v2-768-v"}, None, ("v", False)),
        ("sd2", [], {"modelspec.architecture": "stable-diffusion-v2-512"}, None, ("epsilon", False)),
        ("sd2", [], {"modelspec.prediction_type": "v"}, None, ("v", False)),
        ("sd2", [], {}, {"prediction_type": "epsilon"}, ("epsilon", False)),
        ("sd2-inpainting", [], {}, None, ("epsilon", False)),
        ("sdxl", [], {}, {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}, ("v", True)),
        ("sd3", [], {}, None, ("flow", False)),
    ],
)
def test_what_a_model_predicts(
    family: str, keys: list[str], metadata: dict[str, str], scheduler: Any, wanted: tuple[str, bool]
) -> None:
    assert prediction_of(family, keys, metadata, scheduler) == wanted


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("lora_unet_down_blocks_0.lora_down.weight", "lora"),
        ("unet.x.to_q.lora_A.weight", "lora"),
        ("lycoris_x.hada_w1_a", "lora"),
        ("lora_unet_x.lokr_w1", "lora"),
        ("control_model.time_embed.0.weight", "controlnet"),
        ("controlnet_cond_embedding.conv_in.weight", "controlnet"),
        ("decoder.conv_in.weight", "vae"),
        ("first_stage_model.encoder.down.0.block.0.conv1.weight", "vae"),
        ("text_model.embeddings.token_embedding.weight", "text-encoder"),
        ("encoder.block.0.layer.0.SelfAttention.q.weight", "text-encoder"),
        ("cond_stage_model.model.transformer.resblocks.0.ln_1.bias", "text-encoder"),
        ("down_blocks.0.motion_modules.0.temporal_transformer.norm.bias", "motion"),
        ("ip_adapter.1.to_k_ip.weight", "ip-adapter"),
        ("model.0.weight", "upscaler"),
        ("whatever", "unknown"),
    ],
)
def test_other_kinds_of_weights(key: str, kind: str, tmp_path: Path) -> None:
    assert kind_of([key])[0] == kind
    save_file({key: torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(NoDenoiser, match=r"x.safetensors: (is|holds no)") as caught:
        open_checkpoint(tmp_path / "x.safetensors")
    assert caught.value.kind == kind


def test_a_control_net_under_diffusers_names_is_no_u_net(denoiser_config: Config, tmp_path: Path) -> None:
    shapes = network_shapes(denoiser_config("sd1"), "x")
    tensors = {name: torch.zeros(shape) for name, shape in shapes.items() if not name.startswith("up_blocks")}
    save_file(tensors | {"controlnet_down_blocks.0.weight": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(NoDenoiser, match="is a ControlNet: it steers a denoiser and is none"):
        open_checkpoint(tmp_path / "x.safetensors")


@pytest.mark.parametrize("mark", ["scaled_fp8", "model.diffusion_model.out.2.scale_weight"])
def test_scaled_weights_are_refused(mark: str, denoiser_config: Config, tmp_path: Path) -> None:
    file = write_unet(denoiser_config("sd1"), tmp_path / "x.safetensors", **{mark: torch.zeros(1)})
    with pytest.raises(CheckpointError, match="weights are scaled: quantised models cannot be blended"):
        open_checkpoint(file)
