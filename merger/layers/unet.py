"""Which layer a U-Net's tensor belongs to. Pure and driven by tables; knows diffusers names only.

A *block* is one of the community's merge-block-weighted names: `IN00` is the first convolution, `IN01`... the input
blocks (each resnet with the attention behind it, each downsampler on its own), `M00` the middle, `OUT00`... the output
blocks (an upsampler belongs to the block it ends), `BASE` whatever remains: the embeddings of time and size. The last
normalisation and convolution (the original layout's `out.0`, `out.2`) belong to the last output block, as supermerger,
meh and sd-mecha have it (sd-mecha 1.1.8, `convert_sd1_blocks` and `convert_sdxl_blocks`). Version 0.1 of this program
had them in `BASE`; `layermerge-0.1` names those blocks still. The other granularities cut the same line coarser or
finer, and have the last convolution in `BASE`:

    stage    DOWN0 .. DOWN3, MID, UP0 .. UP3, BASE     one resolution each (the first convolution is DOWN0's)
    block    IN00 .. IN11, M00, OUT00 .. OUT11, BASE
    module   IN01.resnet, IN01.proj, IN01.attn1, IN01.attn2, IN01.ff, IN03.sampler, BASE.time, ...
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from merger.errors import ConfigError

BlockNames = Literal["community", "layermerge-0.1"]
COMMUNITY: BlockNames = "community"
EARLIER: BlockNames = "layermerge-0.1"
BLOCK_NAMES: tuple[BlockNames, ...] = (COMMUNITY, EARLIER)
"""Whose names of blocks: they differ in where the last normalisation and convolution of a U-Net belong."""

_LEVELLED = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.")
_END = re.compile(r"^conv_(norm_)?out\.")
_SECTIONS = ("IN", "M", "OUT", "BASE")  # in the order that data passes through them; BASE is beside the line
_STAGES = {"IN": "DOWN", "M": "MID", "OUT": "UP", "BASE": "BASE"}
# The parts of a block, in the order data passes them; the first pattern that is found decides.
_PARTS = (
    ("conv", re.compile(r"^conv_in\.")),
    ("resnet", re.compile(r"\.resnets\.")),
    ("attn1", re.compile(r"\.transformer_blocks\.\d+\.(attn1|norm1)\.")),
    ("attn2", re.compile(r"\.transformer_blocks\.\d+\.(attn2|norm2)\.")),
    ("ff", re.compile(r"\.transformer_blocks\.\d+\.(ff|norm3)\.")),
    ("proj", re.compile(r"\.attentions\.")),
    ("sampler", re.compile(r"\.(down|up)samplers\.")),
    ("time", re.compile(r"^(time|add|class)_\w*embedding\.")),
    ("out", _END),
    ("rest", re.compile(r"")),
)


@dataclass(frozen=True)
class Structure:
    """Where each resolution level begins in the numbering of blocks, and how many blocks it has.

    down[level], up[level]: resnets of the level. Stable Diffusion 1.x has (2, 2, 2, 2) and (3, 3, 3, 3).
    """

    down: tuple[int, ...] = (2, 2, 2, 2)
    up: tuple[int, ...] = (3, 3, 3, 3)

    def input_block(self, level: int) -> int:
        """Number of the level's first input block; each level but the last ends in a downsampler of its own."""
        return 1 + list(accumulate((blocks + 1 for blocks in self.down), initial=0))[level]

    def output_block(self, level: int) -> int:
        """Number of the level's first output block; of one level too many, how many output blocks there are."""
        return list(accumulate(self.up, initial=0))[level]


@dataclass(frozen=True, order=True)
class _Place:
    """Where a tensor stands in the line: index into _SECTIONS, block, resolution level, index into _PARTS."""

    section: int
    block: int
    level: int
    part: int


def structure_of(names: Iterable[str]) -> Structure:
    """Count levels and resnets from the names of a U-Net. Raises ConfigError if it has none, or a level lacks them."""
    resnets: dict[tuple[str, int], int] = {}
    levels: dict[str, int] = {}
    for name in names:
        if match := _LEVELLED.match(name):
            level = (match[1], int(match[2]))
            levels[match[1]] = max(levels.get(match[1], 0), level[1] + 1)
            if match[3] == "resnets":
                resnets[level] = max(resnets.get(level, 0), int(match[4]) + 1)
    for side, count in levels.items():
        if count > sum(level[0] == side for level in resnets):
            raise ConfigError(f"{side}_blocks: {count} levels of a U-Net, not all of which have resnets. Is it whole?")
    sides = [tuple(resnets[key] for key in sorted(resnets) if key[0] == side) for side in ("down", "up")]
    if not all(sides):
        raise ConfigError("the denoiser's tensors are those of no U-Net and no transformer: use granularity 'tensor'")
    return Structure(*sides)


def is_unet(names: Iterable[str]) -> bool:
    """Whether tensors of a U-Net are among these."""
    return any(_LEVELLED.match(name) for name in names)


def layer_of(
    name: str, granularity: str, structure: Structure = Structure(), block_names: BlockNames = COMMUNITY
) -> str:
    """The layer `stage`, `block` or `module` of one tensor. structure: the network's, unless it is SD 1.x's."""
    if granularity == "block" and block_names == COMMUNITY and _END.match(name):
        return f"OUT{structure.output_block(len(structure.up)) - 1:02d}"
    return _called(_place(name, structure), granularity)


def group_unet(
    names: Iterable[str], granularity: str, block_names: BlockNames = COMMUNITY
) -> dict[str, tuple[str, ...]]:
    """Sort tensors into layers `stage`, `block` or `module`: {layer: its tensors}, BASE last; none is empty.

    block_names: whose names of blocks, for granularity `block`. Raises ConfigError if the names are not those of a
    U-Net.
    """
    known = tuple(names)
    structure = structure_of(known)
    layers: dict[str, list[str]] = {}
    for name in sorted(known, key=lambda name: _place(name, structure)):
        layers.setdefault(layer_of(name, granularity, structure, block_names), []).append(name)
    order = {name: i for i, name in enumerate(known)}
    return {layer: tuple(sorted(members, key=order.__getitem__)) for layer, members in layers.items()}


def _place(name: str, structure: Structure) -> _Place:
    part = next(i for i, (_, pattern) in enumerate(_PARTS) if pattern.search(name))
    if name.startswith("conv_in."):
        return _Place(_SECTIONS.index("IN"), 0, 0, part)
    if name.startswith("mid_block."):
        return _Place(_SECTIONS.index("M"), 0, 0, part)
    match = _LEVELLED.match(name)
    if match is None:
        return _Place(_SECTIONS.index("BASE"), 0, 0, part)
    side, level, kind, index = match[1], int(match[2]), match[3], int(match[4])
    if side == "down":
        step = structure.down[level] if kind == "downsamplers" else index
        return _Place(_SECTIONS.index("IN"), structure.input_block(level) + step, level, part)
    step = structure.up[level] - 1 if kind == "upsamplers" else index
    return _Place(_SECTIONS.index("OUT"), structure.output_block(level) + step, level, part)


def _called(place: _Place, granularity: str) -> str:
    section = _SECTIONS[place.section]
    if granularity == "stage":
        return _STAGES[section] + (str(place.level) if section in ("IN", "OUT") else "")
    block = section if section == "BASE" else f"{section}{place.block:02d}"
    return block if granularity == "block" else f"{block}.{_PARTS[place.part][0]}"
