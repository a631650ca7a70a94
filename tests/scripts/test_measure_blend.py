"""The measurement runs and ends with a line of JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "measure_blend.py"


def test_it_measures() -> None:
    command = [sys.executable, str(SCRIPT), "--parameters", "20000", "--donors", "1", "3", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = json.loads(done.stdout.splitlines()[-1])
    assert [row["donors"] for row in rows] == [1, 3]
    assert all(row["ratio"] > 0 and row["parameters"] == 16384 for row in rows)
    assert "3 donors: blend" in done.stderr
