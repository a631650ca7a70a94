"""The measurement of the tables runs and ends with a line of JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "measure_tables.py"


def test_it_measures() -> None:
    command = [sys.executable, str(SCRIPT), "--models", "2", "--prompts", "30", "--tags", "20", "--features"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["models"], told["prompts"], told["images"], told["tags"]) == (2, 30, 60, 20)
    assert set(told["seconds"]) == {"read", "score", "tables", "json", "page"}
    assert 0 < told["total_seconds"] < 60
