"""Broken checkpoints and recipes are answered with one line, at once: a small part of `scripts.check_fuzz`."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.check_fuzz import MOST_MEMORY, MOST_SECONDS, broken_files, broken_recipes, make_files, run


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    pytest.importorskip("sd_mecha")
    return make_files(tmp_path_factory.mktemp("sound"))


@pytest.mark.parametrize("kind", ["checkpoints", "recipes"])
def test_every_one_is_answered_in_a_line(
    kind: str,
    sound: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    answers = broken_files(sound, tmp_path, whole=False) if kind == "checkpoints" else broken_recipes(sound, tmp_path)
    found = run(answers, 0, 500)
    assert not found["failed"], capsys.readouterr().out
    assert found["calls"] >= 500
    assert {0, 2} <= set(found["statuses"]), "some are still sound, most are not"
    assert found["slowest_cpu_s"] <= MOST_SECONDS
    assert found["largest_growth_mb"] <= MOST_MEMORY / 1e6
