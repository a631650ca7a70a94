"""Studies on a PostgreSQL server, with each driver that is installed. Skipped where there is no server or no driver.

The server is made for these tests and lives in a folder of its own: `initdb` and `pg_ctl` are enough, on the path or
where Debian puts them.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from optuna.storages import InMemoryStorage

from merger.errors import StudyError
from merger.search.baselines import baselines_of
from merger.search.locks import study_lock
from merger.search.loop import search
from merger.search.space import make_space
from merger.search.study import SearchSettings, has_study, open_study, read_study
from merger.search.trials import Score
from merger.weights import Weights

SPACE = make_space(("IN", "OUT"), ("one", "two"), bounds=(0, 1))
PASSWORD = "a:b/c@d%e"
QUOTED = "a%3Ab%2Fc%40d%25e"
DRIVERS = ("psycopg", "psycopg2")


def program(name: str) -> str | None:
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return shutil.which(name, path=os.pathsep.join([*map(str, places), os.environ.get("PATH", "")]))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`USER:PASSWORD@HOST:PORT/DATABASE` of a server."""
    initdb, pg_ctl = program("initdb"), program("pg_ctl")
    if initdb is None or pg_ctl is None:
        pytest.skip("PostgreSQL is not installed")
    folder = tmp_path_factory.mktemp("postgres")
    as_user: dict[str, object] = {}
    if hasattr(os, "geteuid") and os.geteuid() == 0:  # PostgreSQL refuses to run as root
        try:
            shutil.chown(folder, "postgres")
        except LookupError:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
        for above in folder.parents:  # pytest's folders are their user's alone
            if above == Path(tempfile.gettempdir()):
                break
            above.chmod(above.stat().st_mode | 0o011)
        as_user = {"user": "postgres", "extra_groups": []}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    secret = folder / "secret"
    secret.write_text(PASSWORD)
    secret.chmod(0o644)
    data = folder / "data"

    def run(*command: str) -> None:
        subprocess.run(command, check=True, capture_output=True, cwd=folder, **as_user)  # type: ignore[call-overload]

    run(initdb, "-D", str(data), "-U", "me", "--pwfile", str(secret), "-A", "scram-sha-256", "-N", "-E", "UTF8")
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    run(pg_ctl, "-D", str(data), "-o", options, "-l", str(folder / "log"), "-w", "start")
    yield f"me:{QUOTED}@127.0.0.1:{port}/postgres"
    run(pg_ctl, "-D", str(data), "-m", "immediate", "stop")


@pytest.fixture(params=DRIVERS)
def url(request: pytest.FixtureRequest, server: str) -> str:
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    return f"postgresql+{request.param}://{server}"


def value(weights: Weights, report: object = None) -> Score:
    return Score(0.5 - sum(SPACE.flatten(weights)) / 10, 0.01, 0.5, 0.01, 0.5, images=8, seconds=1.0)


def test_a_study_on_a_server_is_searched_read_and_gone_on_with(url: str) -> None:
    name = f"demo {url.partition(':')[0]}"
    assert not has_study(url, name)
    with study_lock(url, name):
        study = open_study(url, name, SPACE, identity={"seed": "1"}, baselines=baselines_of(SPACE, "base"))
        search(value, study, SearchSettings("random", 3, 5, 99))
        with pytest.raises(StudyError, match="a search is at work on it already"), study_lock(url, name):
            pass
        with study_lock(url, "another"):
            pass
    assert has_study(url, name)
    assert len(read_study(url, name).records()) == 5
    again = open_study(url, name, SPACE, identity={"seed": "1"}, create=False)
    search(value, again, SearchSettings("random", 3, 7, 99))
    plain = open_study(InMemoryStorage(), name, SPACE, identity={"seed": "1"}, baselines=baselines_of(SPACE, "base"))
    search(value, plain, SearchSettings("random", 3, 7, 99))
    assert read_study(url, name).records() == plain.records()


def test_what_a_server_refuses_is_one_line_without_the_password(url: str, server: str) -> None:
    wrong = {
        url.replace(QUOTED, "wrong%40secret"): "wrong@secret",
        url.replace("/postgres", "/nowhere"): PASSWORD,
        url.replace(server.rpartition(":")[2], "1/postgres"): PASSWORD,
        url.replace("/postgres", "/postgres?sslmode=nonsense"): PASSWORD,
    }
    for storage, password in wrong.items():
        with pytest.raises(StudyError, match="cannot be opened") as caught:
            read_study(storage, "demo")
        said = str(caught.value)
        assert "\n" not in said
        assert password not in said and QUOTED not in said and "secret" not in said
        assert "me:***@127.0.0.1" in said
    with pytest.raises(StudyError, match="there is no study 'nowhere' in postgresql") as caught:
        read_study(url, "nowhere")
    assert QUOTED not in str(caught.value)
