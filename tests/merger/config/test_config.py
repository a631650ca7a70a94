from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from merger.config.loading import dump_config, load_config
from merger.errors import ConfigError

LEAST = {"base": "a.safetensors", "donors": ["b.safetensors"], "tagger": "tagger", "vocabulary": {"top": 50}}


def written(folder: Path, **changes: object) -> Path:
    file = folder / "search.yaml"
    file.write_text(yaml.safe_dump({**LEAST, **changes}))
    return file


def test_short_forms_paths_and_names(tmp_path: Path) -> None:
    config = load_config(
        written(
            tmp_path,
            donors=["b.safetensors", {"path": "/elsewhere/My model (2).safetensors", "bounds": [0, 1]}],
            frozen=["IN00", "BASE"],
            tags_per_prompt=5,
            size=64,
            vocabulary="words.csv",
        )
    )
    assert config.base == tmp_path / "a.safetensors"
    assert config.donor_names == ("b", "My-model-2-")
    assert config.donors[1].path == Path("/elsewhere/My model (2).safetensors")
    assert config.donors[1].bounds == (0, 1)
    assert config.frozen == {"IN00": 0.0, "BASE": 0.0}
    assert config.tags_per_prompt == (5, 5)
    assert config.size == (64, 64)
    assert config.vocabulary.path == tmp_path / "words.csv"
    assert config.tagger.path == tmp_path / "tagger"
    assert config.judge is None


def test_thresholds_are_the_taggers_own_where_given(tmp_path: Path) -> None:
    config = load_config(
        written(tmp_path, threshold=0.4, tagger={"path": "t", "threshold": 0.6}, judge={"path": "j", "kind": "wd"})
    )
    assert (config.tagger_threshold, config.judge_threshold) == (0.6, 0.4)


def test_what_is_written_is_read_back_from_anywhere(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, frozen={"M00": 0.5}, tied=[["IN01", "OUT10"]], judge="other", time_limit=60))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "config.yaml").write_text(dump_config(config))
    assert load_config(elsewhere / "config.yaml") == config


def test_overrides_go_over_the_file(tmp_path: Path) -> None:
    config = load_config(
        written(tmp_path),
        ["steps=7", "donors.0.bounds=[0, 0.5]", "tagger.threshold=0.7", "vocabulary.top=9", "bounds=[-1, 2]"],
    )
    assert config.steps == 7
    assert config.donors[0].bounds == (0, 0.5)
    assert config.donors[0].path == tmp_path / "b.safetensors"
    assert config.tagger.threshold == 0.7
    assert config.vocabulary.top == 9
    assert config.bounds == (-1, 2)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"promts": 3}, "'promts' is not a setting. Did you mean 'prompts'?"),
        ({"tagger": {"path": "t", "treshold": 0.3}}, "'tagger.treshold' is not a setting. Did you mean 'threshold'?"),
        ({"donors": [{"path": "b", "bound": [0, 1]}]}, "'donors.0.bound' is not a setting. Did you mean 'bounds'?"),
        ({"donors": []}, "donors"),
        ({"bounds": [1, 0]}, "bounds: [1, 0] is the wrong way round"),
        ({"bounds": [0, float("nan")]}, "bounds.1"),
        ({"tags_per_prompt": [8, 4]}, "tags_per_prompt: [8, 4] is the wrong way round"),
        ({"size": 100}, "multiples of 8"),
        ({"steps": 0}, "steps"),
        ({"clip_skip": 0}, "clip_skip"),
        ({"threshold": 1.5}, "threshold"),
        ({"granularity": "blocks"}, "granularity"),
        ({"template": "a girl"}, "{tags}"),
        ({"vocabulary": {}}, "CSV file, or `top: K`"),
        ({"name": "../up"}, "cannot be a name"),
        ({"donors": ["x/a.safetensors"]}, "two checkpoints are called 'a'"),
        ({"judge": 3}, "judge"),
        ({"baselines": ["soup"]}, "baselines"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(changes: dict[str, object], said: str, tmp_path: Path) -> None:
    file = written(tmp_path, **changes)
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert said in str(caught.value)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("override", ["steps", "=3", "donors.4.name=x", "steps=[", "a..b=1"])
def test_an_override_that_means_nothing_is_refused(override: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--set"):
        load_config(written(tmp_path), [override])


def test_a_missing_key_a_missing_file_and_no_yaml(tmp_path: Path) -> None:
    file = tmp_path / "search.yaml"
    with pytest.raises(ConfigError, match="no such configuration"):
        load_config(file)
    file.write_text("base: [")
    with pytest.raises(ConfigError, match="is not YAML"):
        load_config(file)
    file.write_text("just words")
    with pytest.raises(ConfigError, match="key: value"):
        load_config(file)
    file.write_text(yaml.safe_dump({key: value for key, value in LEAST.items() if key != "base"}))
    with pytest.raises(ConfigError, match="'base' is missing"):
        load_config(file)
