"""Name translation: complete, one to one, and what diffusers itself reads back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from merger.checkpoints.names.unet import denoiser_names, denoiser_names_in, text_encoder_names, vae_names
from merger.errors import CheckpointError

SD15 = {"block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768, "attention_head_dim": 8}
SDXL = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SD_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}


# Pairs as published: names in diffusers' stable-diffusion-v1-5/unet, keys in v1-5-pruned.
@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("conv_in.weight", "input_blocks.0.0.weight"),
        ("time_embedding.linear_2.bias", "time_embed.2.bias"),
        ("down_blocks.0.resnets.1.time_emb_proj.weight", "input_blocks.2.0.emb_layers.1.weight"),
        ("down_blocks.1.downsamplers.0.conv.weight", "input_blocks.6.0.op.weight"),
        ("down_blocks.1.resnets.0.conv_shortcut.weight", "input_blocks.4.0.skip_connection.weight"),
        (
            "down_blocks.2.attentions.1.transformer_blocks.0.attn2.to_k.weight",
            "input_blocks.8.1.transformer_blocks.0.attn2.to_k.weight",
        ),
        ("mid_block.resnets.1.conv2.weight", "middle_block.2.out_layers.3.weight"),
        ("mid_block.attentions.0.proj_in.weight", "middle_block.1.proj_in.weight"),
        ("up_blocks.0.upsamplers.0.conv.bias", "output_blocks.2.1.conv.bias"),
        ("up_blocks.1.upsamplers.0.conv.bias", "output_blocks.5.2.conv.bias"),
        (
            "up_blocks.3.attentions.2.transformer_blocks.0.ff.net.0.proj.weight",
            "output_blocks.11.1.transformer_blocks.0.ff.net.0.proj.weight",
        ),
        ("conv_norm_out.weight", "out.0.weight"),
        ("conv_out.weight", "out.2.weight"),
    ],
)
def test_stable_diffusion_1_names_are_the_published_ones(name: str, key: str) -> None:
    assert denoiser_names(SD15)[name] == f"model.diffusion_model.{key}"


@pytest.mark.parametrize(("config", "count"), [(SD15, 686), (SDXL, 1680)])
def test_every_denoiser_tensor_has_one_key(config: dict[str, object], count: int) -> None:
    names = denoiser_names(config)
    assert len(names) == len(set(names.values())) == count
    assert denoiser_names_in(names.values()) == names  # without a configuration, from a file's keys alone


def test_keys_that_belong_to_no_known_tensor_are_left_out() -> None:
    keys = [*denoiser_names(SD15).values(), "first_stage_model.decoder.conv_in.weight", "alphas_cumprod"]
    assert set(denoiser_names_in(keys).values()) == set(keys[:-2])
    assert denoiser_names_in(["something.else"]) == {}


def test_every_vae_tensor_has_one_key() -> None:
    names = vae_names(SD_VAE)
    assert len(names) == len(set(names.values())) == 248
    assert (
        names["decoder.mid_block.attentions.0.to_out.0.weight"]
        == "first_stage_model.decoder.mid.attn_1.proj_out.weight"
    )
    assert names["decoder.up_blocks.0.resnets.0.conv1.weight"] == "first_stage_model.decoder.up.3.block.0.conv1.weight"
    assert (
        names["encoder.down_blocks.1.downsamplers.0.conv.bias"]
        == "first_stage_model.encoder.down.1.downsample.conv.bias"
    )


def test_text_encoder_names_of_either_transformers_end_under_one_key() -> None:
    key = "cond_stage_model.transformer.text_model.final_layer_norm.bias"
    names = text_encoder_names(["final_layer_norm.bias", "text_model.final_layer_norm.bias"])
    assert set(names.values()) == {key}


def test_a_u_net_the_layout_has_no_place_for_is_refused() -> None:
    with pytest.raises(CheckpointError, match="layers_per_block"):
        denoiser_names(SD15 | {"layers_per_block": (2, 2, 2, 1)})


def test_a_single_file_draws_the_same_image(
    tiny_family: dict[str, Path], tiny_pipeline_folder: Path, tiny_diffusers_folder: Path
) -> None:
    from diffusers import StableDiffusionPipeline

    single = StableDiffusionPipeline.from_single_file(
        tiny_family["base"], config=str(tiny_pipeline_folder), local_files_only=True, safety_checker=None
    )
    folder = StableDiffusionPipeline.from_pretrained(tiny_diffusers_folder, local_files_only=True)
    images = []
    for pipeline in (single, folder):
        for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
            module.half().float()  # the file is fp16; the folder is rounded as it was
        pipeline.set_progress_bar_config(disable=True)
        seed = torch.Generator().manual_seed(1)
        drawn = pipeline(
            "blue hair, smile", num_inference_steps=3, generator=seed, output_type="np", height=32, width=32
        )
        images.append(drawn.images)
    assert images[0].std() > 0.01
    assert np.array_equal(*images)


def test_the_attention_of_the_vae_is_kept_as_convolutions(tiny_family: dict[str, Path]) -> None:
    from safetensors import safe_open

    with safe_open(tiny_family["base"], framework="pt") as file:
        shape = file.get_slice("first_stage_model.encoder.mid.attn_1.q.weight").get_shape()
        assert shape[2:] == [1, 1]
        assert len(file.get_slice("first_stage_model.encoder.mid.attn_1.q.bias").get_shape()) == 1
