"""Broken configurations: each is read, or refused in short lines, quickly and without much memory.

The count is small here. `LAYERMERGE_FUZZ=4` makes four times as many, with other cases beyond these.
"""

from __future__ import annotations

import os
from pathlib import Path

from tests.fuzz.broken_configurations import SOUND, Broken, mutated_configurations, outcome_of

TIMES = int(os.environ.get("LAYERMERGE_FUZZ") or 1)
MOST_SECONDS, MOST_MIB = 2.0, 200.0


def test_broken_configurations_are_read_or_refused_in_lines(tmp_path: Path) -> None:
    import yaml

    file = tmp_path / "search.yaml"
    sound = outcome_of(Broken(yaml.safe_dump(SOUND).encode()), file)
    assert sound.lines == ()
    found = [(broken, outcome_of(broken, file)) for broken in mutated_configurations(1, 500 * TIMES)]
    for broken, outcome in found:
        assert all("\n" not in line and len(line) < 1000 for line in outcome.lines), broken
        assert all(str(file) in line or line.startswith("--set ") for line in outcome.lines), (broken, outcome.lines)
        assert "secret" not in "".join(outcome.lines), outcome.lines
    assert max(outcome.seconds for _, outcome in found) < MOST_SECONDS
    assert max(outcome.mib for _, outcome in found) < MOST_MIB
    refused = sum(bool(outcome.lines) for _, outcome in found)
    assert 0.5 * len(found) < refused < len(found)
