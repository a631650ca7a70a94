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


def refused(file: Path, text: str, *overrides: str) -> tuple[str, ...]:
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(file, overrides)
    return tuple(line.removeprefix(f"{file}:") for line in caught.value.lines)


PLAIN = "base: a.safetensors\ndonors: [b.safetensors]\ntagger: t\nvocabulary: v.csv\n"


def test_every_problem_has_a_line_with_its_place(tmp_path: Path) -> None:
    text = PLAIN.replace("base:", "bse:") + "steps: 0\ngradient:\n  steps: many\n  rates: 1\nsampler: dimm\n"
    assert refused(tmp_path / "s.yaml", text, "trials=few", "judge.treshold=0.5", "judge.path=x") == (
        "1: 'bse' is not a setting. Did you mean 'base'?",
        "5: steps: Input should be greater than or equal to 1",
        "7: gradient.steps: Input should be a valid integer, unable to parse string as an integer",
        "8: 'gradient.rates' is not a setting. Did you mean 'steps'?",
        "9: sampler: there is no 'dimm'. Did you mean 'ddim'?",
        "--set judge.treshold=0.5: 'judge.treshold' is not a setting. Did you mean 'threshold'?",
        "--set trials=few: trials: Input should be a valid integer, unable to parse string as an integer",
    )


def test_the_command_line_prints_every_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from merger.app.cli import main

    (tmp_path / "s.yaml").write_text(PLAIN + "steps: 0\ntrials: x\n")
    assert main(["search", str(tmp_path / "s.yaml")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(": ")[0] for line in lines] == ["error", "error"]
    assert [line.split(": ")[2] for line in lines] == ["steps", "trials"]
    assert main(["search", str(tmp_path / "s.yaml"), "--set", "x", "--set", "donors.9=3"]) == 2
    assert capsys.readouterr().err.count("error: --set ") == 2


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("steps: 9\nsteps: 30", "6: 'steps' is there twice (first in line 5)"),
        ("gradient: {steps: 3, steps: 4}", "5: 'steps' is there twice"),
        ("steps: 012", "5: 012 is 10 in YAML (octal): write 10"),
        ("time_limit: 1:30", "5: 1:30 is 90 in YAML (base 60)"),
        ("pruning: maybe", "5: pruning"),
        ("steps: yes", "5: steps: yes, no, on, off, true and false are truth values"),
        ("bounds: [no, 1]", "5: bounds: yes, no"),
        ("frozen: {IN00: yes}", "5: frozen: yes, no"),
        ("frozen: {no: 1}", "5: frozen: yes, no"),
        ("frozen: [on]", "5: frozen: yes, no"),
        ("frozen: [[a]]", "5: frozen: '['a']' is no name of a layer"),
        ("tied: [[NO, IN00]]", "5: tied: yes, no"),
        ("negative_prompt: no", "5: negative_prompt: yes, no"),
        ("gradient: [3]", "5: gradient: should be a table of settings"),
        ("gradient: {searches: 2, decay: 1}", "5: gradient: several 'searches' need a learning rate that is held"),
        ("keep: 3", "5: keep: should be a table of settings"),
        ("judge: [1]", "5: judge: should be a table of settings"),
        ("bounds: {'IN*': 3}", "5: bounds.IN*: should be a list"),
        ("keep: {strength: 2}", "5: keep: 'strength' does nothing without a floor"),
        ("name: 123", "5: name: Input should be a valid string"),
        ("judge: ~nouser/x", "5: judge.path: there is no user as in '~nouser/x'"),
        ('judge: "C:\\new\\test"', "5: judge.path: a path holds a line break or a tab"),
        ('judge: "C:\\models"', "5: is not YAML: found unknown escape character 'm' (in double quotes a \\ must"),
        ("gradient:\n\tsteps: 3", "6: is not YAML: found character '\\t' that cannot start any token (indent with"),
        ("frozen: [*.x]", "5: is not YAML: expected alphabetic or numeric character, but found '.' (put a text that"),
        ("seed: " + "9" * 5000, "5: 99999999999999999999... has too many digits"),
        ("tied: " + "[" * 100, "5: is nested deeper than 30 levels"),
        ("tied: &a [*a]", "5: refers to itself"),
        (
            "storage: postgresql://me:secret@host:port/x",
            "5: storage: postgresql://me:***@host:port/x: its port",
        ),
        ("storage: 'sqlite://'", "5: storage: a study in memory would be lost: name a file"),
        ("storage: somewhere", "5: storage: somewhere: is no URL"),
        ("steps: 2000", "5: steps: Input should be less than or equal to 1000"),
        ("granularity: {'a*': 3}", "5: granularity: the table: 'a*: 3' is no `pattern: layer`"),
        ("granularity: nowhere.yaml", "5: granularity: "),
        ("bounds: {'IN*': [1, 0]}", "5: bounds.IN*: [1, 0] is the wrong way round"),
    ],
)
def test_what_yaml_would_read_differently_is_refused_at_its_line(line: str, said: str, tmp_path: Path) -> None:
    (found,) = refused(tmp_path / "s.yaml", PLAIN + line + "\n")
    assert found.startswith(said), found


@pytest.mark.parametrize(
    ("line", "key", "value"),
    [
        ("gradient: {learning_rate: 1e-3}", "gradient.learning_rate", 1e-3),
        ("bounds: [0, 1e0]", "bounds", (0, 1)),
        ("threshold: .35", "threshold", 0.35),
        ("pruning: yes", "pruning", True),
        ("name: 2024-01-02", "name", "2024-01-02"),
        ("negative_prompt: 'no'", "negative_prompt", "no"),
        ("steps: 0x1F", "steps", 31),
        ("bounds: {'*': [0, 1], 'OUT*': [-1, 2]}", "bounds", {"*": (0, 1), "OUT*": (-1, 2)}),
        ("frozen: ['IN*']", "frozen", {"IN*": 0.0}),
        ("frozen:", "frozen", {}),
        ("judge: ~/x", "judge.path", Path.home() / "x"),
    ],
)
def test_what_is_meant_is_read(line: str, key: str, value: object, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("\ufeff" + PLAIN.replace("\n", "\r\n") + line + "\r\n", encoding="utf-8")
    found: object = load_config(tmp_path / "s.yaml")
    for part in key.split("."):
        found = getattr(found, part)
    assert found == value


def test_many_problems_are_counted(tmp_path: Path) -> None:
    lines = refused(tmp_path / "s.yaml", PLAIN + "".join(f"k{number}: 1\n" for number in range(100)))
    assert len(lines) == 41
    assert lines[-1] == " and 60 more problems"


def test_a_file_that_is_no_configuration_is_not_read_whole(tmp_path: Path) -> None:
    with (tmp_path / "s.yaml").open("wb") as file:
        file.truncate(10**10)
    with pytest.raises(ConfigError, match="is larger than 500000 bytes, so it is no configuration file"):
        load_config(tmp_path / "s.yaml")


@pytest.mark.parametrize(
    "command", ["merge x.json --outpu y", "export x --dtyp fp16", "search x --stor y", "list --js"]
)
def test_options_are_not_abbreviated(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    from merger.app.cli import main

    with pytest.raises(SystemExit) as ended:
        main(command.split())
    assert ended.value.code == 2
    capsys.readouterr()


def test_options_of_the_benchmark_are_not_abbreviated(capsys: pytest.CaptureFixture[str]) -> None:
    from benchmark.app.cli import main

    with pytest.raises(SystemExit):
        main(["model", "--tagg", "eye"])
    assert "unrecognized arguments" in capsys.readouterr().err
