"""What a study stored of its trials, read and checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from optuna.trial import FrozenTrial

from merger.search import earlier
from merger.search.adam import Decay
from merger.search.artifacts import ARTIFACT, Artifacts, Blends
from merger.search.history import WEIGHTS
from merger.search.mixtures import Mixture
from merger.search.space import Space
from merger.search.trials import DECAY, MIXTURE, Score, TrialRecord, member_of
from merger.weights import Weights


class StoredTrials:
    """Reads trials of one space. Raises one of `storage.DAMAGED` for what is not as `merger.search.study` wrote it."""

    def __init__(self, space: Space, artifacts: Artifacts) -> None:
        self._space, self._blends = space, Blends(artifacts, space.blend_of)

    def weights(self, kept: Any) -> Weights:
        """The weights that an attribute holds; those that it names are read when they are looked at."""
        if isinstance(kept, dict):
            return self._blends.stored(*texts([kept[ARTIFACT]]))
        return self._space.unflatten(_numbers(kept))

    def record(self, trial: FrozenTrial) -> TrialRecord:
        """A finished trial."""
        kept = earlier.attributes(trial.user_attrs)
        weights = self.weights(kept.pop(WEIGHTS))
        role, name = texts([kept.pop("role"), kept.pop("name", "")])
        known = {key: kept.pop(key) for key in Score.__dataclass_fields__ if key in kept}
        if kept.get(DECAY) is not None:
            Decay.from_json(kept[DECAY])
        if kept.get(MIXTURE) is not None:
            Mixture.from_json(kept[MIXTURE])
        member_of(kept)
        score = Score(**known, attributes=kept)
        parts = (score.value, score.stderr, score.accuracy, score.accuracy_stderr, score.probability, score.seconds)
        _numbers([*parts, score.images, *score.per_prompt, *score.asked, *score.categories.values()])
        return TrialRecord(trial.number, role, name, weights, score)


def texts(values: Sequence[Any]) -> tuple[str, ...]:
    """These values as a tuple. Raises TypeError if one is no text."""
    for value in values:
        if not isinstance(value, str):
            raise TypeError(f"{value!r:.40} is not a text")
    return tuple(values)


def _numbers(values: Sequence[Any]) -> Sequence[float]:
    for value in values:
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise TypeError(f"{value!r:.40} is not a number")
    return values
