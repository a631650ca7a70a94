"""Commands in odd surroundings, each in a process of its own: full disks, closed pipes, encodings, little memory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

if not Path("/dev/full").exists():
    pytest.skip("needs Linux", allow_module_level=True)

ROOT = Path(__file__).parents[3]
PREVIOUS = ROOT / "tests" / "data" / "previous"
CHECKPOINT = ROOT / "demo" / "checkpoints" / "base.safetensors"


def called(
    command: str, folder: Path, *, package: str = "merger", before: str = "", after: str = "", **settings: str
) -> subprocess.CompletedProcess[bytes]:
    """Runs a command in a shell. before, after: what stands around it there."""
    line = f"{before} {sys.executable} -m {package} {command} {after}"
    environment: dict[str, Any] = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", **settings}
    return subprocess.run(["bash", "-c", line], cwd=folder, env=environment, capture_output=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    shutil.copytree(PREVIOUS / "gradient", folder / "runs" / "über ☃ 😀")
    return folder


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("package", "command"), [("merger", "list"), ("merger", "--help"), ("merger", "list --help"), ("benchmark", "-h")]
)
def test_a_full_disk_behind_standard_output(package: str, command: str, unbuffered: str, place: Path) -> None:
    done = called(command, place, package=package, after=">/dev/full", PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == 2
    assert done.stderr == b"error: standard output cannot be written (No space left on device).\n"


def test_a_closed_pipe_is_quiet_and_a_full_standard_error_hinders_nothing(place: Path) -> None:
    assert called("list", place, after="| true").stderr == b""
    done = called("list", place, after="2>/dev/full")
    assert done.returncode == 0
    assert b"finished" in done.stdout
    assert called("status nothing", place, after="2>/dev/full").returncode == 2
    assert called("list", place, after=">/dev/full 2>/dev/full").returncode == 2


def test_a_closed_standard_output_is_not_taken_for_a_file(place: Path) -> None:
    done = called("status 'über ☃ 😀'", place, after=">&-")
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    "settings",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1:strict"},
        {"LC_ALL": "C"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
)
def test_an_encoding_that_lacks_letters(settings: dict[str, str], place: Path) -> None:
    done = called("list --json", place, **settings)
    assert (done.returncode, done.stderr) == (0, b"")
    (row,) = json.loads(done.stdout.decode("latin-1" if "latin" in str(settings) else "utf-8"))
    if "PYTHONUTF8" in settings:  # then the name cannot even be decoded, and SQLite's library wants it in UTF-8
        assert "PYTHONUTF8=1" in row["problem"]
        return
    assert row["name"] == "über ☃ 😀"
    assert called("list", place, **settings).returncode == 0
    missing = called("status nöpe☃", place, **settings)
    assert missing.returncode == 2
    assert missing.stderr.startswith(b"error: there is no run")


@pytest.mark.parametrize(
    ("package", "command"),
    [
        ("merger", f"inspect {CHECKPOINT}"),
        ("merger", "search x.yaml"),
        ("merger", "convert a.ckpt --output b.safetensors"),
        ("benchmark", "model --tagger eye"),
    ],
)
def test_a_working_directory_that_is_gone(package: str, command: str, tmp_path: Path) -> None:
    done = called(command, tmp_path, package=package, before="mkdir x; cd x; rmdir ../x;")
    assert done.returncode == 2
    assert done.stderr == b"error: the folder that this command is called from is gone. Change to another one.\n"


def test_a_run_is_shown_from_a_working_directory_that_is_gone(place: Path, tmp_path: Path) -> None:
    done = called(f"status '{place}/runs/über ☃ 😀'", tmp_path, before="mkdir x; cd x; rmdir ../x;")
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"finished" in done.stdout


@pytest.mark.parametrize("gigabytes", [0.3, 0.5])
def test_too_little_memory_to_load_a_library(gigabytes: float, tmp_path: Path) -> None:
    done = called(f"inspect {CHECKPOINT}", tmp_path, before=f"ulimit -v {round(gigabytes * 1e6)};")
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: out of memory")
    assert done.stderr.count(b"\n") == 1


def restricted() -> str:
    """What stands before a command so that it may not write where the permissions forbid it, also for root."""
    if os.geteuid() != 0:
        return ""
    if shutil.which("setpriv") is None:
        pytest.skip("root may write everywhere, and there is no setpriv")
    return "setpriv --inh-caps=-all --bounding-set=-dac_override,-dac_read_search"


def test_a_read_only_run_is_shown_and_exported_elsewhere(tmp_path: Path) -> None:
    data = shutil.copytree(PREVIOUS, tmp_path / "data")
    for name in ("gradient", "black_box"):
        config = data / name / "config.yaml"
        config.write_text(config.read_text().replace("/previous", str(data)))
    before = restricted()
    commands = ["list --json data", "status data/gradient --json", "status data/black_box"]
    exports = ["data/gradient", "data/black_box --trial 3"]
    paths = [data, *data.rglob("*")]
    modes = [path.stat().st_mode for path in paths]
    contents = {path: path.read_bytes() for path in paths if path.is_file()}
    for path in paths:
        path.chmod(path.stat().st_mode & ~0o222)
    try:
        for command in commands:
            done = called(command, tmp_path, before=before)
            assert (done.returncode, done.stderr) == (0, b"")
        for number, target in enumerate(exports):
            done = called(f"export {target} --output out/{number}.safetensors", tmp_path, before=before)
            assert done.returncode == 0, done.stderr
            assert (tmp_path / "out" / f"{number}.safetensors").is_file()
        for command in ("export data/gradient", "resume data/black_box"):
            done = called(command, tmp_path, before=before)
            assert done.returncode == 2
            assert b"(Permission denied)" in done.stderr.splitlines()[-1]
    finally:
        for path, mode in zip(paths, modes, strict=True):
            path.chmod(mode)
    assert {path: path.read_bytes() for path in [data, *data.rglob("*")] if path.is_file()} == contents
