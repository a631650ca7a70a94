from __future__ import annotations

from pathlib import Path

import pytest

from benchmark.errors import InputError, did_you_mean, memory_said, surroundings_said


def test_did_you_mean() -> None:
    assert did_you_mean("Smlie", ["smile", "hat"]) == " Did you mean 'smile'?"
    assert did_you_mean("zzz", ["smile", "hat"]) == " Available: smile, hat."
    assert did_you_mean("zzz", []) == ""
    assert did_you_mean("zzz", map(str, range(20))).endswith("11, and 8 more.")


def test_files_that_the_system_refuses_are_named() -> None:
    with pytest.raises(InputError, match=r"^x{300}: File name too long\.$"), surroundings_said():
        Path("x" * 300).is_dir()
    with pytest.raises(BrokenPipeError), surroundings_said():
        raise BrokenPipeError(32, "Broken pipe")


def test_what_a_lack_of_memory_led_to_is_told_as_that() -> None:
    with pytest.raises(InputError, match=r"^out of memory\."), memory_said():
        try:
            raise MemoryError
        except MemoryError:
            raise OSError("Unable to load weights from checkpoint file for 'x'")  # noqa: B904 - as diffusers does
    with pytest.raises(OSError, match="Unable to load"), memory_said():
        raise OSError("Unable to load weights from checkpoint file for 'x'")
