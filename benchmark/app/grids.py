"""X/Y grids: the same prompts and noise while two things change. `report.sheet` makes one picture of them.

An axis is `models`, `seeds=4`, `steps=8:12:20`, `guidance=4:7:10` or `prompts`; a prompt matrix writes alternatives as
`a|b|c`, or in braces: `{red|blue} hair, {hat|crown}` is four prompts.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmark.app.studio import Studio
from benchmark.errors import InputError, did_you_mean
from benchmark.images import Images
from benchmark.pipelines.diffusers_generator import DiffusersGenerator
from benchmark.pipelines.generation import GenerationSettings
from benchmark.prompts.prompt_set import Prompt, derive_seed
from benchmark.prompts.text import plain_text

AXES = ("models", "seeds", "steps", "guidance", "prompts")
SEEDS, GUIDANCE = 4, (4.0, 7.0, 10.0)  # where an axis names no values


@dataclass(frozen=True)
class Axis:
    """What changes along an axis: `values` are names of models, seeds, steps, guidances or texts of prompts."""

    kind: str
    values: tuple[str | int | float, ...]

    def labels(self) -> tuple[str, ...]:
        """A line of text for each value."""
        if self.kind == "seeds":  # the numbers themselves are long, and follow from --seed
            return tuple(f"seed {number}" for number in range(1, len(self.values) + 1))
        if self.kind == "steps":
            return tuple(f"{value} step{'' if value == 1 else 's'}" for value in self.values)
        if self.kind == "guidance":
            return tuple(f"guidance {value:g}" for value in self.values)
        return tuple(plain_text(str(value)) if self.kind == "prompts" else str(value) for value in self.values)


@dataclass(frozen=True)
class Cell:
    """One image of a grid: the model, the prompt's text, the seed and the settings."""

    model: str
    text: str
    seed: int
    settings: GenerationSettings


def alternatives(text: str) -> tuple[str, ...]:
    """`a|b` -> `a`, `b`; `{a|b} c {d|e}` -> four prompts, the last alternative changing fastest.

    Raises InputError for an empty alternative.
    """
    pieces = re.split(r"\{([^{}]*\|[^{}]*)\}", text) if re.search(r"\{[^{}]*\|[^{}]*\}", text) else ["", text, ""]
    choices = [piece.split("|") if number % 2 else [piece] for number, piece in enumerate(pieces)]
    prompts = tuple("".join(chosen).strip() for chosen in itertools.product(*choices))
    if not all(prompts):
        raise InputError(f"prompt '{text}': an alternative is empty. Write alternatives as a|b or {{a|b}}.")
    return tuple(dict.fromkeys(prompts))


def parse_axes(text: str, studio: Studio, prompts: Sequence[str], seed: int) -> tuple[Axis, Axis]:
    """`models,steps=8:12` -> (the axis from row to row, the axis from column to column). Raises InputError."""
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 2 or parts[0].partition("=")[0] == parts[1].partition("=")[0]:
        raise InputError(f"grid '{text}': name two different axes, such as models,seeds or prompts,steps=8:12:20.")
    rows, columns = (_axis(part, studio, prompts, seed) for part in parts)
    return rows, columns


def _axis(text: str, studio: Studio, prompts: Sequence[str], seed: int) -> Axis:
    kind, given, values = text.partition("=")
    if kind not in AXES:
        raise InputError(f"Unknown axis '{kind}' of a grid.{did_you_mean(kind, AXES)}")
    if kind in ("models", "prompts"):
        if given:
            raise InputError(f"grid '{text}': {kind} come from the rest of the command line; leave '={values}' out.")
        return Axis(kind, tuple(studio.models if kind == "models" else prompts))
    own: dict[str, Sequence[int | float]] = {
        "steps": sorted({max(1, studio.settings.steps // 2), studio.settings.steps, 2 * studio.settings.steps}),
        "guidance": GUIDANCE,
    }
    try:
        if kind == "seeds":
            count = int(values) if given else SEEDS
            numbers: Sequence[int | float] = [derive_seed(seed, "grid", number) for number in range(count)]
        else:
            read = int if kind == "steps" else float
            numbers = [read(value) for value in values.split(":")] if given else own[kind]
    except ValueError:
        raise InputError(f"grid '{text}': give numbers, such as seeds=4, steps=8:12:20 or guidance=4:7:10.") from None
    if not numbers or len(set(numbers)) != len(numbers):
        raise InputError(f"grid '{text}': give one or more different numbers.")
    return Axis(kind, tuple(numbers))


def cells(rows: Axis, columns: Axis, studio: Studio, prompts: Sequence[str], seed: int) -> dict[tuple[int, ...], Cell]:
    """(block, row, column) -> cell, with a block for each prompt unless prompts are an axis.

    What no axis changes is the first model, the first seed and the settings.
    """
    blocks = [""] if "prompts" in (rows.kind, columns.kind) else list(prompts)
    made: dict[tuple[int, ...], Cell] = {}
    for (b, text), (r, down), (c, right) in itertools.product(*map(enumerate, (blocks, rows.values, columns.values))):
        said: dict[str, Any] = {
            "models": next(iter(studio.models)),
            "seeds": derive_seed(seed, "grid", 0),
            "prompts": text,
        }
        said |= {"steps": studio.settings.steps, "guidance": studio.settings.guidance}
        said |= {rows.kind: down, columns.kind: right}
        settings = replace(studio.settings, steps=said["steps"], guidance=said["guidance"])
        made[b, r, c] = Cell(said["models"], said["prompts"], said["seeds"], settings)
    return made


def draw_cells(
    wanted: Mapping[tuple[int, ...], Cell], studio: Studio, report: Callable[[int], None]
) -> dict[tuple[int, ...], Images]:
    """Every cell's image, uint8 [H, W, 3]. Each model is loaded once; `report(images done)` follows each batch."""
    drawn: dict[tuple[int, ...], Images] = {}
    for model in dict.fromkeys(cell.model for cell in wanted.values()):
        pipeline = studio.load(model)
        mine = {place: cell for place, cell in wanted.items() if cell.model == model}
        for settings in dict.fromkeys(cell.settings for cell in mine.values()):
            places = [place for place, cell in mine.items() if cell.settings == settings]
            prompts = [Prompt(n, mine[place].text, (), mine[place].seed) for n, place in enumerate(places)]
            done = 0
            for images in DiffusersGenerator(pipeline, settings).generate(prompts):
                drawn |= dict(zip(places[done : done + len(images)], images, strict=True))
                done += len(images)
                report(len(drawn))
    return drawn
