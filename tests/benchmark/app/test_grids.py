"""Grids: what is drawn where, and that the sheet shows each image in its place."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmark.app import grids
from benchmark.app.cli import main
from benchmark.app.grids import Axis, alternatives, cells, parse_axes
from benchmark.app.studio import Studio
from benchmark.errors import InputError
from benchmark.pipelines.diffusers_generator import DiffusersGenerator
from benchmark.pipelines.generation import GenerationSettings
from benchmark.pipelines.loading import load_pipeline
from benchmark.prompts.prompt_set import Prompt
from benchmark.report import sheet
from benchmark.report.sheet import compose, labels, save_grid, wrapped

STUDIO = Studio({"a": Path("a"), "b": Path("b")}, GenerationSettings(steps=6, guidance=5.0), None, "cpu", None)


def test_alternatives() -> None:
    assert alternatives("cat") == ("cat",)
    assert alternatives("cat|dog | red fox") == ("cat", "dog", "red fox")
    assert alternatives("{red|blue} hair, {hat|crown}") == (
        "red hair, hat",
        "red hair, crown",
        "blue hair, hat",
        "blue hair, crown",
    )
    assert alternatives("girl{|, smile}") == ("girl", "girl, smile")
    assert alternatives("{plain} braces") == ("{plain} braces",)
    with pytest.raises(InputError, match="an alternative is empty"):
        alternatives("cat|")


def test_axes() -> None:
    rows, columns = parse_axes("models, steps=8:12", STUDIO, ["p"], 0)
    assert (rows, columns) == (Axis("models", ("a", "b")), Axis("steps", (8, 12)))
    assert columns.labels() == ("8 steps", "12 steps")
    assert Axis("steps", (1,)).labels() == ("1 step",)
    assert Axis("seeds", (2**62, 7)).labels() == ("seed 1", "seed 2")
    assert parse_axes("steps,guidance", STUDIO, ["p"], 0)[0].values == (3, 6, 12)
    assert parse_axes("prompts,guidance=1.5:7", STUDIO, ["(p:1.2)", "q"], 0)[1].labels() == (
        "guidance 1.5",
        "guidance 7",
    )
    assert parse_axes("prompts,seeds", STUDIO, ["(p:1.2)", "q"], 0)[0].labels() == ("p", "q")
    three, four = (parse_axes(f"models,seeds{n}", STUDIO, ["p"], 0)[1].values for n in ("=3", ""))
    assert four[:3] == three
    assert len(set(four)) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models", "two different axes"),
        ("steps=1,steps=2", "two different axes"),
        ("models,step=8", "Did you mean 'steps'"),
        ("models,steps=few", "give numbers"),
        ("models,seeds=0", "one or more different numbers"),
        ("models,steps=8:8", "one or more different numbers"),
        ("models=2,seeds", "leave '=2' out"),
    ],
)
def test_axes_that_are_none(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_axes(text, STUDIO, ["p"], 0)


def test_a_cell_holds_what_its_axes_say_and_the_rest_as_it_is() -> None:
    rows, columns = parse_axes("models,guidance=2:3", STUDIO, ["p", "q"], 7)
    made = cells(rows, columns, STUDIO, ["p", "q"], 7)
    assert set(made) == set(itertools.product(range(2), range(2), range(2)))
    cell = made[1, 0, 1]
    assert (cell.model, cell.text, cell.settings.guidance, cell.settings.steps) == ("a", "q", 3, 6)
    assert len({c.seed for c in made.values()}) == 1
    rows, columns = parse_axes("prompts,seeds=3", STUDIO, ["p", "q"], 7)
    made = cells(rows, columns, STUDIO, ["p", "q"], 7)
    assert {place[0] for place in made} == {0}
    assert [made[0, r, 0].text for r in range(2)] == ["p", "q"]
    assert len({c.seed for c in made.values()}) == 3
    assert {c.model for c in made.values()} == {"a"}


def test_every_image_stands_in_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shades = {place: 10 * n for n, place in enumerate(itertools.product(range(2), range(2), range(3)), start=1)}
    drawn = {place: np.full((20, 30, 3), (shade, 0, 0), np.uint8) for place, shade in shades.items()}
    rows = ("a", "a name of three words that is too long for one line of any label, but not for two of them")
    picture = compose(drawn, rows, ("1 step", "2 steps", "3 steps"), ["first", "second"])
    found = {shade: np.argwhere((picture == (shade, 0, 0)).all(axis=2)) for shade in shades.values()}
    corners = {place: found[shade].min(axis=0) for place, shade in shades.items()}
    for place, shade in shades.items():
        assert np.array_equal(found[shade].max(axis=0) - corners[place], (19, 29))
    for b, r, c in shades:
        pitch = corners[b, 0, 1][1] - corners[b, 0, 0][1]
        assert pitch >= 38
        assert np.array_equal(corners[b, r, c] - corners[b, 0, 0], (r * (20 + 8 + 20), c * pitch))  # of three lines
    assert corners[1, 0, 0][0] > corners[0, 1, 0][0] + 20
    assert save_grid(picture, tmp_path).name == "grid.webp"
    monkeypatch.setattr(sheet, "_WEBP", 50)
    assert save_grid(picture, tmp_path).name == "grid.png"
    with Image.open(tmp_path / "grid.png") as image:
        assert np.array_equal(np.asarray(image), picture)


def test_long_labels_are_wrapped_and_show_what_tells_them_apart() -> None:
    assert wrapped("red hair, smile", 9, len) == ["red hair,", "smile"]
    assert wrapped("red hair, smile", 99, len) == ["red hair, smile"]
    assert wrapped("abcdefghij", 4, len) == ["abcd", "efgh", "ij"]
    assert wrapped("one two three four", 5, len, most=2) == ["one", "two…"]
    assert wrapped("", 5, len) == [""]
    for width in (7, 12, 30):
        lines = wrapped("a prompt of words, some of them extraordinarily long, as they are", width, len)
        assert all(0 < len(line) <= width for line in lines)
    start = "one girl, " * 30
    found = labels([f"{start}red hair, hat", f"{start}blue hair, hat"], 20, len)
    assert found == [["… red hair, hat"], ["… blue hair, hat"]]
    assert labels(["a" * 300, "b"], 20, len)[1] == ["b"]
    assert labels([start], 20, len)[0][-1].endswith("…")


def test_from_the_command_line(
    tiny_family: dict[str, Path], tiny_pipeline_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [str(tiny_family["base"]), str(tiny_family["warm"]), "--pipeline", str(tiny_pipeline_folder)]
    words += f"--steps 1 --size 32x32 --device cpu --sampler ddim --output {tmp_path / 'out'}".split()
    assert main([*words, "--grid", "models,steps=1:2", "--prompt", "smile|hat", "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["rows"] == ["base", "warm"]
    assert told["columns"] == ["1 step", "2 steps"]
    assert told["prompts"] == ["smile", "hat"]
    assert Path(told["grid"]).is_file()
    assert main([*words, "--prompt", "smile"]) == 0  # prompts down, models across
    assert capfd.readouterr().out.strip() == str(tmp_path / "out" / "grid.webp")
    assert main([*words, "--grid", "models,seeds"]) == 2
    assert "Name a tagger with --tagger" in capfd.readouterr().err


def test_a_cell_is_what_the_benchmark_draws(tiny_family: dict[str, Path], tiny_pipeline_folder: Path) -> None:
    settings = GenerationSettings(steps=1, sampler="ddim", width=32, height=32)
    studio = Studio({"m": tiny_family["base"]}, settings, str(tiny_pipeline_folder), "cpu", None)
    wanted = cells(*parse_axes("steps=1:2,seeds=2", studio, ["hat"], 3), studio, ["hat"], 3)
    heard: list[int] = []
    drawn = grids.draw_cells(wanted, studio, heard.append)
    cell = wanted[0, 1, 1]
    pipeline = load_pipeline(tiny_family["base"], config=tiny_pipeline_folder)
    (alone,) = DiffusersGenerator(pipeline, cell.settings).generate([Prompt(0, "hat", (), cell.seed)])
    assert np.abs(drawn[0, 1, 1].astype(int) - alone[0]).max() <= 1
    assert heard[-1] == 4
