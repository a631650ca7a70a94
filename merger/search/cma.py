"""The method `cmaes`: covariance-matrix adaptation, its state rebuilt from the trials.

N  parameters of the space
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from merger.search.adam import AdamSettings
from merger.search.history import HistorySampler, Observation
from merger.search.space import Floats, Space


class CmaSampler(HistorySampler):
    """CMA-ES from the best blend known; it is told the trials again for every proposal.

    It opens with the uniform average made stronger step by step: how much of the donors there is in all is the one
    direction that single draws in many weights find slowest. It then starts at the best trial so far, with a spread of
    a tenth of the bounds' width. Above 200 weights the covariance is kept diagonal. Every generation ends with a trial
    of the distribution's mean, from which CMA-ES learns nothing: a single draw strays from the mean in every weight at
    once, so with many weights the mean is the better blend.
    """

    spread = 0.1
    largest_full = 200
    opening: tuple[float, ...] = (1.5, 2.0, 2.5, 3.0)  # times the weight of the uniform average

    def propose(self, given: Sequence[Observation], proposed: Sequence[Observation]) -> Mapping[str, float]:
        """The opening; then one draw from the distribution that the trials lead to, after each generation its mean."""
        import cmaes

        names = [parameter.name for parameter in self.space.parameters]
        opening = self._opening(given)
        if len(proposed) < len(opening):
            return dict(zip(names, opening[len(proposed)].tolist(), strict=True))
        given, proposed = [*given, *proposed[: len(opening)]], proposed[len(opening) :]
        low = np.array([parameter.low for parameter in self.space.parameters])
        width = np.array([parameter.high for parameter in self.space.parameters]) - low

        def to_unit(values: Floats) -> Floats:
            return (values - low) / width

        start = to_unit(max(given, key=lambda seen: seen.value).values)
        kind = cmaes.CMA if 1 < len(names) <= self.largest_full else cmaes.SepCMA
        bounds = np.tile([0.0, 1.0], (len(names), 1))
        # its seed is this trial's own: every draw of a generation is independent of the others
        optimizer = kind(mean=start.copy(), sigma=self.spread, bounds=bounds, seed=self.seed % 2**32)
        size = optimizer.population_size
        for first in range(0, len(proposed) - size + 1, size + 1):
            optimizer.tell([(to_unit(seen.values), -seen.value) for seen in proposed[first : first + size]])
        is_mean = len(proposed) % (size + 1) == size
        moved = (optimizer.mean if is_mean else optimizer.ask()) - start
        # adding the move to the start rounds as earlier versions did, so their searches go on with the same blends
        drawn = low + width * np.clip(start + moved, 0.0, 1.0)
        return dict(zip(names, drawn.tolist(), strict=True))

    def _opening(self, given: Sequence[Observation]) -> list[Floats]:
        """The stronger averages [N] that are not among the baselines already."""
        low = np.array([parameter.low for parameter in self.space.parameters])
        high = np.array([parameter.high for parameter in self.space.parameters])
        weights = [strength / (len(self.space.donors) + 1) for strength in self.opening]
        blends = [np.clip(np.full(len(low), weight), low, high) for weight in weights]
        return [blend for blend in blends if not any(np.array_equal(blend, seen.values) for seen in given)]


def make(space: Space, seed: int, adam: AdamSettings | None = None) -> CmaSampler:
    """The sampler of one trial. See `merger.search.registry`."""
    return CmaSampler(space, seed)
