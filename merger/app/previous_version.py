"""Run folders that version 0.1.0 wrote: its words translated into today's, when a folder is read. Nothing is rewritten.

Studies are translated by `merger.search.earlier`. A user's own configuration file is not translated: an old key there
is answered with the new one (`merger.config.renamed`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from merger.config.renamed import REMOVED, RENAMED, RENAMED_VALUES
from merger.errors import StudyError
from merger.layers.unet import EARLIER

_OFF = {"polish": 0, "coarse_to_fine": {}}
"""The values at which removed settings did nothing."""

_THEN = {"block_names": EARLIER, "distinct_prompts": False}
"""Settings that 0.1.0 did not have, at the values that do what it did. Later run folders name every setting."""

GRADIENT_THEN = {"backprop_steps": "last", "chain": 1.0, "decay": 1.0, "eps": 1e-3, "searches": 1}
"""The same for the parts of `gradient`."""

_RESULT = {"luck": "optimism"}
_FINALIST = {"diversity": "thumbnail_spread"}


def translated_config(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A run's configuration as read from its file, with today's keys. Removed settings are left out."""
    now = {RENAMED.get(key, key): _translated_value(key, value) for key, value in raw.items() if key not in REMOVED}
    if isinstance(now.get("gradient", {}), Mapping):
        now["gradient"] = GRADIENT_THEN | dict(now.get("gradient", {}))
    return _THEN | now


def check_can_continue(raw: Mapping[str, Any], name: str) -> None:
    """Raises `StudyError` if the run `name` began with a setting that was removed and is needed to continue it.

    raw: its configuration as read from its file.
    """
    for key, why in REMOVED.items():
        if raw.get(key, _OFF[key]) != _OFF[key]:
            raise StudyError(
                f"'{name}' cannot be continued: it began with '{key}', which was removed, as {why}. "
                "Its blends can still be exported."
            )


def translated_result(result: Mapping[str, Any]) -> dict[str, Any]:
    """A run's result with today's keys. Raises `TypeError` for what is no result."""
    if not isinstance(result, Mapping):
        raise TypeError("it is no table of results")
    now = {_RESULT.get(key, key): value for key, value in result.items()}
    if isinstance(now.get("optimism"), dict):
        now["optimism"] = {_RESULT.get(key, key): value for key, value in now["optimism"].items()}
    now["finalists"] = [
        {_FINALIST.get(key, key): value for key, value in finalist.items()} for finalist in now.get("finalists", ())
    ]
    return now


def _translated_value(key: str, value: Any) -> Any:
    """A setting's value, with the names of its parts translated."""
    if isinstance(value, Mapping):
        return {RENAMED.get(f"{key}.{part}", str(part)).rpartition(".")[2]: kept for part, kept in value.items()}
    return RENAMED_VALUES.get(key, {}).get(value, value) if isinstance(value, str) else value
