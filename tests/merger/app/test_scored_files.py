"""The score that an exported file records, read with care."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from merger.app.scored_files import read_score
from merger.errors import CheckpointError

SOUND = {"accuracy": 0.5, "accuracy_stderr": 0.1, "probability": 0.4, "dtype": "base", "prompts": "p", "tagger": "t"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("[]", "is no table"),
        (json.dumps({key: value for key, value in SOUND.items() if key != "tagger"}), "lacks 'tagger'"),
        (json.dumps(SOUND | {"accuracy": None}), "no number for 'accuracy'"),
        (json.dumps(SOUND | {"probability": float("nan")}), "no number for 'probability'"),
    ],
)
def test_a_recorded_score_that_is_none_is_one_line(text: str, said: str) -> None:
    with pytest.raises(CheckpointError, match=f"^x.safetensors: its recorded score.*{said}"):
        read_score(Path("x.safetensors"), text)
    assert read_score(Path("x.safetensors"), json.dumps(SOUND)) == SOUND
