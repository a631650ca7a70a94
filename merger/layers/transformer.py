"""Which layer a tensor of a transformer denoiser belongs to (SD 3, Flux, Lumina 2, Sana, Z-Image, Qwen-Image, ...).

Such a denoiser is one or more *stacks* of like blocks (`transformer_blocks.0`, `transformer_blocks.1`, ...) with a few
tensors before and after them. Pure; driven by the tables below and by the numbers in the names. A stack that is not in
the table keeps its own name, so that an unknown family has layers too.

    stage    REFINE, EARLY, MIDDLE, LATE, BASE        thirds of the blocks; REFINE holds the refiner stacks, if any
    block    N00.., C00.., B00.., S00.., BASE         one transformer block each
    module   B00.attn, B00.attn2, B00.ff, B00.norm, BASE.in, BASE.text, BASE.time, BASE.out, BASE.rest
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_STACK = re.compile(r"^(\w*(?:blocks|layers|refiner))\.(\d+)\.(.*)$")
# stack -> what its blocks are called, in the order that data passes through them.
_LETTERS = {
    "noise_refiner": "N",
    "context_refiner": "C",
    "transformer_blocks": "B",
    "layers": "B",
    "single_transformer_blocks": "S",
}
_REFINERS = ("noise_refiner", "context_refiner")
_THIRDS = ("EARLY", "MIDDLE", "LATE")
# The parts of a block, by what follows its number, and of BASE, by the whole name; the first that matches decides.
_PARTS = (
    ("attn2", re.compile(r"^(attn2|cross_attn)\.")),
    ("attn", re.compile(r"^(attn|attn1|attention)\.")),
    ("ff", re.compile(r"^(ff|ff_context|feed_forward|mlp|img_mlp|txt_mlp|proj_mlp|proj_out)\.")),
    ("norm", re.compile(r"")),
)
_BASE_PARTS = (
    ("out", re.compile(r"^(norm_out|proj_out|all_final_layer|scale_shift_table)")),
    ("time", re.compile(r"^(time|t_)\w*|^guidance_")),
    ("text", re.compile(r"^(context_|caption_|cap_|txt_)")),
    ("in", re.compile(r"^(x_|img_|pos_embed|patch_embed|all_x_)")),
    ("rest", re.compile(r"")),
)


@dataclass(frozen=True, order=True)
class _Place:
    """Where a tensor stands: refiner, block or BASE (0, 1, 2); index of its stack; block; index of its part."""

    section: int
    stack: int
    block: int
    part: int


def is_transformer(names: Iterable[str]) -> bool:
    """Whether tensors of a stack of blocks are among these."""
    return any(_STACK.match(name) for name in names)


def group_transformer(names: Iterable[str], granularity: str) -> dict[str, tuple[str, ...]]:
    """Sort tensors into layers `stage`, `block` or `module`: {layer: its tensors}, BASE last; none is empty."""
    known = tuple(names)
    stacks = _stacks(known)
    places = {name: _place(name, stacks) for name in known}
    line = sorted({(place.stack, place.block) for place in places.values() if place.section == 1})
    layers: dict[str, list[str]] = {}
    for name in sorted(known, key=places.__getitem__):
        layers.setdefault(_called(places[name], stacks, line, granularity), []).append(name)
    order = {name: i for i, name in enumerate(known)}
    return {layer: tuple(sorted(members, key=order.__getitem__)) for layer, members in layers.items()}


def _stacks(names: Iterable[str]) -> list[str]:
    """The stacks among these names: first those of the table, in its order, then others, by name."""
    found = {match[1] for name in names if (match := _STACK.match(name))}
    return [stack for stack in _LETTERS if stack in found] + sorted(found - set(_LETTERS))


def _place(name: str, stacks: list[str]) -> _Place:
    match = _STACK.match(name)
    table, rest = (_PARTS, match[3]) if match else (_BASE_PARTS, name)
    part = next(i for i, (_, pattern) in enumerate(table) if pattern.search(rest))
    if match is None:
        return _Place(2, 0, 0, part)
    return _Place(0 if match[1] in _REFINERS else 1, stacks.index(match[1]), int(match[2]), part)


def _called(place: _Place, stacks: list[str], line: list[tuple[int, int]], granularity: str) -> str:
    if place.section == 2:
        return "BASE" if granularity != "module" else f"BASE.{_BASE_PARTS[place.part][0]}"
    if granularity == "stage":
        if place.section == 0:
            return "REFINE"
        return _THIRDS[line.index((place.stack, place.block)) * 3 // len(line)]
    stack = stacks[place.stack]
    block = f"{_LETTERS.get(stack, stack.upper())}{place.block:02d}"
    return block if granularity == "block" else f"{block}.{_PARTS[place.part][0]}"
