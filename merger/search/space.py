"""Layers x donors <-> the numbers that a study proposes. Pure.

L  layers, D  donors, N  parameters: N <= L * D, fewer where layers are frozen or tied.
W  free weights: as many as the parameters are wide together. N, unless channels have weights of their own.
F  all weights of a blend: as many as the layers are wide together, times D.
A parameter is named `layer/donor`, after the first of its tied layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from benchmark.errors import did_you_mean
from merger.errors import ConfigError, ConfigProblems, StudyError
from merger.weights import Channels, Floats32, Weight, Weights, by_channel

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Parameter:
    """One free weight: it stands for `donor` in every one of `layers`, between `low` and `high`.

    width: as many free weights instead, one for each channel of its layers, all within these bounds.
    """

    name: str
    donor: str
    layers: tuple[str, ...]
    low: float
    high: float
    width: int = 1


@dataclass(frozen=True)
class Space:
    """What may be searched. `fixed[layer]` is the weight of every donor in a frozen layer.

    widths: {layer: its weights per donor}, of layers with more than one. A space with such layers is *wide*: its blends
    are arrays in float32, apart from those with one weight for all channels of a layer, such as parents.
    """

    layers: tuple[str, ...]
    donors: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    fixed: Mapping[str, float] = field(default_factory=dict)
    widths: Mapping[str, int] = field(default_factory=dict)

    @property
    def wide(self) -> bool:
        """Whether some layer has several weights per donor."""
        return bool(self.widths)

    @property
    def size(self) -> int:
        """W, the number of free weights."""
        return sum(parameter.width for parameter in self.parameters)

    def bounds(self) -> tuple[Floats, Floats]:
        """The lowest and highest values of the free weights, [W] each."""
        counts = [parameter.width for parameter in self.parameters]
        low, high = ([getattr(each, end) for each in self.parameters] for end in ("low", "high"))
        return np.repeat(np.asarray(low, dtype=np.float64), counts), np.repeat(np.asarray(high, np.float64), counts)

    def to_weights(self, values: Mapping[str, float]) -> dict[str, dict[str, float]]:
        """All L x D weights for a value of every parameter. Raises `StudyError` if one is missing or unknown."""
        names = {parameter.name for parameter in self.parameters}
        if values.keys() != names:
            odd = sorted(values.keys() ^ names)
            raise StudyError(f"weights for '{odd[0]}' do not belong to this search's {len(names)} parameters")
        weights = {layer: dict.fromkeys(self.donors, self.fixed.get(layer, 0.0)) for layer in self.layers}
        for parameter in self.parameters:
            for layer in parameter.layers:
                weights[layer][parameter.donor] = float(values[parameter.name])
        return weights

    def to_values(self, weights: Weights) -> dict[str, float] | None:
        """The value of every parameter that gives `weights`, or None where they lie outside this space.

        Outside means beyond the bounds, a frozen layer that differs, or tied layers that differ from each other.
        """
        values, inside = self.points([self.flatten(weights)])
        names = [parameter.name for parameter in self.parameters]
        return dict(zip(names, values[0].tolist(), strict=True)) if inside[0] else None

    def points(self, blends: Sequence[Sequence[float]]) -> tuple[Floats, Bools]:
        """(the value of every parameter [n, N], whether the blend lies in this space [n]) of n flattened blends.

        All at once, because a sampler asks for every finished trial. Raises `StudyError` for a blend of another length.
        """
        for numbers in blends:
            self._check_length(numbers)
        rows = np.array(blends, dtype=np.float64).reshape(len(blends), len(self.layers) * len(self.donors))
        layer_at = {layer: place * len(self.donors) for place, layer in enumerate(self.layers)}
        donor_at = {donor: place for place, donor in enumerate(self.donors)}
        columns = [[layer_at[layer] + donor_at[each.donor] for layer in each.layers] for each in self.parameters]
        values = rows[:, [own[0] for own in columns]]
        low = np.array([parameter.low for parameter in self.parameters])
        high = np.array([parameter.high for parameter in self.parameters])
        inside: Bools = np.asarray(((values >= low) & (values <= high)).all(axis=1))
        for place, own in enumerate(columns):
            if len(own) > 1:
                inside &= (rows[:, own] == values[:, [place]]).all(axis=1)
        for layer, weight in self.fixed.items():
            inside &= (rows[:, layer_at[layer] : layer_at[layer] + len(self.donors)] == weight).all(axis=1)
        return values, inside

    @cached_property
    def _places(self) -> dict[str, int]:
        """Where each layer begins among all F weights of a blend."""
        places, at = {}, 0
        for layer in self.layers:
            places[layer], at = at, at + self.widths.get(layer, 1) * len(self.donors)
        return places

    def _place(self, layer: str, donor: int) -> slice:
        """Where a layer's weights of one donor lie among all F weights of a blend: layer by layer, donor by donor."""
        width = self.widths.get(layer, 1)
        start = self._places[layer] + donor * width
        return slice(start, start + width)

    @property
    def _flat_size(self) -> int:
        """F."""
        return len(self.donors) * (len(self.layers) + sum(width - 1 for width in self.widths.values()))

    def place(self, values: Floats32 | Floats) -> Floats32:
        """All weights of a blend, [F] float32, from its free weights [W]; the inverse of `free`."""
        flat = np.empty(self._flat_size, dtype=np.float32)
        for layer, weight in self.fixed.items():
            flat[self._place(layer, 0).start : self._place(layer, len(self.donors) - 1).stop] = weight
        donor_at = {donor: place for place, donor in enumerate(self.donors)}
        at = 0
        for parameter in self.parameters:
            own, at = values[at : at + parameter.width], at + parameter.width
            for layer in parameter.layers:
                flat[self._place(layer, donor_at[parameter.donor])] = own
        return flat

    def free(self, flat: Floats32) -> Floats32:
        """The free weights [W] of a blend of this space, from all of its weights [F]."""
        donor_at = {donor: place for place, donor in enumerate(self.donors)}
        firsts = [self._place(each.layers[0], donor_at[each.donor]) for each in self.parameters]
        return np.concatenate([flat[own] for own in firsts])

    def gradient_of(self, gradient: Mapping[str, Mapping[str, float | Floats]]) -> Floats:
        """[W]: the gradient in the free weights; that of a weight which layers share is the sum of theirs."""
        return np.concatenate(
            [
                np.atleast_1d(sum(gradient[layer][parameter.donor] for layer in parameter.layers))
                for parameter in self.parameters
            ]
        ).astype(np.float64)

    def blend_of(self, flat: Floats32) -> dict[str, dict[str, Weight]]:
        """The weights by layer and donor, from all of them [F]. Nothing is copied if `flat` is read-only.

        Raises `StudyError` for weights of another number.
        """
        if flat.shape != (self._flat_size,):
            raise StudyError(f"a stored blend has {flat.size} weights, this search {self._flat_size}")
        return {
            layer: {
                donor: Channels(flat[own]) if layer in self.widths else float(flat[own.start])
                for donor, own in ((donor, self._place(layer, place)) for place, donor in enumerate(self.donors))
            }
            for layer in self.layers
        }

    def flatten(self, weights: Weights) -> list[float]:
        """`weights` as L * D numbers, layer by layer, each donor in turn. Raises `StudyError` for channels' weights."""
        if self.wide and by_channel(weights):
            raise StudyError("weights by channel are an array and no list of numbers")
        return [weight_of(weights, layer, donor) for layer in self.layers for donor in self.donors]

    def unflatten(self, numbers: Sequence[float]) -> dict[str, dict[str, float]]:
        """The inverse of `flatten`."""
        self._check_length(numbers)
        rows = zip(*[iter(numbers)] * len(self.donors), strict=True)
        return {
            layer: dict(zip(self.donors, map(float, row), strict=True))
            for layer, row in zip(self.layers, rows, strict=True)
        }

    def _check_length(self, numbers: Sequence[float]) -> None:
        if len(numbers) != len(self.layers) * len(self.donors):
            raise StudyError(
                f"a stored blend has {len(numbers)} weights, this search {len(self.layers)} layers "
                f"x {len(self.donors)} donors"
            )

    def everywhere(self, weight: Mapping[str, float]) -> dict[str, dict[str, float]]:
        """The blend with the same weight per donor in every layer, frozen ones too: parents and averages are such."""
        return {layer: {donor: float(weight.get(donor, 0.0)) for donor in self.donors} for layer in self.layers}


def weight_of(weights: Weights, layer: str, donor: str) -> float:
    """One weight that is a number; 0 where it is not given."""
    return float(weights.get(layer, {}).get(donor, 0.0))  # type: ignore[arg-type]


Bounds = tuple[float, float] | Mapping[str, tuple[float, float]]
"""(lowest, highest) weight of all layers, or a table by layer or pattern."""

DEFAULT_BOUNDS = (-0.5, 1.5)
"""The bounds of a layer that a table leaves out."""


def make_space(
    layers: Sequence[str],
    donors: Sequence[str],
    *,
    bounds: Bounds,
    donor_bounds: Mapping[str, Bounds] | None = None,
    frozen: Mapping[str, float] | None = None,
    tied: Sequence[Sequence[str]] = (),
    widths: Mapping[str, int] | None = None,
) -> Space:
    """The space of one free weight per layer and donor, less the frozen layers, one for each group of tied layers.

    widths: {layer: its weights per donor} of layers that have several, one for each channel.

    `bounds` are (lowest, highest) weight; `donor_bounds[donor]` go before them. Wherever a layer is named, a shell
    pattern may stand for several (`*`, `?`, `[...]`), as in a recipe's weights; later lines override earlier ones.
    Raises `ConfigError`, with a line for each, for a pattern that fits no layer, a layer that is tied twice, or both
    tied and frozen, and where nothing is left to search.
    """
    names = _Names(tuple(layers))
    fixed = {layer: weight for pattern, weight in (frozen or {}).items() for layer in names.of(pattern, "frozen")}
    groups = [names.of_group(group, fixed) for group in tied]
    common = names.bounds(bounds, "bounds", DEFAULT_BOUNDS)
    own = {donor: names.bounds(given, f"bounds of '{donor}'", None) for donor, given in (donor_bounds or {}).items()}
    leader = {layer: layer for layer in layers}
    for group in groups:
        for layer in group:
            if sum(layer in other for other in groups) > 1:
                names.problems.append(f"tied: layer '{layer}' is in two groups; put them together in one")
            leader[layer] = group[0]
    own_widths = {layer: width for layer, width in (widths or {}).items() if width > 1 and layer not in fixed}
    for group in groups:
        for layer in group:
            if own_widths.get(layer, 1) != own_widths.get(group[0], 1):
                counts = f"{own_widths.get(group[0], 1)} and {own_widths.get(layer, 1)}"
                names.problems.append(f"tied: '{group[0]}' and '{layer}' have different numbers of channels ({counts})")
    names.check()
    free = [layer for layer in layers if layer not in fixed]
    parameters = []
    for layer in free:
        if leader[layer] != layer:
            continue
        members = tuple(other for other in free if leader[other] == layer)
        for donor in donors:
            low, high = own.get(donor, {}).get(layer) or common[layer]
            for other in members:
                if (own.get(donor, {}).get(other) or common[other]) != (low, high):
                    names.problems.append(f"tied: '{layer}' and '{other}' have different bounds for {donor}")
            parameters.append(Parameter(f"{layer}/{donor}", donor, members, low, high, own_widths.get(layer, 1)))
    names.check()
    if not parameters:
        raise ConfigError("frozen: every layer is frozen, so there is nothing to search")
    return Space(tuple(layers), tuple(donors), tuple(parameters), fixed, own_widths)


class _Names:
    """The layers that names and patterns stand for. problems: a line for each that stands for none."""

    def __init__(self, layers: tuple[str, ...]) -> None:
        self.layers = layers
        self.problems: list[str] = []

    def of(self, pattern: str, key: str) -> list[str]:
        """The layer of this name, or all that fit the pattern."""
        fitting = [pattern] if pattern in self.layers else [x for x in self.layers if fnmatchcase(x, pattern)]
        if not fitting:
            is_pattern = any(mark in pattern for mark in "*?[")
            said = f"'{pattern}' fits no layer" if is_pattern else f"there is no layer '{pattern}'"
            self.problems.append(f"{key}: {said}.{did_you_mean(pattern, self.layers)}")
        return fitting

    def of_group(self, group: Sequence[str], frozen: Mapping[str, float]) -> list[str]:
        """The layers of a group that is tied, each once. A pattern leaves out frozen layers, a name must not be one."""
        members: list[str] = []
        for name in group:
            found = self.of(name, "tied")
            if name in found and name in frozen:
                self.problems.append(f"tied: layer '{name}' is frozen; take it out of one of the two")
            members += [layer for layer in found if layer not in members and layer not in frozen]
        return members

    def bounds(self, given: Bounds, key: str, others: tuple[float, float] | None) -> dict[str, tuple[float, float]]:
        """The bounds of every layer. others: of those that a table leaves out; None leaves them out, too."""
        if not isinstance(given, Mapping):
            return dict.fromkeys(self.layers, given)
        found = {} if others is None else dict.fromkeys(self.layers, others)
        for pattern, pair in given.items():
            found |= dict.fromkeys(self.of(pattern, key), pair)
        return found

    def check(self) -> None:
        """Raises `ConfigError` with all problems."""
        if self.problems:
            lines = list(dict.fromkeys(self.problems))
            raise ConfigProblems(lines) if len(lines) > 1 else ConfigError(lines[0])
