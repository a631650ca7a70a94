"""What each of many donors would gain, from one gradient at the base.

L layers, D donors, C chunks of prompts.

A blend is linear in its weights, so the score's gradient in a donor's weight, at the base, is the dot product of its
gradient in the parameters with the donor's difference. It says what a small weight would gain or lose, per unit of
weight, layer by layer. Its noise is that of the prompts: each chunk has prompts of its own, and the spread between
chunks gives the standard error of the mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from merger.scoring.gradients.reduction import SearchedParameter

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Ranking:
    """gradients: [C, L, D], of the mean score of a chunk's prompts in each blend weight, at the base."""

    layers: tuple[str, ...]
    donors: tuple[str, ...]
    gradients: Floats

    @property
    def by_layer(self) -> tuple[Floats, Floats]:
        """(mean, standard error) over chunks, [L, D] each."""
        return _mean(self.gradients)

    @property
    def whole(self) -> tuple[Floats, Floats]:
        """(mean, standard error) of a weight that all layers share, [D] each."""
        return _mean(self.gradients.sum(axis=1))

    @property
    def tuned(self) -> Floats:
        """[D]: the gradient if each layer has a weight of its own, of the same root mean square as a shared one.

        That is the norm of the layers' gradients times the root of L, less what noise adds to it in the mean.
        """
        mean, error = self.by_layer
        return np.sqrt(np.clip((mean**2 - error**2).sum(axis=0), 0, None) * len(self.layers))

    @property
    def order(self) -> list[int]:
        """The donors' places, the one that gains most first."""
        return [int(place) for place in np.argsort(-self.whole[0], kind="stable")]

    def to_json(self) -> list[dict[str, Any]]:
        """A table for each donor, the best first."""
        (whole, error), (mean, errors), tuned = self.whole, self.by_layer, self.tuned
        return [
            {
                "donor": self.donors[d],
                "gradient": float(whole[d]),
                "stderr": float(error[d]),
                "tuned": float(tuned[d]),
                "layers": {
                    layer: {"gradient": float(mean[at, d]), "stderr": float(errors[at, d])}
                    for at, layer in enumerate(self.layers)
                },
            }
            for d in self.order
        ]


def _mean(values: Floats) -> tuple[Floats, Floats]:
    """The mean over the first dimension, and its standard error."""
    return values.mean(axis=0), values.std(axis=0, ddof=1) / math.sqrt(len(values))


def keep(gradients: Sequence[Tensor], dtype: torch.dtype, file: Path) -> None:
    """Write one chunk's gradients, in the order of the parameters. dtype: as what they are kept."""
    save_file({str(place): gradient.to(dtype) for place, gradient in enumerate(gradients)}, file)


def products(searched: Sequence[SearchedParameter], files: Sequence[Path], layers: int, donors: int) -> Floats:
    """[C, L, D]: the dot products of the gradients in `files` with every donor's differences.

    searched: the parameters, in the files' order; `at` is the number of its layer. Each donor is read once.
    """
    found = np.zeros((len(files), layers, donors))
    opened = [safe_open(file, framework="pt") for file in files]
    for place, each in enumerate(searched):
        base, differences = each.read()
        base = base.to("cpu", torch.float32)
        buffer = torch.empty_like(base)
        gradients = [file.get_tensor(str(place)) for file in opened]
        for donor, difference in enumerate(differences):
            added = difference.write(buffer, base)
            for chunk, gradient in enumerate(gradients):
                found[chunk, each.at, donor] += float(torch.mul(gradient, added).sum(dtype=torch.float64))
    return found
