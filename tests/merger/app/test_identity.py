"""Which settings must stay the same between two sittings of a search: all, unless they are named as exceptions."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from merger.app import identity
from merger.app.identity import BY_CONTENT, MAY_CHANGE, check_sources, identity_of, tagger_fingerprint
from merger.app.method import choose_method
from merger.app.session import Session, open_session
from merger.config.config import Config
from merger.config.loading import PARTS, load_config
from merger.errors import StudyError

TAGS = ("blonde_hair", "blue_hair", "red_hair", "blue_eyes", "green_eyes", "smile", "open_mouth", "glasses")


def settings_in(model: type[BaseModel]) -> Iterator[str]:
    """All settings, those of parts with a dot: `seed`, `gradient.steps`, `donors.path`."""
    for key in model.model_fields:
        part = PARTS.get(key)
        yield from ([f"{key}.{each}" for each in part.model_fields] if part else [key])


EVERY = tuple(settings_in(Config))


@pytest.fixture(scope="module")
def place(
    tiny_family: dict[str, Path],
    tiny_pipeline_folder: Path,
    tiny_tagger_folder: Path,
    tiny_wd_tagger: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A folder with two of everything that a configuration can name."""
    folder = tmp_path_factory.mktemp("place")
    for name, file in tiny_family.items():
        (folder / f"{name}.safetensors").symlink_to(file)
    shutil.copytree(tiny_pipeline_folder, folder / "pipeline")
    shutil.copytree(tiny_pipeline_folder, folder / "pipeline2")
    (folder / "pipeline2" / "more.json").write_text("{}")
    shutil.copytree(tiny_tagger_folder, folder / "tagger")
    shutil.copytree(tiny_tagger_folder, folder / "tagger2")
    shutil.copytree(tiny_wd_tagger, folder / "tagger", dirs_exist_ok=True)  # a folder that holds two kinds
    for name, tags in (("words", TAGS), ("fewer", TAGS[:-1])):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("tag", "category", "group"), *((tag, "", "") for tag in tags)])
    return folder


PLAIN: dict[str, Any] = {
    "base": "base.safetensors",
    "donors": [{"path": "warm.safetensors", "name": "donor"}],
    "pipeline": "pipeline",
    "granularity": "block",
    "tagger": {"path": "tagger", "kind": "transformers"},
    "judge": {"path": "tagger", "kind": "transformers"},
    "vocabulary": "words.csv",
    "tags_per_prompt": 2,
    "prompts": 3,
    "validation_prompts": 3,
    "test_prompts": 3,
    "size": 32,
    "device": "cpu",
}

OTHER: dict[str, Any] = {
    "name": "another",
    "base": "cool.safetensors",
    "base_name": "other",
    "donors.path": "cool.safetensors",
    "donors.name": "other",
    "donors.bounds": [0, 1],
    "donors.minus": "cool.safetensors",
    "donors.prepare": [{"trim": 0.5}],
    "pipeline": "pipeline2",
    "vae": "cool.safetensors",
    "text_encoders_from": "cool.safetensors",
    "allow_pickle": True,
    "allow_mixed_prediction": True,
    "components": ["denoiser", "text_encoder"],
    "granularity": "stage",
    "block_names": "layermerge-0.1",
    "bounds": [-1, 2],
    "frozen": {"M00": 0.5},
    "tied": [["IN01", "IN02"]],
    "tagger.path": "tagger2",
    "tagger.kind": "wd",
    "tagger.threshold": 0.6,
    "judge.path": "tagger2",
    "judge.kind": "wd",
    "judge.threshold": 0.6,
    "threshold": 0.6,
    "vocabulary.path": "fewer.csv",
    "vocabulary.top": 5,
    "tags_per_prompt": 3,
    "template": "a girl, {tags}",
    "negative_prompt": "blurry",
    "prompts": 4,
    "validation_prompts": 4,
    "test_prompts": 4,
    "distinct_prompts": False,
    "steps": 3,
    "sampler": "ddim",
    "guidance": 2.0,
    "clip_skip": 2,
    "size": 40,
    "seed": 1,
    "memory": "2GB",
    "baselines": [],
    "method": "cmaes",
    "keep.tag": 0.1,
    "keep.category": 0.1,
    "keep.strength": 2.0,
    "gradient.steps": 7,
    "gradient.learning_rate": 0.01,
    "gradient.start": 0.3,
    "gradient.backprop_fraction": 1.0,
    "gradient.backprop_steps": "last",
    "gradient.eps": 0.5,
    "gradient.chain": 0.5,
    "gradient.decay": 0.5,
    "gradient.searches": 2,
    "gradient.eval_every": 3,
    "gradient.weight_decay": 0.1,
    "gradient.negative_penalty": 0.1,
    "pruning": True,
    "objective": "accuracy",
    "trials": 9,
    "patience": 9,
    "time_limit": 9.0,
    "storage": "sqlite:///elsewhere.db",
    "batch_size": 2,
    "device": "auto",
    "dtype": "bf16",
    "threads": 1,
}
"""{setting: another value than in `PLAIN` or by default}."""


def changed(setting: str) -> dict[str, Any]:
    key, _, part = setting.partition(".")
    if not part:
        return {**PLAIN, key: OTHER[setting]}
    if setting == "vocabulary.top":
        return {**PLAIN, key: {part: OTHER[setting]}}
    before = PLAIN.get(key, {"tag": 0.02} if setting == "keep.strength" else {})  # which does nothing without a floor
    if key == "donors":
        return {**PLAIN, key: [{**before[0], part: OTHER[setting]}]}
    return {**PLAIN, key: {**({"path": before} if isinstance(before, str) else before), part: OTHER[setting]}}


def opened(place: Path, settings: dict[str, Any]) -> Session:
    (place / "search.yaml").write_text(yaml.safe_dump(settings))
    return open_session(load_config(place / "search.yaml"))


def identified(place: Path, settings: dict[str, Any]) -> dict[str, str]:
    session = opened(place, settings)
    return identity_of(session.config, session.sources, session.exam, choose_method(session))


@pytest.fixture(scope="module")
def plain(place: Path) -> dict[str, str]:
    return identified(place, PLAIN)


def test_every_setting_is_decided_upon() -> None:
    """A new key of the configuration fails here until it is in `OTHER`, and below unless it changes the identity."""
    assert set(EVERY) == set(OTHER)
    assert MAY_CHANGE | BY_CONTENT.keys() <= set(EVERY)
    assert not MAY_CHANGE & BY_CONTENT.keys()


@pytest.mark.parametrize("setting", EVERY)
def test_a_changed_setting_changes_the_identity_unless_it_may(setting: str, place: Path, plain: dict[str, str]) -> None:
    now = identified(place, changed(setting))
    if setting == "distinct_prompts":  # it decides only where sets would share a text, as they do with one tag each
        crowded = {"tags_per_prompt": 1}
        plain, now = identified(place, PLAIN | crowded), identified(place, changed(setting) | crowded)
    differing = {key for key in plain.keys() | now.keys() if plain.get(key) != now.get(key)}
    if setting in MAY_CHANGE:
        assert not differing
        return
    assert differing
    for part in BY_CONTENT.get(setting, (setting.partition(".")[0],)):
        named = {"source BASE": "source base", "source DONOR": "source donor"}.get(part, part)
        assert named in differing


def test_a_new_setting_counts_from_the_day_it_is_added(
    place: Path, plain: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Later(Config):
        sharpness: float = 0.0

    monkeypatch.setattr(identity, "Config", Later)
    session = opened(place, PLAIN)
    for sharpness in (0.0, 0.5):
        config = Later(**session.config.model_dump(), sharpness=sharpness)
        now = identity_of(config, session.sources, session.exam, choose_method(session))
        assert now == (plain if sharpness == 0 else {**plain, "sharpness": "0.5"})


def test_the_settings_of_gradients_count_only_where_there_are_any(place: Path) -> None:
    black_box = {**PLAIN, "method": "cmaes"}
    before = identified(place, black_box)
    assert identified(place, {**black_box, "gradient": {"start": 0.3}}) == before


def test_moved_files_are_the_same(place: Path, plain: dict[str, str], tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(place, elsewhere)
    assert identified(elsewhere, PLAIN) == plain


def test_an_export_looks_at_sources_and_layers_alone(place: Path, plain: dict[str, str]) -> None:
    same = {**PLAIN, "steps": 9, "tagger": {"path": "tagger2"}, "vocabulary": "fewer.csv"}
    check_sources(plain, opened(place, same).sources, "run")
    for setting in ("base", "donors.path", "donors.name", "granularity", "block_names", "components"):
        with pytest.raises(StudyError, match="'run' began differently") as caught:
            check_sources(plain, opened(place, changed(setting)).sources, "run")
        assert "\n" not in str(caught.value)


def test_the_taggers_fingerprint_is_in_the_identity(place: Path, plain: dict[str, str]) -> None:
    assert tagger_fingerprint(plain) == opened(place, PLAIN).exam.taggers["tagger"].fingerprint
