"""Names of files: as long as the disk takes them, and one line for longer ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmark.errors import WriteError
from benchmark.writing import whole_or_nothing, write_text


@pytest.mark.parametrize("name", ["x" * 12, "x" * 236, "x" * 250, "x" * 255, "ü" * 127])
def test_every_name_that_the_disk_takes_can_be_written(name: str, tmp_path: Path) -> None:
    for text in ("one", "two"):
        write_text(tmp_path / name, text)
        assert (tmp_path / name).read_text() == text
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_two_long_names_that_differ_at_their_ends_are_written_at_once(tmp_path: Path) -> None:
    one, two = (tmp_path / ("x" * 250 + end) for end in (".a", ".b"))
    with whole_or_nothing(one) as first, whole_or_nothing(two) as second:
        first.write_text("one")
        second.write_text("two")
    assert (one.read_text(), two.read_text()) == ("one", "two")


@pytest.mark.parametrize("place", ["x" * 256, "ü" * 128, "x" * 300 + "/a", "/".join(["x" * 250] * 20)])
def test_a_longer_one_is_one_line(place: str, tmp_path: Path) -> None:
    with pytest.raises(WriteError, match=r"cannot be written \(File name too long\)") as caught:
        write_text(tmp_path / place, "text")
    assert "\n" not in str(caught.value)
    assert not [*tmp_path.iterdir()]
