from __future__ import annotations

from benchmark.errors import did_you_mean


def test_did_you_mean() -> None:
    assert did_you_mean("Smlie", ["smile", "hat"]) == " Did you mean 'smile'?"
    assert did_you_mean("zzz", ["smile", "hat"]) == " Available: smile, hat."
    assert did_you_mean("zzz", []) == ""
    assert did_you_mean("zzz", map(str, range(20))).endswith("11, and 8 more.")
