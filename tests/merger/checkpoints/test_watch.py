"""Files of sources that change while a search runs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from merger.checkpoints.checkpoint import open_checkpoint
from merger.checkpoints.watch import SourceWatch
from merger.errors import CheckpointError


@pytest.fixture
def donor(tiny_family: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copy(tiny_family["warm"], tmp_path / "donor.safetensors"))


@pytest.fixture
def watch(donor: Path) -> SourceWatch:
    return SourceWatch([open_checkpoint(donor)], "Put it back.")


def test_a_file_that_is_replaced_is_noticed(watch: SourceWatch, donor: Path, tiny_family: dict[str, Path]) -> None:
    watch.check()
    other = donor.with_name("other.safetensors")
    shutil.copy(tiny_family["cool"], other)
    other.replace(donor)
    with pytest.raises(CheckpointError, match=r"donor\.safetensors: changed since the search began.* Put it back\."):
        watch.check()


def test_so_is_one_that_is_overwritten_in_place_with_its_old_times(watch: SourceWatch, donor: Path) -> None:
    status = donor.stat()
    with donor.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    os.utime(donor, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (donor.stat().st_size, donor.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    with pytest.raises(CheckpointError, match="changed"):
        watch.check()


def test_so_is_one_that_is_gone_or_cut(watch: SourceWatch, donor: Path) -> None:
    content = donor.read_bytes()
    donor.write_bytes(content[:-10])
    with pytest.raises(CheckpointError, match="changed"):
        watch.check()
    donor.unlink()
    with pytest.raises(CheckpointError, match="is gone"):
        watch.check()
    donor.write_bytes(content)
    watch.check()


def test_the_same_bytes_are_the_same_file(watch: SourceWatch, donor: Path) -> None:
    os.utime(donor)
    watch.check()
    copy = donor.with_name("copy.safetensors")
    shutil.copy(donor, copy)
    copy.replace(donor)
    watch.check()


def test_a_result_is_not_handed_on_if_a_file_changed_meanwhile(watch: SourceWatch, donor: Path) -> None:
    calls = []

    def call(change: bool) -> int:
        calls.append(change)
        if change:
            donor.write_bytes(b"something else")
        return 3

    assert watch.around(call)(False) == 3
    with pytest.raises(CheckpointError):
        watch.around(call)(True)
    with pytest.raises(CheckpointError):
        watch.around(call)(False)
    assert calls == [False, True]


def test_all_weights_of_a_folder_are_watched(tiny_diffusers_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_diffusers_folder, tmp_path / "base"))
    watch = SourceWatch([open_checkpoint(folder)])
    (folder / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="vae"):
        watch.check()
