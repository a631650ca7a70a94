"""Files that appear whole or not at all, also under long names; what killed writers left is swept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmark.errors import WriteError
from benchmark.writing import sweep, whole_or_nothing, write_text

GONE = 2**22 + 1  # above the largest process number that Linux gives


@pytest.mark.parametrize("length", [8, 200, 236, 250, 255])
def test_a_name_may_be_as_long_as_the_disk_takes(length: int, tmp_path: Path) -> None:
    output = tmp_path / ("x" * (length - 4) + ".txt")
    write_text(output, "whole")
    assert output.read_text() == "whole"
    assert [path.name for path in tmp_path.iterdir()] == [output.name]


def test_a_long_name_is_counted_in_bytes(tmp_path: Path) -> None:
    output = tmp_path / ("ä" * 120 + ".txt")
    write_text(output, "whole")
    assert output.read_text() == "whole"


@pytest.mark.parametrize("output", ["x" * 256, "x" * 250 + "/" + "y" * 300, "/".join(["x" * 200] * 30)])
def test_a_path_that_is_too_long_is_refused_before_anything_is_written(output: str, tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="File name too long"), whole_or_nothing(tmp_path / output):
        pytest.fail("nothing may be written")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_writer_left_is_swept(tmp_path: Path) -> None:
    """A real process, killed by itself while it writes."""
    code = (
        "import os, sys; from pathlib import Path; from benchmark.writing import whole_or_nothing\n"
        "with whole_or_nothing(Path(sys.argv[1])) as partial:\n"
        "    partial.write_text('half'); os.kill(os.getpid(), 9)"
    )
    names = ["best.safetensors", "y" * 250]
    for name in names:
        subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], cwd=Path(__file__).parents[2], check=False)
    assert len(list(tmp_path.iterdir())) == 2
    sweep(tmp_path, "other")
    assert len(list(tmp_path.iterdir())) == 2
    sweep(tmp_path, names[1])
    assert [path.name.startswith(".best.safetensors.") for path in tmp_path.iterdir()] == [True]
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_is_being_written_is_not_swept(tmp_path: Path) -> None:
    alive = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        writing = tmp_path / f".best.{alive.pid}.partial"
        writing.write_text("half")
        old = tmp_path / f".worse.{alive.pid}.partial"  # older than the process, so another one's of that number
        old.write_text("half")
        os.utime(old, (1, 1))
        others = [tmp_path / name for name in (".best.partial", "best.3.partial", ".cache")]
        for path in others:
            path.touch()
        sweep(tmp_path)
        assert sorted(tmp_path.iterdir()) == sorted([writing, *others])
    finally:
        alive.communicate(b"\n")
    sweep(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(others)


def test_a_folder_that_was_moved_away_is_put_back(tmp_path: Path) -> None:
    """The kill came between the two renames: the folder that was there is still the last whole one."""
    (tmp_path / f".best.{GONE}.before").mkdir()
    (tmp_path / f".best.{GONE}.before" / "whole").touch()
    (tmp_path / f".best.{GONE}.partial").mkdir()
    sweep(tmp_path)
    assert (tmp_path / "best" / "whole").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["best"]
    (tmp_path / f".best.{GONE}.before").mkdir()
    sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_a_private_file_is_its_owners_alone(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "public")
    write_text(tmp_path / "file", "secret", private=True)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600


def test_nothing_to_sweep_is_no_error(tmp_path: Path) -> None:
    sweep(tmp_path / "nowhere")
