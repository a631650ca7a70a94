"""What commands print: it is written whole, or the command says that it is not; in any encoding."""

from __future__ import annotations

import io
import json
import sys

import pytest

from benchmark.app.output import printing


class Full(io.StringIO):
    """Takes nothing: at once, or only when it is flushed."""

    def __init__(self, error: OSError, *, late: bool = False) -> None:
        super().__init__()
        self.error, self.late = error, late

    def write(self, text: str) -> int:
        if not self.late:
            raise self.error
        return len(text)

    def flush(self) -> None:
        error, self.error = self.error, None  # type: ignore[assignment]
        if error is not None:
            raise error


def says() -> int:
    print("a result")
    return 0


def says_and_leaves() -> int:
    print("usage")
    raise SystemExit(0)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("command", [says, says_and_leaves])
def test_a_full_disk_is_one_line_and_status_2(
    late: bool, command: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", stream := Full(OSError(28, "No space left on device"), late=late))
    assert printing(command) == 2  # type: ignore[arg-type]
    assert sys.stdout is stream
    assert capsys.readouterr().err == "error: standard output cannot be written (No space left on device).\n"


@pytest.mark.parametrize("late", [False, True])
def test_a_reader_that_went_away_is_quiet(
    late: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", Full(BrokenPipeError(32, "Broken pipe"), late=late))
    assert printing(says) == 1
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), BrokenPipeError(32, "Broken pipe")])
def test_what_standard_error_does_not_take_is_lost_and_the_work_goes_on(
    error: OSError, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def works() -> int:
        print("trial 1", file=sys.stderr)
        print("trial 2", file=sys.stderr)
        return says()

    monkeypatch.setattr(sys, "stderr", Full(error))
    assert printing(works) == 0
    assert capsys.readouterr().out == "a result\n"


@pytest.mark.parametrize(("encoding", "errors"), [("ascii", "strict"), ("latin-1", "strict"), ("utf-8", "strict")])
def test_what_an_encoding_lacks_is_escaped_and_json_stays_json(
    encoding: str, errors: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = {"name": "0.5 ± 0.1 ☃ 😀", "undecodable": "b\udcff"}
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding, errors=errors))
    assert printing(lambda: print(json.dumps(value, ensure_ascii=False)) or 0) == 0  # type: ignore[func-returns-value]
    assert json.loads(raw.getvalue().decode(encoding)) == value
    if encoding == "utf-8":
        assert "0.5 ± 0.1 ☃ 😀".encode() in raw.getvalue()
    sys.stdout.detach()  # type: ignore[attr-defined]


def test_an_error_of_the_command_itself_passes() -> None:
    def fails() -> int:
        raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        printing(fails)
