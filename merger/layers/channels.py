"""How many weights a tensor has at granularity `channel`: one for each output channel. Pure.

Output channels are the rows, the first dimension, of a matrix or a convolution. All else has one weight: biases, norms
and other tensors of one dimension, scalars, and tables of embeddings, whose rows are words or places.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

CHANNEL = "channel"

_EMBEDDINGS = re.compile(
    r"(?:^|\.)(?:token_embedding|position_embedding|embed_tokens|shared|relative_attention_bias|class_embedding|"
    r"embedding_table)\.weight$|(?:^|\.)(?:pos_embed|position_ids)$"
)
"""Names of `torch.nn.Embedding` tables and of tables of positions in transformers, diffusers and T5."""


def channels_of(name: str, shape: tuple[int, ...]) -> int:
    """The number of weights that a tensor of this name and shape has for each donor."""
    return 1 if len(shape) < 2 or _EMBEDDINGS.search(name) else shape[0]


def widths(layers: Mapping[str, tuple[str, ...]], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """{layer: number of weights per donor}, of layers of one tensor each; those with a single weight are left out."""
    found = {layer: channels_of(names[0], shapes[names[0]]) for layer, names in layers.items()}
    return {layer: width for layer, width in found.items() if width > 1}
