from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmark.app.cli import main as benchmark_main
from merger.app.cli import main
from merger.app.runs import Run, find_run
from merger.errors import BlendNotApplied

COMMANDS = ("search", "resume", "status", "list", "export", "merge", "convert", "verify", "inspect", "benchmark")
HEAVY = ("torch", "optuna", "diffusers", "transformers", "onnxruntime", "numpy", "pydantic", "sqlalchemy", "PIL")


def test_importing_the_command_line_loads_nothing_heavy() -> None:
    code = (
        f"import sys, merger.app.cli; merger.app.cli.make_parser(); print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    began = time.perf_counter()
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
    assert time.perf_counter() - began < 30, "well under a second on an idle machine"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_shows_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert f"example:\n  merger {command}" in said
    assert "--json" in said


@pytest.mark.parametrize(
    "arguments",
    [
        *(["inspect", "LONG"], ["inspect", "BASE", "--pipeline", "LONG"]),
        *(
            ["merge", "LONG", "--output", "x"],
            ["merge", "BASE", "--output", "LONG"],
            ["convert", "LONG", "--output", "x"],
        ),
        *(["search", "LONG"], ["resume", "LONG"], ["status", "LONG"], ["export", "LONG"], ["verify", "LONG"]),
        *(["benchmark", "LONG"], ["benchmark", "BASE", "--tagger", "LONG"]),
    ],
)
def test_a_path_that_is_too_long_is_one_line(
    arguments: list[str], tiny_family: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = {"LONG": "é" * 300, "BASE": str(tiny_family["base"])}
    assert main([words.get(word, word) for word in arguments]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ")


@pytest.mark.parametrize("arguments", [[], ["serch"], ["search"], ["export", "x", "--trial", "one"], ["list", "--x"]])
def test_wrong_use_is_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: merger" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["search", "nothing.yaml"],
        ["resume", "nothing"],
        ["status", "nothing"],
        ["export", "nothing"],
        ["verify", "nothing.safetensors"],
        ["inspect", "nothing.safetensors"],
    ],
)
def test_what_is_not_there_is_one_line_and_status_2(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert "nothing" in error
    assert list(tmp_path.iterdir()) == []


def test_the_nearest_run_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "avatars"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("{}")
    assert find_run("avatars") == Run(folder) == find_run("runs/avatars")
    assert main(["status", "avatar"]) == 2
    assert "Did you mean 'avatars'?" in capsys.readouterr().err


def test_a_damaged_run_does_not_hide_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "broken"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("base: 3")
    assert main(["list", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["name"], row["state"]) == ("broken", "damaged")


def test_no_runs_is_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", str(tmp_path)]) == 0
    assert capsys.readouterr().out == ""


def test_a_fault_is_status_1_and_an_interrupt_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import merger.app.commands

    def raising(error: BaseException) -> None:
        def command(args: object) -> int:
            raise error

        monkeypatch.setattr(merger.app.commands, "status", command)

    raising(BlendNotApplied("the weights of M00 were changed"))
    assert main(["status", "x"]) == 1
    assert capsys.readouterr().err == "failed: the weights of M00 were changed\n"
    raising(KeyboardInterrupt())
    assert main(["status", "x"]) == 130
    raising(merger.app.cli.Stopped("continue with: merger resume x"))
    assert main(["status", "x"]) == 130
    assert "continue with: merger resume x" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has"), "for 2.50 GiB more."),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: you tried to allocate 64 bytes."), "for 64 bytes more."),
        (torch.OutOfMemoryError("HIP out of memory"), "out of memory. Draw smaller images"),
    ],
)
@pytest.mark.parametrize(
    ("called", "command", "place"),
    [
        (main, ["list"], "merger.app.commands.list_"),
        (benchmark_main, ["model", "--tagger", "eye"], "benchmark.app.cli.run"),
    ],
)
def test_too_little_memory_is_one_line_and_status_2(
    called: Callable[[list[str]], int],
    command: list[str],
    place: str,
    error: RuntimeError,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(args: object) -> int:
        raise error

    monkeypatch.setattr(place, fail)
    assert called(command) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: out of memory")
    assert line in said
    assert said.count("\n") == 1
    error = ValueError("anything else")  # type: ignore[assignment]
    with pytest.raises(ValueError, match="anything else"):
        called(command)
    error = RuntimeError("a fault")
    with pytest.raises(RuntimeError, match="a fault"):
        called(command)


def test_only_one_search_at_a_time_in_a_folder(tmp_path: Path) -> None:
    from merger.errors import StudyError

    run = Run(tmp_path)
    with run.lock():
        assert run.busy()
        with pytest.raises(StudyError, match="at work here already"), run.lock():
            pass
    assert not run.busy()


def test_what_is_not_there_shows_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tagger alone takes seconds to load, and the judge is opened after it."""
    text = "base: b\ndonors: [a]\ntagger: here\njudge: nowhere\nvocabulary: words.csv\n"
    (tmp_path / "search.yaml").write_text(text)
    (tmp_path / "here").mkdir()
    monkeypatch.setattr("merger.app.session.open_sources", lambda config: pytest.fail("nothing may be opened"))
    monkeypatch.setattr("merger.app.session.open_exam", lambda *given: pytest.fail("nothing may be opened"))
    assert main(["search", str(tmp_path / "search.yaml"), "--name", "x"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"error: judge: {tmp_path}/nowhere: there is no such folder",
        f"error: vocabulary: {tmp_path}/words.csv: there is no such file",
    ]
