"""Studies are read without a trace, and those of earlier versions under today's names."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
import pytest
from optuna.storages import InMemoryStorage

from merger.errors import StudyError
from merger.search import earlier
from merger.search.space import make_space
from merger.search.storage import shown, stored
from merger.search.study import open_study, read_study
from merger.search.trials import PROPOSED

SPACE = make_space(("IN", "OUT"), ("warm",), bounds=(0, 1))


def test_reading_a_study_that_is_not_there_leaves_nothing_behind(tmp_path: Path) -> None:
    for where in (tmp_path / "study.db", tmp_path / "nowhere" / "study.db"):
        url = f"sqlite:///{where}"
        with pytest.raises(StudyError, match="there is no study 'demo' in sqlite:"):
            read_study(url, "demo")
        with pytest.raises(StudyError, match="there is no study 'demo' in sqlite:"):
            open_study(url, "demo", SPACE, identity={}, create=False)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StudyError, match="there is no study 'demo' in InMemoryStorage"):
        read_study(InMemoryStorage(), "demo")


def test_reading_an_empty_database_writes_nothing_into_it(tmp_path: Path) -> None:
    file = tmp_path / "study.db"
    file.touch()
    with pytest.raises(StudyError, match="there is no study 'demo'"):
        read_study(f"sqlite:///{file}", "demo")
    assert file.stat().st_size == 0


def test_a_study_that_was_stopped_while_it_was_made_cannot_be_read(tmp_path: Path) -> None:
    memory = InMemoryStorage()
    optuna.create_study(storage=memory, study_name="demo")
    for read in (
        lambda: read_study(memory, "demo"),
        lambda: open_study(memory, "demo", SPACE, identity={}, create=False),
    ):
        with pytest.raises(StudyError, match="there is no study 'demo'"):
            read()
    assert open_study(memory, "demo", SPACE, identity={"seed": "1"}).identity == {"seed": "1"}


def test_a_damaged_database_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "study.db"
    file.write_bytes(b"not a database" * 100)
    with pytest.raises(StudyError, match="cannot be opened"):
        read_study(f"sqlite:///{file}", "demo")


def test_a_password_is_never_shown() -> None:
    assert shown("postgresql://me:secret@host/studies") == "postgresql://me:***@host/studies"
    with pytest.raises(StudyError) as caught, stored("nonsense://me:secret@host/studies"):
        pass
    assert "secret" not in str(caught.value)


def test_a_storage_object_is_used_as_it_is() -> None:
    memory = InMemoryStorage()
    with stored(memory) as opened:
        assert opened is memory


BEFORE = {
    "method": "slopes",
    "seed": "3",
    "polish": "0",
    "racing": "false",
    "slopes": json.dumps({"steps": 60, "rate": 0.06, "fraction": 0.5, "check_every": 8, "pull": 0.0, "start": 0.1}),
}


def test_an_identity_of_an_earlier_version_is_that_of_today() -> None:
    now = earlier.identity(BEFORE)
    assert now == {
        "method": "gradient",
        "seed": "3",
        "pruning": "false",
        "gradient": json.dumps(
            {"learning_rate": 0.06, "backprop_fraction": 0.5, "eval_every": 8, "weight_decay": 0.0, "start": 0.1}
        ),
    }
    assert earlier.identity(now) == now
    more_steps = {**BEFORE, "slopes": BEFORE["slopes"].replace("60", "90")}
    assert earlier.identity(more_steps) == now, "the number of steps may change"


def test_what_is_gone_and_was_used_is_named(tmp_path: Path) -> None:
    memory = InMemoryStorage()
    before = {**BEFORE, "polish": "20", "coarse_to_fine": '{"stage": 40}'}
    open_study(memory, "demo", SPACE, identity=before)
    with pytest.raises(StudyError, match="polish was 20, is nothing; coarse_to_fine was"):
        open_study(memory, "demo", SPACE, identity=earlier.identity(BEFORE))
    memory = InMemoryStorage()
    open_study(memory, "demo", SPACE, identity=BEFORE).note("method", "slopes")
    again = open_study(memory, "demo", SPACE, identity=earlier.identity(BEFORE))
    assert again.noted("method") == "gradient"
    assert again.identity == earlier.identity(BEFORE)


def test_trials_of_roles_that_are_gone_are_records_still() -> None:
    memory = InMemoryStorage()
    study = optuna.create_study(storage=memory, study_name="demo", direction="maximize")
    score = {"value": 0.5, "stderr": 0.1, "accuracy": 0.5, "accuracy_stderr": 0.1, "probability": 0.5}
    for role, more in (("polish", {}), ("step", {"slopes": [1.0, 2.0], "place": 0}), ("search", {"stopped_after": 16})):
        attributes = {"role": role, "weights": [0.1, 0.2], **score, **more}
        study.add_trial(optuna.trial.create_trial(value=0.5, user_attrs=attributes))
    study.set_user_attr("space", {"layers": SPACE.layers, "donors": SPACE.donors})
    polish, step, pruned = read_study(memory, "demo").records()
    assert polish.role == "polish" and polish.role in PROPOSED and polish.whole
    assert step.score.attributes == {"gradient": [1.0, 2.0], "place": 0}
    assert not pruned.whole
