"""Which layer a tensor of a text encoder belongs to. Pure; knows the names of `merger.checkpoints.names.text`.

stage, block   TE, TE2, TE3                   one encoder each, in a pipeline's order
module         TE.embed, TE.L00 .. TE.out     its embeddings, each of its own layers, the end
tensor         the name itself
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from merger.layers.components import TEXT_ENCODERS

_LAYER = re.compile(r"(?:^|\.)(?:layers|block)\.(\d+)\.")
_EMBEDDINGS = re.compile(r"^(embeddings|shared)\.|embed_tokens\.")


def group_text(names: Iterable[str], granularity: str) -> dict[str, tuple[str, ...]]:
    """Sort the text encoders' tensors among `names` into layers `stage`, `block` or `module`: {layer: its tensors}.

    Layers are in the order of encoders and of the networks' own layers; none is empty. Other names are left out.
    """
    known = tuple(names)
    layers: dict[str, tuple[str, ...]] = {}
    for component, called in TEXT_ENCODERS.items():
        start = f"{component}."
        own = [name for name in known if name.startswith(start)]
        if not own:
            continue
        if granularity != "module":
            layers[called] = tuple(own)
            continue
        places = {name: _place(name.removeprefix(start)) for name in own}
        if component == "text_encoder" and _end_is_unread(known):
            last = max(number for part, number in places.values() if part == 1)
            end = {name for name, place in places.items() if place in ((1, last), (2, 0))}
            places |= dict.fromkeys(end, (1, max(last - 1, 0)))
        for part, number in sorted(set(places.values())):
            suffix = ("embed", f"L{number:02d}", "out")[part]
            layers[f"{called}.{suffix}"] = tuple(name for name in own if places[name] == (part, number))
    return layers


def _place(name: str) -> tuple[int, int]:
    """(0 embeddings, 1 a layer, 2 the end; the layer's number)."""
    if match := _LAYER.search(name):
        return 1, int(match[1])
    return (0, 0) if _EMBEDDINGS.search(name) else (2, 0)


def _end_is_unread(names: tuple[str, ...]) -> bool:
    """Whether the pipeline reads the first encoder's output one layer before its last, as SDXL's does.

    The last layer then has no effect on images, so it shares a blend weight with the layer before it: every weight
    that a search tries has an effect.
    """
    second = any(name.startswith("text_encoder_2.embeddings.") for name in names)
    return second and "text_encoder.text_projection.weight" not in names
