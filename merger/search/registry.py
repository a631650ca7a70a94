"""The samplers by name: the one place that says which there are. Importing it loads no sampler.

A sampler from outside is one `register_sampler` call, made before the configuration is read:

    register_sampler(SamplerEntry("mine", "my_package.my_module:make", "what it does in a few words"))

Its factory is called as `make(space, seed, adam)` for every trial and returns an Optuna sampler. The seed is the
trial's own. `adam` (an `AdamSettings`) is None unless the sampler follows gradients. A subclass of
`merger.search.history.HistorySampler` proposes all weights at once, however many there are, and is the same after a
stop.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmark.errors import did_you_mean
from merger.errors import StudyError

CHOOSERS = ("auto", "bayes")
"""The names under which `merger.search.sampler_choice` chooses a sampler itself."""


@dataclass(frozen=True)
class SamplerEntry:
    """One way to propose blends: its name, where its factory is ("module:function"), and what it does.

    needs_gradients: whether it follows the gradients that steps find, and so needs a tagger that can be differentiated.
    """

    name: str
    factory: str
    about: str
    needs_gradients: bool = False


_ENTRIES: dict[str, SamplerEntry] = {}


def register_sampler(entry: SamplerEntry) -> None:
    """Makes `method: NAME` possible. Raises ValueError for a name that something else has."""
    if entry.name in CHOOSERS or _ENTRIES.get(entry.name, entry) != entry:
        raise ValueError(f"there is a method '{entry.name}' already")
    _ENTRIES[entry.name] = entry


def sampler_names() -> tuple[str, ...]:
    """The names of all samplers, in the order in which they were registered."""
    return tuple(_ENTRIES)


def sampler_named(name: str) -> SamplerEntry:
    """The sampler's entry. Raises `StudyError` naming the nearest one if there is none."""
    if name not in _ENTRIES:
        raise StudyError(f"method: {no_method(name)}")
    return _ENTRIES[name]


def no_method(name: str) -> str:
    """How to say that there is no such method."""
    return f"there is no '{name}'.{did_you_mean(name, sorted((*CHOOSERS, *_ENTRIES)))}"


for _entry in (
    SamplerEntry("gradient", "merger.search.gradient:make", "Adam along the gradients of the score", True),
    SamplerEntry("cmaes", "merger.search.cma:make", "covariance-matrix adaptation, for many weights"),
    SamplerEntry("tpe", "merger.search.optuna_samplers:tpe", "Optuna's multivariate TPE, for few trials"),
    SamplerEntry("gp", "merger.search.optuna_samplers:gp", "Optuna's Gaussian process, for few weights"),
    SamplerEntry("random", "merger.search.optuna_samplers:random", "uniform draws within the bounds"),
):
    register_sampler(_entry)
