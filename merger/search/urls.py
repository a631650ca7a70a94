"""URLs of databases: of a file, of a relative path, and as a message may show them. Optuna is not loaded here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from merger.errors import StudyError

if TYPE_CHECKING:
    import sqlalchemy

HIDDEN = "***"
"""What stands for a password."""

_RELATIVE = re.compile(r"(?P<driver>sqlite(?:\+\w+)?):///(?P<path>[^/?][^?]*)(?P<query>\?.*)?", re.DOTALL)
_PASSWORD = re.compile(r"(://[^/:@]*:).*(@)", re.DOTALL)
_PASSWORD_OPTION = re.compile(r"((?:^|[?&\s])(?:ssl)?(?:password|passwd|pwd)=)[^&\s'\"]+", re.IGNORECASE)


def sqlite_url(file: Path) -> str:
    """The URL of an SQLite file, whatever characters its path holds.

    Raises `StudyError` for a path that SQLAlchemy would read differently: before version 2.1 it does not escape `?`.
    """
    import sqlalchemy

    whole = str(file.absolute())
    url = sqlalchemy.URL.create("sqlite", database=whole).render_as_string(hide_password=False)
    if sqlalchemy.make_url(url).database != whole:
        raise StudyError(f"{file}: a database cannot lie there with this version of SQLAlchemy; use a plainer path")
    return url


def parsed(url: str) -> sqlalchemy.URL:
    """SQLAlchemy's reading of a URL. Raises `StudyError`, which never shows the password."""
    import sqlalchemy

    try:
        return sqlalchemy.make_url(url)
    except sqlalchemy.exc.ArgumentError:
        raise StudyError(f"storage {masked(url)}: is no URL of a database, such as sqlite:////path/study.db") from None
    except ValueError:  # of the port, which may be a part of a password with a slash in it: not quoted here
        raise StudyError(
            f"storage {masked(url)}: its port is not a number (a password's / @ : must be written as %2F %40 %3A)"
        ) from None


def password_of(url: str) -> str | None:
    """The password in a URL, as a server gets it; None if there is none or the URL cannot be read."""
    try:
        found = parsed(url)
    except StudyError:
        return None
    if found.password is not None:
        return str(found.password)
    options = [value for key, value in found.query.items() if key.lower().endswith(("password", "passwd", "pwd"))]
    return str(options[0]) if options else None


def masked(text: str) -> str:
    """A URL, or a text with URLs in it, without passwords. It need not be a URL that can be read."""
    if text.count("://") > 1:  # word by word, so that one password does not swallow what stands between two
        return " ".join(masked(word) for word in text.split(" "))
    return _PASSWORD_OPTION.sub(rf"\1{HIDDEN}", _PASSWORD.sub(rf"\1{HIDDEN}\2", text))


def without_password(text: str, url: str) -> str:
    """What a library says about `url`, with no password in it."""
    password = password_of(url)
    text = masked(text)
    return text.replace(password, HIDDEN) if password else text


def located(url: str, folder: Path) -> str:
    """`url` with the path of an SQLite file made absolute. A relative one starts at `folder`; other URLs stay."""
    found = _RELATIVE.fullmatch(url)
    path = found["path"] if found else ""
    if found is None or path.startswith((":memory:", "file::memory:")):
        return url
    if path.startswith("file:"):  # an SQLite URI: sqlite:///file:study.db?uri=true
        if path.startswith("file:/"):
            return url
        return f"{found['driver']}:///file:{folder.absolute()}/{path.removeprefix('file:')}{found['query'] or ''}"
    if re.match(r"[A-Za-z]:[/\\]", path):  # an absolute path of Windows
        return url
    escaped = sqlite_url(folder.absolute()).removeprefix("sqlite:///")
    return f"{found['driver']}:///{escaped.rstrip('/')}/{path}{found['query'] or ''}"


def sqlite_file(url: sqlalchemy.URL) -> Path | None:
    """The file of an SQLite database; None for another database, and for one in memory."""
    if url.get_backend_name() != "sqlite" or url.database in (None, "", ":memory:"):
        return None
    name = str(url.database)
    return Path(unquote(name.removeprefix("file:")) if name.startswith("file:") else name).resolve()
