"""URLs of databases: relative paths become absolute, passwords are never shown, odd characters lead nowhere else."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest
import sqlalchemy

from merger.errors import StudyError
from merger.search.locks import file_lock, study_lock
from merger.search.storage import shown
from merger.search.study import read_study
from merger.search.urls import located, masked, parsed, password_of, sqlite_file, sqlite_url, without_password

HERE = Path("/work here")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("sqlite:///study.db", "sqlite:////work here/study.db"),
        ("sqlite:///a/b.db?timeout=3", "sqlite:////work here/a/b.db?timeout=3"),
        ("sqlite+pysqlite:///../b.db", "sqlite+pysqlite:////work here/../b.db"),
        ("sqlite:///file:s.db?uri=true", "sqlite:///file:/work here/s.db?uri=true"),
        ("sqlite:///file:/s.db?uri=true", None),
        ("sqlite:////absolute.db", None),
        ("sqlite:///C:\\studies\\a.db", None),
        ("sqlite://", None),
        ("sqlite:///:memory:", None),
        ("postgresql://me@host/studies", None),
        ("nonsense", None),
    ],
)
def test_relative_paths_start_at_a_folder(url: str, expected: str | None) -> None:
    assert located(url, HERE) == (expected or url)
    assert located(located(url, HERE), Path("/elsewhere")) == (expected or url)


@pytest.mark.parametrize("name", ["plain", "what?", "a#b", "50%", "a%3Fb", "{x}", "a b", "é", "x@y:z", "file:x", "&=+"])
def test_a_file_has_a_url_of_its_own(name: str, tmp_path: Path) -> None:
    file = tmp_path / name / "study.db"
    assert sqlite_file(parsed(sqlite_url(file))) == file
    file.parent.mkdir()
    engine = sqlalchemy.create_engine(sqlite_url(file))
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text("CREATE TABLE a (b)"))
    engine.dispose()
    assert file.is_file()
    assert sqlite_file(parsed(located("sqlite:///study.db", file.parent))) == file


SECRETS = [
    "postgresql://me:secret@127.0.0.1/studies",
    "postgresql+psycopg2://me:secret@127.0.0.1:5432/studies?sslmode=require",
    "mysql://me:se@secret@127.0.0.1/studies",
    "postgresql://me:secret@127.0.0.1:port/studies",
    "postgresql://me:se/secret@127.0.0.1/studies",
    "postgresql://:secret@127.0.0.1/studies",
    "postgresql://127.0.0.1/studies?user=me&password=secret",
    "postgresql://127.0.0.1/studies?sslpassword=secret&sslmode=require",
    "nonsense:// me:secret@127.0.0.1",
    "://me:secret@",
]


@pytest.mark.parametrize("url", SECRETS)
def test_a_password_is_never_shown(url: str) -> None:
    assert "secret" not in masked(url)
    assert "secret" not in shown(url)
    assert "secret" not in masked(f"--set storage={url}")
    for fails in (lambda: read_study(url, "demo"), lambda: study_lock(url, "demo").__enter__()):
        with pytest.raises(StudyError) as caught:
            fails()
        assert "secret" not in str(caught.value)
        assert "\n" not in str(caught.value)
        assert "secret" not in "".join(traceback.format_exception(caught.value))


def test_a_library_that_repeats_the_password_is_cleaned() -> None:
    url = "postgresql://me:se%2Fcret@host/x"
    assert password_of(url) == "se/cret"
    assert without_password("for 'me', 'se/cret' at postgresql://me:se%2Fcret@host/x", url) == (
        "for 'me', '***' at postgresql://me:***@host/x"
    )
    assert password_of("sqlite:////x.db") is None
    assert password_of("postgresql://host/x?password=abc") == "abc"


@pytest.mark.parametrize("url", ["postgresql://host:port/x", "postgresql://host:99x/x", "mysql://[::1"])
def test_a_bad_port_is_one_line(url: str) -> None:
    with pytest.raises(StudyError, match=r"its port is not a number|is no URL|cannot be opened") as caught:
        read_study(url, "demo")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("length", [1, 200, 255])
def test_a_study_of_any_name_can_be_locked(length: int, tmp_path: Path) -> None:
    url = sqlite_url(tmp_path / "study.db")
    with study_lock(url, "n" * length):
        with pytest.raises(StudyError, match="at work on it already"), study_lock(url, "n" * length):
            pass
        with study_lock(url, "n" * (length - 1) + "m"):
            pass
    plain = f".study.db-{'n' * length}.lock"  # as earlier versions have it, which may search at the same time
    assert (plain in [path.name for path in tmp_path.iterdir()]) == (length <= 200)


def test_a_lock_whose_name_is_too_long_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="cannot be made or locked"), file_lock(tmp_path / ("x" * 300), "busy"):
        pass
