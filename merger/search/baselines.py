"""The blends that need no search: what a winner must beat. Each is a trial of the study. Pure.

Parents and the uniform average are known from the start. Others are found by trying: each depends on the values of
those before it, so `next_baseline` names one at a time, the first whose value is not known yet. It needs only the
finished trials, so a study continues where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass

from merger.search.space import Space
from merger.search.trials import PROPOSED, STEP, TrialRecord
from merger.weights import Weights

STRENGTHS = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0)
"""Of the best uniform blend: every weight is this times 1 / (donors + 1), the weight of the uniform average."""

BEST_UNIFORM, GREEDY_SOUP = "best_uniform", "greedy_soup"
KINDS = ("uniform", BEST_UNIFORM, GREEDY_SOUP)

Known = Mapping[tuple[float, ...], float]
"""A blend, flattened by its space, to the value found for it."""


@dataclass(frozen=True)
class Baseline:
    """A blend that needs no search: the base, each donor alone, an average of some kind."""

    role: str
    name: str
    weights: Weights


Procedure = Generator[Baseline, float, Baseline]
"""How a baseline is found: yields each blend to try, is sent its value, and returns the baseline."""


def baselines_of(space: Space, base: str, kinds: Sequence[str] = ("uniform",)) -> tuple[Baseline, ...]:
    """The base, each donor alone and, if it is among `kinds`, the uniform average: in the order of their trials."""
    fixed = [*_parents(space, base)]
    if "uniform" in kinds:
        fixed.append(_uniform(space, 1.0, "uniform"))
    return tuple(fixed)


def next_baseline(space: Space, base: str, kinds: Sequence[str], known: Known) -> Baseline | None:
    """The next blend whose value the baselines of these kinds need; None if all values are known."""
    for kind in kinds:
        if kind in _PROCEDURES:
            found, done = _walk(space, _PROCEDURES[kind](space, base), known)
            if not done:
                return found
    return None


def outcomes(space: Space, base: str, kinds: Sequence[str], records: Sequence[TrialRecord]) -> tuple[Baseline, ...]:
    """The baselines that were found by trying. One whose trials are not finished is left out."""
    # what a sampler proposes in a wide space is no baseline's blend, and would have to be read
    passed = PROPOSED if space.wide else (STEP,)
    known = known_of([(space.flatten(record.weights), record.value) for record in records if record.role not in passed])
    walked = [_walk(space, _PROCEDURES[kind](space, base), known) for kind in kinds if kind in _PROCEDURES]
    return tuple(found for found, done in walked if done)


def known_of(tried: Sequence[tuple[Sequence[float], float]]) -> dict[tuple[float, ...], float]:
    """Values by blend; the first counts where one was tried twice."""
    known: dict[tuple[float, ...], float] = {}
    for weights, value in tried:
        known.setdefault(tuple(weights), value)
    return known


def most_trials(space: Space, kinds: Sequence[str]) -> int:
    """How many trials the baselines take at most, parents included."""
    donors = len(space.donors)
    each = {"uniform": 1, BEST_UNIFORM: len(STRENGTHS) - ("uniform" in kinds), GREEDY_SOUP: donors}
    return donors + 1 + sum(each[kind] for kind in kinds)


def _walk(space: Space, procedure: Procedure, known: Known) -> tuple[Baseline, bool]:
    """(what the procedure wants tried next, False), or (what it came to, True)."""
    try:
        wanted = next(procedure)
        while (value := known.get(tuple(space.flatten(wanted.weights)))) is not None:
            wanted = procedure.send(value)
    except StopIteration as done:
        return done.value, True
    return wanted, False


def _best_uniform(space: Space, base: str) -> Procedure:
    """One weight for all layers and donors, by its value on the search prompts; the weaker of equals."""
    tried = []
    for strength in STRENGTHS:
        blend = _uniform(space, strength, f"uniform x {strength:g}")
        tried.append(((yield blend), blend))
    best = max(tried, key=lambda pair: pair[0])[1]
    return Baseline(BEST_UNIFORM, "best uniform", best.weights)


def _greedy_soup(space: Space, base: str) -> Procedure:
    """Parents, best first, each added to the average while the value does not fall (Wortsman et al. 2022, greedy)."""
    parents = _parents(space, base)
    values = []
    for parent in parents:
        values.append((yield parent))
    order = sorted(range(len(parents)), key=lambda place: -values[place])
    members, best = order[:1], values[order[0]]
    for place in order[1:]:
        value = yield _soup(space, [parents[member] for member in (*members, place)])
        if value >= best:
            members, best = [*members, place], value
    return Baseline(GREEDY_SOUP, "greedy soup", _soup(space, [parents[member] for member in members]).weights)


_PROCEDURES: dict[str, Callable[[Space, str], Procedure]] = {BEST_UNIFORM: _best_uniform, GREEDY_SOUP: _greedy_soup}


def _parents(space: Space, base: str) -> list[Baseline]:
    return [
        Baseline("base", base, space.everywhere({})),
        *(Baseline("donor", donor, space.everywhere({donor: 1.0})) for donor in space.donors),
    ]


def _uniform(space: Space, strength: float, name: str) -> Baseline:
    weight = strength / (len(space.donors) + 1)
    role = "uniform" if name == "uniform" else BEST_UNIFORM
    return Baseline(role, name, space.everywhere(dict.fromkeys(space.donors, weight)))


def _soup(space: Space, members: Sequence[Baseline]) -> Baseline:
    """The average of some parents, the base among them or not."""
    names = [member.name for member in members]
    share = {donor: 1.0 / len(members) for donor in space.donors if donor in names}
    return Baseline(GREEDY_SOUP, f"soup of {' + '.join(names)}", space.everywhere(share))
