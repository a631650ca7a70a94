"""Signals that end a command, and what a kill leaves behind: nothing half-written, and no name that is taken."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from benchmark.app.cli import main as benchmark_main
from benchmark.app.interrupt import ENDING, Ended, ending, exit_status, handling
from benchmark.writing import whole_or_nothing
from merger.app.cli import main
from merger.app.interrupt import Interrupt
from merger.app.runs import Run
from merger.errors import StudyError
from merger.search.trials import Asked

SIGNALS = [pytest.param(number, id=number.name) for number in ENDING]
GONE = 2**22 + 1  # above the largest process number that Linux gives


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_while_a_file_is_written_leaves_nothing(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def convert(file: Path, output: Path) -> Path:
        with whole_or_nothing(output) as partial:
            partial.write_text("half")
            signal.raise_signal(number)
            pytest.fail("the signal ends it")
        return output

    monkeypatch.setattr("merger.checkpoints.convert.convert", convert)
    before = [signal.getsignal(each) for each in ENDING]
    status = main(["convert", "x", "--output", str(tmp_path / "new" / "y.safetensors")])
    assert status == 128 + number
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().err == "\nstopped; nothing was left half-written\n"
    assert [signal.getsignal(each) for each in ENDING] == before


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("called", [benchmark_main, lambda arguments: main(["benchmark", *arguments])])
def test_a_signal_ends_the_benchmark_and_it_says_how_to_go_on(
    called: Any, number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmark.app.benchmark.Benchmark.from_arguments", lambda args: signal.raise_signal(number))
    assert called(["model", "--tagger", "eye"]) == 128 + number
    assert "The same command goes on from here." in capfd.readouterr().err


def test_a_second_sigterm_does_not_disturb_the_cleaning_up(tmp_path: Path) -> None:
    cleaned = False
    with pytest.raises(Ended), ending():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)
            cleaned = True
    assert cleaned


def test_what_is_ignored_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """As under nohup."""
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with ending():
            signal.raise_signal(signal.SIGTERM)
        with Interrupt().listening() as interrupt:
            signal.raise_signal(signal.SIGTERM)
            assert not interrupt()
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_search_ends_in_good_order(number: signal.Signals, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Ended) as caught, Interrupt().listening() as interrupt:
        assert not interrupt()
        interrupt.stop_if_asked()
        interrupt.doing = "trial 3"
        signal.raise_signal(number)
        assert interrupt()
        interrupt.stop_if_asked()
    assert exit_status(caught.value) == 128 + number
    assert "stopping after trial 3" in capfd.readouterr().err
    with pytest.raises(Ended), Interrupt().listening():
        signal.raise_signal(number)
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("the second ends it at once")


def test_a_search_that_can_decay_is_asked_to_end_well_first(capfd: pytest.CaptureFixture[str]) -> None:
    with Interrupt().listening() as interrupt:
        interrupt.doing, interrupt.ends_well = "trial 7", True
        assert interrupt() == Asked.NOTHING
        signal.raise_signal(signal.SIGINT)
        assert interrupt() == Asked.END
        signal.raise_signal(signal.SIGINT)
        assert interrupt() == Asked.END_NOW
        interrupt.stop_if_asked()
        with pytest.raises(Ended):
            signal.raise_signal(signal.SIGINT)
        interrupt.ended()
        assert interrupt() == Asked.NOTHING
        signal.raise_signal(signal.SIGINT)
        assert interrupt() == Asked.STOP
    said = capfd.readouterr().err
    assert "after trial 7 the learning rate falls, and the search ends well" in said
    assert "ending after trial 7, with the mean of the last steps; Ctrl-C again stops at once" in said
    assert said.endswith("stopping after trial 7; Ctrl-C again stops at once\n")
    with pytest.raises(Ended), Interrupt().listening() as interrupt:
        interrupt.ends_well = True
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert interrupt() == Asked.STOP
        interrupt.stop_if_asked()


@pytest.mark.parametrize("number", SIGNALS)
def test_the_exit_status_of_a_search_names_the_signal(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import yaml

    monkeypatch.chdir(tmp_path)
    config = {"base": "b", "donors": ["a"], "tagger": "t", "vocabulary": {"top": 5}}
    (tmp_path / "demo.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.setattr("merger.app.session.open_session", lambda config: None)

    def run(session: None, run: Run, interrupt: Interrupt, create: bool) -> None:
        assert create
        if created:
            run.folder.mkdir(parents=True)
            run.config_file.touch()
        signal.raise_signal(number)
        interrupt.stop_if_asked()

    monkeypatch.setattr("merger.app.run_search.run_search", run)
    created = False
    assert main(["search", "demo.yaml"]) == 128 + number
    assert "nothing was written" in capfd.readouterr().err
    created = True
    assert main(["search", "demo.yaml"]) == 128 + number
    assert "continue with: merger resume runs/demo" in capfd.readouterr().err


def test_a_terminal_that_is_gone_is_no_fault(tmp_path: Path) -> None:
    """After a hang-up nothing can be printed any more, and the command still ends in good order."""
    import os
    import pty
    import subprocess
    import sys

    code = (
        "import signal, sys; from benchmark.app.interrupt import ending, exit_status\n"
        "try:\n"
        "    with ending():\n"
        "        print('ready', flush=True); signal.pause()\n"
        "except KeyboardInterrupt as stop:\n"
        "    print('stopped', file=sys.stderr, flush=True); open(sys.argv[1], 'w').close(); sys.exit(exit_status(stop))"
    )
    here, there = pty.openpty()
    root = Path(__file__).parents[3]
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "done")],
        stdin=there,
        stdout=there,
        stderr=there,
        cwd=root,
        start_new_session=True,
    )
    os.close(there)
    said = b""
    while b"\n" not in said:  # the whole line, or the child's print fails halfway and its end is another one
        said += os.read(here, 100)
    assert b"ready" in said
    os.close(here)
    child.send_signal(signal.SIGHUP)
    assert child.wait(30) == 128 + signal.SIGHUP
    assert (tmp_path / "done").exists()


def test_a_folder_that_a_killed_search_left_is_no_run_and_not_in_the_way(tmp_path: Path) -> None:
    run = Run(tmp_path / "demo")
    run.check_free()
    run.make_folder()
    for name in (
        ".lock",
        ".lock-owner.json",
        "study.db",
        "study.db-wal",
        "study.db-shm",
        ".study.db-demo.lock",
        ".study.db-demo.lock-owner.json",
        f".config.yaml.{GONE}.partial",
    ):
        (run.folder / name).touch()
    run.check_free()
    assert not run.exists()
    with run.held("sqlite://", "demo", new=False):
        assert not list(run.folder.glob(".*.partial"))
    (run.folder / "notes.txt").touch()
    with pytest.raises(StudyError, match="exists already and is not a run"):
        run.check_free()


def test_a_checkpoint_that_was_half_written_is_swept_when_the_search_goes_on(tmp_path: Path) -> None:
    run = Run(tmp_path / "demo")
    for folder in (run.folder, run.samples, run.scores):
        folder.mkdir()
        (folder / f".best.safetensors.{GONE}.partial").touch()
    (run.folder / f".best.{GONE}.partial").mkdir()
    with run.held("sqlite://", "demo", new=False):
        left = {path.name for path in run.folder.rglob("*")}
    assert left <= {".lock", ".lock-owner.json", "samples", "scores"}


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with handling(lambda number, frame: None):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
