"""A single file is written whole, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from merger.errors import CheckpointError
from scripts.single_file import save_single_file

UNET = {"block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768, "attention_head_dim": 8}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}


def test_tensors_that_are_not_the_configurations_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="U-Net's tensors are not those of its configuration"):
        save_single_file(
            tmp_path / "x.safetensors",
            unet={"conv_in.weight": torch.zeros(1)},
            vae={},
            text_encoder={},
            unet_config=UNET,
            vae_config=VAE,
        )
    assert not list(tmp_path.iterdir())
