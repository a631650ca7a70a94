"""Checkpoints and recipes with something broken in them, made from a seed: what an inspection must answer in a line."""

from __future__ import annotations

import contextlib
import io
import json
import random
import resource
import struct
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

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
    "v_pred",
    "scaled_fp8",
    "__metadata__",
)
ODD_METADATA: tuple[Any, ...] = (
    {"layermerge.recipe": "{"},
    {"layermerge.recipe": "[" * 100_000},
    {"layermerge.recipe": json.dumps({"weights": {"a": {"b": 1}}, "donors": [{"name": []}], "base": 3})},
    {"layermerge.recipe": json.dumps({"weights": [], "donors": {}, "base": {"name": "x"}, "version": None})},
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
        for key in dice.sample(keys, len(keys) - dice.randint(1, 5)):
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
    _key,
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


def broken_recipe(sound: dict[str, Any], seed: int) -> str:
    """The text of a recipe with a few changes."""
    dice = random.Random(seed)
    if dice.random() < 0.1:
        return dice.choice(
            ("", "[" * 50_000, '{"a":' * 20_000, "nul", "3", '"x"', "[]", "\ufeff{}", "{}{}", "9" * 5000)
        )
    recipe = json.loads(json.dumps(sound))
    for _ in range(dice.randint(1, 3)):
        places = list(_places(recipe))
        holder, key = dice.choice(places)
        if isinstance(holder, dict) and dice.random() < 0.2:
            holder[dice.choice(("", "x", "*", "[", "weights", "𝟙", "block_names", "clamp"))] = dice.choice(ODD_VALUES)
        elif dice.random() < 0.2:
            del holder[key]
        else:
            odd = (*ODD_VALUES, "~nouser/x", "/", "..", "x" * 5000, "a\u0000b", "*", "[", "[!", "owner/name")
            holder[key] = dice.choice(odd)
        if not recipe:
            break
    text = json.dumps(recipe, ensure_ascii=dice.random() < 0.5)
    if dice.random() < 0.1:
        place = dice.randrange(len(text))
        text = text[:place] + dice.choice('{}[]",:9eE-\\') + text[place + 1 :]
    return text.replace("Infinity", dice.choice(("Infinity", "1e999", "9" * 5000)))


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(table or list, key) of every value in a recipe."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in list(inside):
        yield value, key
        yield from _places(part)


@dataclass(frozen=True)
class Answer:
    """What a command did: exit status, the error's last line, a traceback if one got out, CPU seconds, new memory."""

    status: int
    said: str
    traceback: str
    seconds: float
    memory: int


def answer(arguments: list[str]) -> Answer:
    """Run a `merger` command in this process. memory: bytes by which the process's largest size grew."""
    from merger.app.cli import main

    out, err, caught, status = io.StringIO(), io.StringIO(), "", 1
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(arguments)
        except SystemExit as error:
            status = int(error.code or 0)
        except Exception:  # noqa: BLE001  whatever gets out is what is looked for
            caught = traceback.format_exc()
    seconds = time.process_time() - began
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    lines = err.getvalue().strip().splitlines() or out.getvalue().strip().splitlines()
    return Answer(status, lines[-1] if lines else "", caught, seconds, grown)


def sound_recipe(base: Path, donor: Path) -> dict[str, Any]:
    """A recipe with every key that there is."""
    from merger.checkpoints.checkpoint import open_checkpoint

    source = {"path": str(base), "name": "base", "sha256": open_checkpoint(base).sha256, "hub": ""}
    other = {"path": str(donor), "name": "donor"}
    return {
        "base": source,
        "donors": [other],
        "granularity": "block",
        "weights": {"*": {"donor": 0.3}, "OUT*": {"donor": 0.5}},
        "dtype": "base",
        "method": "linear",
        "version": "0.2.0",
        "components": ["denoiser"],
        "clamp": False,
        "block_names": "community",
    }


def small_files(folder: Path) -> dict[str, Path]:
    """Sound files to break, by name: a U-Net's checkpoint, a transformer's, and an adapter for the first."""
    from safetensors.torch import save_file

    module = "lora_unet_mid_block_resnets_0_conv1"
    tensors = {
        f"{module}.lora_up.weight": torch.ones(16, 2, 1, 1),
        f"{module}.lora_down.weight": torch.ones(2, 16, 3, 3),
        f"{module}.alpha": torch.tensor(2.0),
        "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": torch.ones(32, 2),
        "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.ones(2, 16),
    }
    save_file(tensors, folder / "lora.safetensors", metadata={"format": "pt"})
    return {"lora": folder / "lora.safetensors"}
