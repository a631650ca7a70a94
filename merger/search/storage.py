"""Where studies are kept: the database behind a URL, and what its libraries' complaints become. Part of the study."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import optuna

from benchmark.errors import first_line
from merger.errors import StudyError


@contextmanager
def stored(storage: str) -> Iterator[Callable[[], optuna.storages.BaseStorage]]:
    """How to open the database: warnings of its libraries silenced, a URL they refuse a `StudyError`."""
    import sqlalchemy

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield lambda: _database(storage)
        except (sqlalchemy.exc.SQLAlchemyError, ImportError) as error:
            reason = " ".join(str(error).split())[:200]
            raise StudyError(f"storage {storage}: cannot be opened ({reason})") from None


@contextmanager
def refusals_said(storage: str, kept: str) -> Iterator[None]:
    """Makes what a database in use refuses, as on a full disk, a `StudyError`. kept: its last sentence."""
    import sqlalchemy

    try:
        yield
    except (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError) as error:
        cause = error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) else error
        reason = first_line(getattr(cause, "orig", None) or cause or error)
        raise StudyError(f"storage {storage}: takes no more ({reason}). {kept}") from error


def _database(storage: str) -> optuna.storages.BaseStorage:
    """The database at a URL; SQLite with a write-ahead log, so that no row waits for the disk.

    Waiting cost 0.2 s a row on a busy disk, and a trial writes dozens. A crash of the program loses nothing; a power
    cut may lose the last rows, never the file.
    """
    import sqlalchemy

    database = optuna.storages.RDBStorage(storage, engine_kwargs={"connect_args": {"timeout": 30}})
    if database.engine.dialect.name == "sqlite":

        def prepare(connection: Any, _: Any) -> None:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")

        sqlalchemy.event.listen(database.engine, "connect", prepare)
        database.engine.dispose()  # the connection that made the tables was not prepared
    return database
