"""How a study searches and when it stops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from merger.errors import ConfigError
from merger.search.adam import AdamSettings
from merger.search.trials import STEP, TrialRecord


@dataclass(frozen=True)
class SearchSettings:
    """How to search and when to stop. `time_limit` is in seconds of trials, over all sittings.

    `adam` is how a method that follows gradients moves; None for the others. After every `eval_every` steps, and after
    the last, the weights reached are scored on the fixed prompts; so too in the last trial that a limit allows.
    `baselines` are kinds of them: those that are found by trying follow the ones that the study was opened with.
    `searches` is how many gradient searches there are, one after another, with prompts of their own; several need a
    learning rate that is held. Raises `ConfigError` if it is not.
    """

    method: str
    seed: int
    trials: int
    patience: int
    time_limit: float | None = None
    adam: AdamSettings | None = None
    eval_every: int = 8
    baselines: tuple[str, ...] = ()
    searches: int = 1

    def __post_init__(self) -> None:
        if self.searches > 1 and self.adam is not None and not self.adam.holds:
            raise ConfigError("several searches need a learning rate that is held: more steps, or a shorter decay")

    @property
    def reserved(self) -> int:
        """Evaluations that the limits are to leave for what follows several searches: an average, two strengths."""
        return 3 if self.searches > 1 else 0

    def ends_well(self, records: Sequence[TrialRecord]) -> bool:
        """Whether the search may end now with a decay of its learning rate."""
        return self.adam is not None and self.adam.holds and any(record.role == STEP for record in records)
