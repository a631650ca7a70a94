"""Broken tagger folders: each opens and answers, or is refused in one line, quickly and without much memory.

The counts are small here. `LAYERMERGE_FUZZ=10` makes ten times as many, with other cases beyond these.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType

import pytest

from tests.fuzz.broken_taggers import broken_taggers

TIMES = int(os.environ.get("LAYERMERGE_FUZZ") or 1)
MOST_SECONDS, MOST_MIB = 2.0, 200.0


@pytest.mark.parametrize(
    ("fixture", "file", "kind", "count"),
    [
        ("tiny_tagger_folder", "config.json", "transformers", 75),
        ("tiny_tagger_folder", "preprocessor_config.json", "transformers", 60),
        ("tiny_timm_tagger", "config.json", "wd-timm", 40),
        ("tiny_wd_tagger", "selected_tags.csv", "wd", 20),
        ("tiny_ml_danbooru", "classes.json", "ml-danbooru", 15),
    ],
)
def test_a_broken_file_is_one_line(
    fixture: str, file: str, kind: str, count: int, tmp_path: Path, request: pytest.FixtureRequest, timm: ModuleType
) -> None:
    source = request.getfixturevalue(fixture)
    list(broken_taggers(source, file, kind, tmp_path, 0, 1))  # imports and first calls are no part of a case
    found = list(broken_taggers(source, file, kind, tmp_path, 1, count * TIMES))
    assert not [outcome.error for outcome in found if "\n" in outcome.error or len(outcome.error) > 1000]
    assert max(outcome.seconds for outcome in found) < MOST_SECONDS
    assert max(outcome.mib for outcome in found) < MOST_MIB
    refused = sum(bool(outcome.error) for outcome in found)
    assert 0.1 * len(found) < refused < len(found)
