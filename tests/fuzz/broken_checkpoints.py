"""Files of weights with something broken in them, made from a seed: in the header, in a few values, or cut short."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ODD_NUMBERS: tuple[float, ...] = (-1, 0, 1, 2, 3, 5, 9, 2**31, 2**63, 2**64, 10**400, 0.5, 1e999, True)
ODD_VALUES: tuple[Any, ...] = (None, [], {}, "", "x", "\u0000", "𝟙", [[[]]], {"a": {}}, *ODD_NUMBERS)
ODD_DTYPES = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F4", "F6_E2M3", "C64", "I8", "U8", "BOOL", "Q4", "", 3)
ODD_KEYS = (
    "",
    ".",
    "..",
    "conv_in.weight",
    "conv_out.weight",
    "down_blocks.0.resnets.0.conv1.weight",
    "down_blocks.9.resnets.0.conv1.weight",
    "mid_block.resnets.0.conv1.weight",
    "model.diffusion_model.input_blocks.0.0.weight",
    "model.diffusion_model.input_blocks.x.0.weight",
    "model.diffusion_model.input_blocks..0.op.weight",
    "model.diffusion_model.input_blocks.99.0.op.weight",
    "model.diffusion_model.label_emb.0.0.weight",
    "model.diffusion_model.label_emb.weight",
    "model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight",
    "model.diffusion_model.double_blocks.0.img_attn.qkv.weight",
    "model.diffusion_model.layers.0.attention.qkv.weight",
    "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight",
    "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight",
    "conditioner.embedders.1.model.text_projection",
    "first_stage_model.decoder.conv_in.weight",
    "transformer_blocks.0.attn.to_q.weight",
    "single_transformer_blocks.0.proj_mlp.weight",
    "pos_embed.proj.weight",
    "all_x_embedder.2-1.weight",
    "lora_unet_mid_block_resnets_0_conv1.lora_up.weight",
    "lora_unet_mid_block_resnets_0_conv1.lora_down.weight",
    "lora_unet_mid_block_resnets_0_conv1.alpha",
    "lora_te_text_model_encoder_layers_0_mlp_fc1.hada_w1_a",
    "unet.mid_block.resnets.0.conv1.lora_A.default.weight",
    "unet.mid_block.resnets.0.conv1.lora_B.bias",
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight",
    "double_blocks.0.processor.qkv_lora1.up.weight",
    "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.lora_up.weight",
    "bundle_emb.x.clip_l",
    "lora_unet_mid_block_resnets_0_conv1.oft_blocks",
    "unet.x.lora_magnitude_vector",
    "v_pred",
    "scaled_fp8",
    "__metadata__",
)
PARTS = (  # how keys of adapters end
    *("lora_up.weight", "lora_down.weight", "lora_mid.weight", "lora_A.weight", "lora_B.weight", "lora_B.bias"),
    *("alpha", "dora_scale", "diff", "diff_b", "w_norm", "b_norm", "lora_magnitude_vector", "lokr_w1", "lokr_w2"),
    *("hada_w1_a", "hada_w1_b", "hada_t1", "hada_t2", "lokr_w1_a", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
)
ODD_METADATA: tuple[Any, ...] = (
    {"layermerge.recipe": "{"},
    {"layermerge.recipe": "[" * 100_000},
    {"layermerge.recipe": json.dumps({"weights": {"a": {"b": 1}}, "donors": [{"name": []}], "base": 3})},
    {"layermerge.recipe": json.dumps({"weights": [], "donors": {}, "base": {"name": "x"}, "version": None})},
    {"lora_adapter_metadata": "{"},
    {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": [], "unet.r": "x"})},
    {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 1, "unet.alpha_pattern": {"(": 1}})},
    {"lora_adapter_metadata": "[" * 100_000},
    {"modelspec.prediction_type": "v", "modelspec.architecture": "stable-diffusion-v2-512"},
    {"a": 3},
    {"a": None},
    [],
    "text",
    3,
    None,
)


@dataclass(frozen=True)
class Original:
    """A sound file that is broken: its header's table and the bytes of its tensors."""

    table: dict[str, Any]
    body: bytes

    @classmethod
    def read(cls, file: Path) -> Original:
        """From a `.safetensors` file."""
        content = file.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        return cls(json.loads(content[8 : 8 + length]), content[8 + length :])


def broken_checkpoint(original: Original, seed: int) -> bytes:
    """A file with a few changes in its header, some of which keep the offsets right."""
    dice = random.Random(seed)
    table = {key: dict(entry) for key, entry in original.table.items()}
    body = original.body
    keys = [key for key in table if key != "__metadata__"]
    if dice.random() < 0.1:  # of few tensors, which look like another kind of model
        for key in dice.sample(keys, max(0, len(keys) - dice.randint(1, 5))):
            del table[key]
        table, body = _packed(table, body)
    for _ in range(dice.randint(1, 4)):
        table, body = dice.choice(_CHANGES)(dice, table, body)
    if dice.random() < 0.8:
        table, body = _packed(table, body)
    head = json.dumps(table, ensure_ascii=dice.random() < 0.5).encode("utf-8", "surrogatepass")
    content = struct.pack("<Q", len(head)) + head + body
    if dice.random() < 0.05:
        content = content[: dice.randrange(len(content))]
    if dice.random() < 0.05:
        place = dice.randrange(min(len(content), 2000))
        content = content[:place] + bytes([dice.randrange(256)]) + content[place + 1 :]
    return content


Change = Callable[[random.Random, dict[str, Any], bytes], tuple[dict[str, Any], bytes]]


def _shape(dice: random.Random, table: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
    """Another shape: as many elements in another number of dimensions, or anything."""
    entry = table.get(dice.choice([*table]))
    if not isinstance(entry, dict) or not isinstance(entry.get("shape"), list):
        return table, body
    shape = entry["shape"]
    total = 1
    for number in shape:
        total *= number if isinstance(number, int) and 0 <= number < 2**31 else 1
    entry["shape"] = dice.choice(
        (
            [total],
            [],
            [1] * dice.randint(1, 40) + [total],
            [total, 1, 1],
            shape[::-1],
            [*shape, 1],
            shape[:-1],
            [0, *shape],
            [0],
            [0, 10**9],
            [2**20, 0],
            [7] * dice.choice((3, 300)),
            dice.choice(ODD_VALUES),
            [dice.choice(ODD_VALUES)],
        )
    )
    return table, body


def _dtype(dice: random.Random, table: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
    entry = table.get(dice.choice([*table]))
    if isinstance(entry, dict):
        entry["dtype"] = dice.choice(ODD_DTYPES)
    return table, body


def _offsets(dice: random.Random, table: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
    entry = table.get(dice.choice([*table]))
    if isinstance(entry, dict):
        entry["data_offsets"] = dice.choice(([0, dice.choice(ODD_NUMBERS)], dice.choice(ODD_VALUES)))
    return table, body


def _key(dice: random.Random, table: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
    """Another key for a tensor: odd, or its own with a part exchanged, left out or doubled."""
    key = dice.choice([*table])
    parts = key.split(".")
    place = dice.randrange(len(parts))
    changed = [*parts]
    changed[place : place + 1] = dice.choice(([], [parts[place]] * 2, [str(dice.choice(ODD_NUMBERS))], ["𝟙"], ["x"]))
    other = dice.choice((".".join(changed), dice.choice(ODD_KEYS), dice.choice(ODD_KEYS)))
    return {other if each == key else each: entry for each, entry in table.items()}, body


def _part(dice: random.Random, table: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
    """Another part of an adapter's module in the place of one."""
    named = {each: part for each in table for part in PARTS if each.endswith(f".{part}")}
    if not named:
        return _key(dice, table, body)
    key = dice.choice([*named])
    other = key.removesuffix(named[key]) + dice.choice(PARTS)
    return {other if each == key else each: entry for each, entry in table.items()}, body


def _values(dice: random.Random, table: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
    """A few values that are very large, infinite or NaN in most dtypes, or anything."""
    changed = bytearray(body)
    for _ in range(dice.randint(1, 3)):
        place = dice.randrange(len(changed) + 1) // 4 * 4
        changed[place : place + 4] = dice.choice((b"\xff\x7f\xff\x7f", b"\x00\x00\x80\x7f", dice.randbytes(4)))
    return table, bytes(changed[: len(body)])


def _lost(dice: random.Random, table: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
    """Without all tensors whose key holds some part of a key."""
    key = dice.choice([*table])
    part = dice.choice(key.split("."))
    kept = {each: entry for each, entry in table.items() if part not in each.split(".")}
    return kept or table, body


def _prefix(dice: random.Random, table: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
    """Every key under another prefix."""
    old = dice.choice(("model.diffusion_model.", "first_stage_model.", "cond_stage_model.", ""))
    new = dice.choice(("", "unet.", "transformer.", "model.", "_orig_mod.", "module.", "model_ema.", "state_dict."))
    return {new + each.removeprefix(old): entry for each, entry in table.items()}, body


def _metadata(dice: random.Random, table: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
    return table | {"__metadata__": dice.choice(ODD_METADATA)}, body


def _entry(dice: random.Random, table: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
    return table | {dice.choice([*table]): dice.choice(ODD_VALUES)}, body


_CHANGES: tuple[Change, ...] = (
    _shape,
    _shape,
    _shape,
    _key,
    _key,
    _part,
    _values,
    _lost,
    _prefix,
    _dtype,
    _offsets,
    _metadata,
    _entry,
)


def _packed(table: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
    """The same tensors one behind the other, with as many bytes as their shapes take; sound where that is possible."""
    widths = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "C64": 8, "I8": 1, "U8": 1, "BOOL": 1}
    packed: dict[str, Any] = {}
    at = 0
    for key, entry in table.items():
        packed[key] = entry
        shape = entry.get("shape") if isinstance(entry, dict) else None
        dtype = entry.get("dtype") if isinstance(entry, dict) else None
        if not isinstance(shape, list) or not isinstance(dtype, str) or dtype not in widths:
            continue
        size = widths[dtype]
        for number in shape:
            size *= number if type(number) is int and 0 <= number < 2**40 else 1
        if size > 4_000_000:
            continue
        packed[key] = {**entry, "data_offsets": [at, at + size]}
        at += size
    return packed, (body * (at // max(len(body), 1) + 1))[:at]
