"""Tensors of transformers in the original layout, as the tensors of diffusers that they consist of.

Original files keep several of diffusers' matrices as one (`qkv` for three), and adapters made for them (kohya's,
ComfyUI's, XLabs') change that one. The tables follow diffusers' converters of checkpoints
(`diffusers.loaders.single_file_utils`), which cannot be asked in this direction; a test compares them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Fused:
    """A tensor of the original layout: diffusers' tensors one below the other.

    swapped: the original has the two halves of its rows exchanged (scale and shift of the last normalisation).
    """

    names: tuple[str, ...]
    swapped: bool = False


def _qkv(stem: str, names: tuple[str, str, str] = ("to_q", "to_k", "to_v")) -> tuple[str, ...]:
    return tuple(f"{stem}.{name}" for name in names)


_ADDED = ("add_q_proj", "add_k_proj", "add_v_proj")
_DOUBLE, _SINGLE = "transformer_blocks.{}", "single_transformer_blocks.{}"
# original module -> diffusers' modules; {} is the block's number
_FLUX: dict[str, tuple[str, ...]] = {
    "double_blocks.{}.img_attn.qkv": _qkv(f"{_DOUBLE}.attn"),
    "double_blocks.{}.txt_attn.qkv": _qkv(f"{_DOUBLE}.attn", _ADDED),
    "double_blocks.{}.img_attn.proj": (f"{_DOUBLE}.attn.to_out.0",),
    "double_blocks.{}.txt_attn.proj": (f"{_DOUBLE}.attn.to_add_out",),
    "double_blocks.{}.img_mlp.0": (f"{_DOUBLE}.ff.net.0.proj",),
    "double_blocks.{}.img_mlp.2": (f"{_DOUBLE}.ff.net.2",),
    "double_blocks.{}.txt_mlp.0": (f"{_DOUBLE}.ff_context.net.0.proj",),
    "double_blocks.{}.txt_mlp.2": (f"{_DOUBLE}.ff_context.net.2",),
    "double_blocks.{}.img_mod.lin": (f"{_DOUBLE}.norm1.linear",),
    "double_blocks.{}.txt_mod.lin": (f"{_DOUBLE}.norm1_context.linear",),
    "single_blocks.{}.linear1": (*_qkv(f"{_SINGLE}.attn"), f"{_SINGLE}.proj_mlp"),
    "single_blocks.{}.linear1_qkv": _qkv(f"{_SINGLE}.attn"),  # no tensor of files: the part that XLabs' adapters change
    "single_blocks.{}.linear2": (f"{_SINGLE}.proj_out",),
    "single_blocks.{}.modulation.lin": (f"{_SINGLE}.norm.linear",),
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "time_in.in_layer": ("time_text_embed.timestep_embedder.linear_1",),
    "time_in.out_layer": ("time_text_embed.timestep_embedder.linear_2",),
    "vector_in.in_layer": ("time_text_embed.text_embedder.linear_1",),
    "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2",),
    "guidance_in.in_layer": ("time_text_embed.guidance_embedder.linear_1",),
    "guidance_in.out_layer": ("time_text_embed.guidance_embedder.linear_2",),
    "final_layer.linear": ("proj_out",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
}
_SD3: dict[str, tuple[str, ...]] = {
    "joint_blocks.{}.x_block.attn.qkv": _qkv(f"{_DOUBLE}.attn"),
    "joint_blocks.{}.x_block.attn2.qkv": _qkv(f"{_DOUBLE}.attn2"),
    "joint_blocks.{}.context_block.attn.qkv": _qkv(f"{_DOUBLE}.attn", _ADDED),
    "joint_blocks.{}.x_block.attn.proj": (f"{_DOUBLE}.attn.to_out.0",),
    "joint_blocks.{}.x_block.attn2.proj": (f"{_DOUBLE}.attn2.to_out.0",),
    "joint_blocks.{}.context_block.attn.proj": (f"{_DOUBLE}.attn.to_add_out",),
    "joint_blocks.{}.x_block.mlp.fc1": (f"{_DOUBLE}.ff.net.0.proj",),
    "joint_blocks.{}.x_block.mlp.fc2": (f"{_DOUBLE}.ff.net.2",),
    "joint_blocks.{}.context_block.mlp.fc1": (f"{_DOUBLE}.ff_context.net.0.proj",),
    "joint_blocks.{}.context_block.mlp.fc2": (f"{_DOUBLE}.ff_context.net.2",),
    "joint_blocks.{}.x_block.adaLN_modulation.1": (f"{_DOUBLE}.norm1.linear",),
    "joint_blocks.{}.context_block.adaLN_modulation.1": (f"{_DOUBLE}.norm1_context.linear",),
    "x_embedder.proj": ("pos_embed.proj",),
    "t_embedder.mlp.0": ("time_text_embed.timestep_embedder.linear_1",),
    "t_embedder.mlp.2": ("time_text_embed.timestep_embedder.linear_2",),
    "y_embedder.mlp.0": ("time_text_embed.text_embedder.linear_1",),
    "y_embedder.mlp.2": ("time_text_embed.text_embedder.linear_2",),
    "final_layer.linear": ("proj_out",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
}


def _attention(owner: str) -> dict[str, tuple[str, ...]]:
    """The fused attention of Z-Image and Lumina 2, whose networks call its owner differently."""
    table: dict[str, tuple[str, ...]] = {}
    for stack in ("layers", "noise_refiner", "context_refiner"):
        table[f"{stack}.{{}}.attention.qkv"] = _qkv(f"{stack}.{{}}.{owner}")
        table[f"{stack}.{{}}.attention.out"] = (f"{stack}.{{}}.{owner}.to_out.0",)
    return table


_NUMBER = re.compile(r"\.(\d+)\.")
_MARKS = {  # a tensor that only this family's network has -> its table
    "single_transformer_blocks.0.proj_mlp.weight": _FLUX,
    "pos_embed.proj.weight": _SD3,
    "layers.0.attention.to_q.weight": _attention("attention"),
    "layers.0.attn.to_q.weight": _attention("attn"),
}
_SWAPPED = "norm_out.linear"


def exchanged(tensor: Tensor) -> Tensor:
    """The two halves of the rows exchanged."""
    import torch

    return torch.cat(tensor.chunk(2)[::-1])


def fused_tensors(names: Iterable[str]) -> dict[str, Fused]:
    """{original key without a prefix: what it consists of}, for a network with these diffusers names.

    Also `qkv.0`, `qkv.1`, ... for the parts alone, as OneTrainer's adapters call them. Empty for other networks.
    """
    known = dict.fromkeys(names)
    table = next((table for mark, table in _MARKS.items() if mark in known), {})
    firsts: dict[str, list[tuple[str, tuple[str, ...]]]] = {}
    for key, parts in table.items():
        firsts.setdefault(parts[0], []).append((key, parts))
    stacked = (re.match(r"transformer_blocks\.(\d+)\.", name) for name in known)
    last = max((int(match[1]) for match in stacked if match), default=0)
    found: dict[str, Fused] = {}
    for name in known:
        module, _, leaf = name.rpartition(".")
        number = _NUMBER.search(module + ".")
        template = _NUMBER.sub(".{}.", module + ".", count=1).removesuffix(".") if number else module
        for key, parts in firsts.get(template, ()):
            index = number[1] if number else ""
            whole = tuple(f"{part.format(index)}.{leaf}" for part in parts)
            if not all(part in known for part in whole):
                continue
            # SD 3's last block keeps its context's normalisation as the network's last one is kept
            swapped = module == _SWAPPED or (
                table is _SD3 and parts[0].endswith("norm1_context.linear") and int(index) == last
            )
            original = key.format(index)
            found[f"{original}.{leaf}"] = Fused(whole, swapped)
            if len(whole) > 1:
                found |= {f"{original}.{i}.{leaf}": Fused((part,)) for i, part in enumerate(whole)}
    return found
