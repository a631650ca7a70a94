"""Broken input of every kind is answered in a line or read, at once: a small part of `scripts.check_fuzz`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.answers import run
from tests.fuzz.checkpoint_cases import checkpoint_cases
from tests.fuzz.kinds import KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_every_one_is_answered_in_a_line(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if kind in ("checkpoints", "recipes"):
        pytest.importorskip("sd_mecha")
    monkeypatch.chdir(tmp_path)
    cases = checkpoint_cases(tmp_path, whole=False) if kind == "checkpoints" else KINDS[kind](tmp_path)
    found = run(cases, 0, 500)
    assert not found["failed"], capsys.readouterr().out
    assert found["calls"] >= 500
    assert found["read"], "some are still sound"
    assert found["refused"] > found["calls"] / 5
