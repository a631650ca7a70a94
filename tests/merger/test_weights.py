"""Weights: what a number for each channel is, and what tables show of them."""

from __future__ import annotations

import numpy as np
import pytest

from merger.layers.channels import channels_of, widths
from merger.weights import Channels, as_json, by_channel, is_finite, key_of, matters, means

HALF = Channels([0.5, 0.25, 0.0])


def test_channels_are_frozen_and_equal_by_value() -> None:
    values = np.array([0.5, 0.25, 0.0], dtype=np.float32)
    mine = Channels(values)
    values[0] = 7  # what is outside is not the weights
    assert mine == HALF and hash(mine) == hash(HALF) and mine.digest == HALF.digest
    with pytest.raises(ValueError, match="read-only"):
        mine.values[0] = 1
    part = Channels(np.arange(6, dtype=np.float32)[1:4])
    assert part.values.tolist() == [1, 2, 3]
    assert Channels([0.5, 0.25]) != HALF and HALF != 0.5 and HALF.digest != Channels([0.25, 0.5, 0.0]).digest
    assert Channels([-0.0]) == Channels([0.0]) and Channels([-0.0]).digest == Channels([0.0]).digest


@pytest.mark.parametrize("wrong", [[], [[1.0]], 0.5])
def test_channels_are_a_list_of_numbers(wrong: object) -> None:
    with pytest.raises(ValueError, match="list of numbers"):
        Channels(wrong)  # type: ignore[arg-type]


def test_tables_show_means_and_keys_tell_weights_apart() -> None:
    weights = {"a": {"warm": HALF, "cool": 0.25}}
    assert means(weights) == {"a": {"warm": 0.25, "cool": 0.25}}
    assert as_json(weights) == {"a": {"warm": HALF.digest, "cool": 0.25}}
    assert key_of(weights) != key_of({"a": {"warm": Channels([0.25, 0.5, 0.0]), "cool": 0.25}})
    assert by_channel(weights) and not by_channel({"a": {"warm": 0.25}})
    assert matters(HALF) and not matters(Channels([0.0, -0.0])) and not matters(-0.0)
    assert not is_finite(Channels([0.0, np.inf])) and is_finite(HALF) and not is_finite(float("nan"))


@pytest.mark.parametrize(
    ("name", "shape", "count"),
    [
        ("down_blocks.0.resnets.0.conv1.weight", (320, 4, 3, 3), 320),
        ("mid_block.attentions.0.proj_in.weight", (64, 32), 64),
        ("conv_in.bias", (320,), 1),
        ("logit_scale", (), 1),
        ("time_embedding.linear_1.weight", (1280, 320), 1280),
        ("pos_embed.proj.weight", (24, 4, 2, 2), 24),
        ("pos_embed.pos_embed", (1, 36, 24), 1),
        ("class_embedding.weight", (1000, 64), 1),
        ("class_embedding.linear_1.weight", (64, 12), 64),
        ("text_encoder.embeddings.token_embedding.weight", (49408, 768), 1),
        ("text_encoder_2.embeddings.position_embedding.weight", (77, 1280), 1),
        ("text_encoder.encoder.layers.0.mlp.fc1.weight", (3072, 768), 3072),
        ("text_encoder_3.shared.weight", (32128, 4096), 1),
        ("text_encoder_3.encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", (32, 64), 1),
    ],
)
def test_a_matrix_has_a_weight_for_each_output_channel(name: str, shape: tuple[int, ...], count: int) -> None:
    assert channels_of(name, shape) == count
    assert widths({name: (name,)}, {name: shape}) == ({name: count} if count > 1 else {})
