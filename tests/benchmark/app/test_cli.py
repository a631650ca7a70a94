"""The command line: what it prints, where, with which status; and that asking for help is quick."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmark.app import benchmark, studio
from benchmark.app.cli import main
from benchmark.errors import InputError
from benchmark.evaluate.runner import Batch
from benchmark.prompts.vocabulary import Vocabulary
from benchmark.report import progress
from benchmark.taggers import registry

ROOT = Path(__file__).parents[3]


@pytest.fixture
def arguments(
    tiny_family: dict[str, Path],
    tiny_pipeline_folder: Path,
    tiny_wd_tagger: Path,
    tiny_tagger_folder: Path,
    tmp_path: Path,
) -> dict[str, Any]:
    options = {
        "--pipeline": tiny_pipeline_folder,
        "--tagger": tiny_wd_tagger,
        "--judge": tiny_tagger_folder,
        "--tags": "top:10",
        "--prompts": 3,
        "--tags-per-prompt": "1,2",
        "--steps": 1,
        "--size": "32x32",
        "--batch-size": 2,
        "--device": "cpu",
        "--threads": 1,
        "--output": tmp_path / "out",
    }
    return {"models": [tiny_family["base"], f"hot={tiny_family['warm']}"], **options}


def call(arguments: dict[str, Any], *more: str, **changes: Any) -> int:
    options = {**arguments, **{f"--{name.replace('_', '-')}": value for name, value in changes.items()}}
    models = options.pop("models")
    flat = [str(word) for pair in options.items() for word in pair]
    return main([*map(str, models), *flat, *more])


def test_tables_json_and_rows_come_out_and_are_the_same_again_without_a_model(
    arguments: dict[str, Any], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call(arguments, "--keep-images") == 0
    told = capfd.readouterr()
    assert told.out.startswith("| model | accuracy by tagger")
    assert "| hot " in told.out
    assert "against base by judge" in told.out
    assert "base (1/2): 6/6 images" in told.err
    output = arguments["--output"]
    assert (output / "result.md").read_text() == told.out
    assert len(list(output.glob("rows/*/images/*.webp"))) == 12
    html = (output / "report.html").read_text()
    assert html.count('<img src="data:image/webp;base64,') == 12
    assert "report.html" in told.err

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded again")

    monkeypatch.setattr(studio, "load_pipeline", refuse)
    assert call(arguments) == 0
    assert capfd.readouterr().out == told.out
    assert call(arguments, "--json", threshold=0.3) == 0  # another threshold needs no image either
    document = json.loads(capfd.readouterr().out)
    assert [model["name"] for model in document["models"]] == ["base", "hot"]
    assert document["settings"]["thresholds"] == {"tagger": 0.3, "judge": 0.3}
    assert document == json.loads((output / "result.json").read_text())


def test_an_interrupted_command_goes_on(
    arguments: dict[str, Any], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: progress.DrawingProgress, done: int, batch: object) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(progress.DrawingProgress, "__call__", stop)
        assert call(arguments) == 130
    assert "goes on from here" in capfd.readouterr().err
    assert call(arguments) == 0
    told = capfd.readouterr()
    assert "base (1/2): 4/6 images" in told.err
    assert call(arguments, output=arguments["--output"] / "fresh") == 0
    assert capfd.readouterr().out == told.out


def test_a_full_disk_is_one_line_and_the_next_call_goes_on(
    arguments: dict[str, Any], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save, saved = np.savez_compressed, 0

    def save_once(*given: Any, **arrays: Any) -> None:
        nonlocal saved
        if saved:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(*given, **arrays)
        saved += 1

    with monkeypatch.context() as patched:
        patched.setattr(np, "savez_compressed", save_once)
        assert call(arguments) == 2
    *_, last = capfd.readouterr().err.splitlines()
    assert last.startswith("error: ")
    assert "cannot be written (No space left on device). Nothing was left behind. Make room" in last
    output = arguments["--output"]
    assert not list(output.rglob("*.partial"))
    assert call(arguments) == 0
    told = capfd.readouterr()
    assert "base (1/2): 2/6 images" in told.err
    assert call(arguments, output=output / "fresh") == 0
    assert capfd.readouterr().out == told.out


def test_calibrating_compares_steps(arguments: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    assert call(arguments, "--calibrate", "1,2") == 0
    told = capfd.readouterr()
    assert told.out.startswith("| steps | size  | seconds an image | rank correlation by tagger")
    assert "| rank correlation by judge |" in told.out
    assert "base, 2 steps, 32x32: 6/6 images" in told.err
    assert call(arguments, "--calibrate", "2,1", "--json") == 0
    by_role = json.loads(capfd.readouterr().out)
    assert list(by_role) == ["tagger", "judge"]
    settings = by_role["judge"]["settings"]
    assert [setting["effort"] for setting in settings] == [
        {"steps": 1, "width": 32, "height": 32},
        {"steps": 2, "width": 32, "height": 32},
    ]
    assert all(setting["seconds"] > 0 for setting in settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tagger": "nowhere"}, "nowhere: there is no such folder"),
        ({"tags": "nowhere.csv"}, "nowhere.csv: there is no such file"),
        ({"tags": "top:many"}, "top:K with a number"),
        ({"tags_per_prompt": "few"}, "give a number (4), a range (3-6) or a list (2,4,8)"),
        ({"tags_per_prompt": "5-2"}, "smaller first"),
        ({"calibrate": "20"}, "two or more different numbers of steps"),
        ({"calibrate_sizes": "32"}, "two or more different numbers of steps"),
        ({"calibrate_sizes": "32,33"}, "multiples of 8"),
        ({"calibrate_sizes": "32,many"}, "give WIDTHxHEIGHT"),
        ({"calibrate": "8,few"}, "two or more different numbers of steps"),
        ({"size": "huge"}, "give WIDTHxHEIGHT"),
        ({"size": "33x32"}, "multiples of 8"),
        ({"sampler": "dppm"}, "Unknown sampler 'dppm'"),
        ({"threshold": 1.5}, "between 0 and 1"),
        ({"pipeline": "nowhere"}, "nowhere: there is no such folder (--pipeline)"),
        ({"pipeline": "nowhere/a.safetensors"}, "nowhere/a.safetensors: there is no such folder (--pipeline)"),
        ({"prompts": 0}, "must be 1 or more"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    arguments: dict[str, Any], capfd: pytest.CaptureFixture[str], changes: dict[str, Any], message: str
) -> None:
    assert call(arguments, **changes) == 2
    told = capfd.readouterr()
    assert told.out == ""
    assert told.err.startswith("error: ")
    assert told.err.count("\n") == 1
    assert message in told.err
    assert not arguments["--output"].exists()


def test_a_missing_or_damaged_model_and_two_of_one_name(
    arguments: dict[str, Any], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    base = arguments["models"][0]
    assert call({**arguments, "models": [base, "none.safetensors"]}) == 2
    assert "none.safetensors: there is no such file or folder" in capfd.readouterr().err
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(base.read_bytes()[:5000])
    assert call({**arguments, "models": [base, cut]}) == 2
    assert "cut.safetensors: is no safetensors file, or was cut short" in capfd.readouterr().err
    (tmp_path / "file").touch()
    assert call({**arguments, "--output": tmp_path / "file" / "out"}) == 2
    assert "cannot be written to" in capfd.readouterr().err
    assert not arguments["--output"].exists()
    assert call({**arguments, "models": [f"x={base}", f"x={base}"]}) == 2
    assert "Two models are called 'x'" in capfd.readouterr().err


def test_a_tag_the_judge_does_not_know(
    arguments: dict[str, Any], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "tags.csv").write_text("tag\nsmile\naya_(example)\n")
    assert call(arguments, tags=tmp_path / "tags.csv", tags_per_prompt=1) == 2
    assert "vit does not know the tag 'aya_(example)'" in capfd.readouterr().err


def test_sizes() -> None:
    assert benchmark.parse_sizes("2, 4-6,8") == [(2, 2), (4, 6), (8, 8)]
    with pytest.raises(InputError):
        benchmark.parse_sizes("2-")
    prompts = benchmark.prompts_of_sizes(Vocabulary(tuple("abcdef")), 4, [(1, 1), (3, 3)], 0, "{tags}", 2)
    assert [p.index for p in prompts] == [n for n in range(8) for _ in range(2)]
    assert [len(p.tags) for p in prompts] == [1] * 8 + [3] * 8


def test_a_few_images_are_kept_for_the_page(tmp_path: Path) -> None:
    heard = progress.DrawingProgress("m", 20, tmp_path / "images", keep=5)
    for start in range(0, 20, 4):
        images = np.full((4, 8, 8, 3), start, np.uint8)
        heard(start + 4, Batch(start, images, {}, np.zeros(4, bool), np.zeros(4, np.int64)))
    assert sorted(file.name for file in (tmp_path / "images").iterdir()) == [f"{n:06}.webp" for n in range(5)]


def test_efforts() -> None:
    assert benchmark.parse_efforts("8, 4", "32,64x32") == [(4, 32, 32), (4, 64, 32), (8, 32, 32), (8, 64, 32)]
    assert benchmark.parse_efforts("8", "32,64") == [(8, 32, 32), (8, 64, 64)]


def test_a_known_tagger_brings_its_threshold_and_says_so(
    arguments: dict[str, Any], capfd: pytest.CaptureFixture[str], tiny_wd_tagger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert registry.recommended_threshold(registry.open_tagger(tiny_wd_tagger, threads=1)) is None  # not a known one
    known = replace(registry._FORMATS["wd"], thresholds={14: (0.35, "tiny: its own page")})
    monkeypatch.setitem(registry._FORMATS, "wd", known)
    assert call(arguments, "--json") == 0
    told = capfd.readouterr()
    assert json.loads(told.out)["settings"]["thresholds"] == {"tagger": 0.35, "judge": 0.5}
    assert "found means 0.35 or more (tiny: its own page); --threshold chooses another" in told.err
    assert call(arguments, "--json", threshold=0.4, judge_threshold=0.6) == 0
    told = capfd.readouterr()
    assert json.loads(told.out)["settings"]["thresholds"] == {"tagger": 0.4, "judge": 0.6}
    assert "found means" not in told.err


def test_times() -> None:
    assert [progress.time_left(s) for s in (7, 750, 3900)] == ["0:07", "12:30", "1:05:00"]


def test_help_is_quick_and_importing_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'diffusers', 'transformers', 'onnxruntime', 'optuna'}"
    modules = ", ".join(f"benchmark.{file.stem}" for file in (ROOT / "benchmark").glob("*.py") if file.stem[0] != "_")
    code = f"import sys, {modules}; print({heavy} & set(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "set()"
    asked = subprocess.run(
        [sys.executable, "-m", "benchmark", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "python -m benchmark a.safetensors b.safetensors" in asked.stdout


@pytest.mark.parametrize(
    "option", ["models", "--pipeline", "--tagger", "--judge", "--output", "--lora", "--vocabulary", "--style-reference"]
)
def test_a_path_that_is_too_long_is_one_line(
    option: str, arguments: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    long = Path("é" * 300)
    given = {name: value for name, value in arguments.items() if (name, option) != ("--tags", "--vocabulary")}
    more = ["--style-vgg", "x"] if option == "--style-reference" else []
    assert call({**given, option: [long] if option == "models" else long}, *more) == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
