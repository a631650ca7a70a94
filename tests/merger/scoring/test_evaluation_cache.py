"""Evaluations kept on disk: what they cost is counted, whatever else lies there."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from merger.scoring.evaluation_cache import spent_on
from merger.search.trials import Score, TrialRecord


def test_images_and_seconds_are_of_trials_and_kept_evaluations(tmp_path: Path) -> None:
    score = Score(0.5, 0.1, 0.5, 0.1, 0.5, images=8, seconds=1.25)
    records = [TrialRecord(number, "search", "", {}, score) for number in range(3)]
    assert spent_on(records, tmp_path / "scores") == {"images_drawn": 24, "seconds": 3.8}
    for name, images in (("validation-1", 4), ("test-1", 6)):
        np.savez(tmp_path / f"{name}.npz", broken=np.zeros(images, bool), seconds=np.array(2.0))
    (tmp_path / "test-2.npz").write_bytes((tmp_path / "test-1.npz").read_bytes()[:-100])
    (tmp_path / "test-3.npz").write_text("damaged")
    np.savez(tmp_path / "test-4.npz", other=np.zeros(3))
    assert spent_on(records, tmp_path) == {"images_drawn": 34, "seconds": 7.8}
