"""Broken checkpoints and recipes, by the thousand: none may end in a traceback, take long, or take much memory.

The tests run the same in small (`tests/fuzz`). Here `--full` runs 10,000 checkpoints and 700 recipes, on files that are
made from seeds; the last line is JSON.
"""

from __future__ import annotations

import argparse
import importlib
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.fuzz.broken_files import (
    Answer,
    Original,
    answer,
    broken_checkpoint,
    broken_recipe,
    small_files,
    sound_recipe,
)

MOST_SECONDS = 2.0
MOST_MEMORY = 200_000_000


def main() -> int:
    """Run the broken files that the arguments ask for. Returns 1 if one was not answered in a line, else 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="10,000 checkpoints and 700 recipes")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="the first seed")
    args = parser.parse_args()
    checkpoints, recipes = (10_000, 700) if args.full else (500, 500)
    with tempfile.TemporaryDirectory() as place:
        sound = make_files(Path(place))
        found = {
            "checkpoints": run(broken_files(sound, Path(place)), args.first, checkpoints),
            "recipes": run(broken_recipes(sound, Path(place)), args.first, recipes),
        }
    print(json.dumps(found))
    return int(any(kind["failed"] for kind in found.values()))


def make_files(folder: Path) -> dict[str, Path]:
    """Sound files to break, tiny and of random weights; `base` and `donor` are compatible."""
    sound = importlib.import_module("tests.fuzz.sound_files")  # needs the models of the other tests
    return sound.make_sound_files(folder) | small_files(folder)


def broken_files(sound: dict[str, Path], folder: Path, *, whole: bool = True) -> Callable[[int], Iterator[Answer]]:
    """Answers to a broken file: inspected alone, as a donor, and blended as base and as donor.

    whole: whether all four are asked for each; otherwise one after the other, from file to file.
    """
    originals = {name: Original.read(file) for name, file in sound.items()}
    names = sorted(originals)
    broken, recipe, output = folder / "broken.safetensors", folder / "broken.json", folder / "out.safetensors"

    def answers(seed: int) -> Iterator[Answer]:
        name = names[seed % len(names)]
        broken.write_bytes(broken_checkpoint(originals[name], seed))
        base = sound["base"] if name == "lora" else sound[name]
        turn = seed // len(names) % 4
        if whole or turn == 0:
            yield answer(["inspect", str(broken)])
        if whole or turn == 1:
            yield answer(["inspect", str(base), str(broken)])
        for place, (first, second) in enumerate(((base, broken), (broken, base)), 2):
            if not whole and turn != place:
                continue
            table = {
                "base": {"path": str(first), "name": "a"},
                "donors": [{"path": str(second), "name": "b"}],
                "weights": {"*": {"b": 0.5}},
            }
            recipe.write_text(json.dumps(table))
            yield answer(["merge", str(recipe), "--output", str(output)])

    return answers


def broken_recipes(sound: dict[str, Path], folder: Path) -> Callable[[int], Iterator[Answer]]:
    """Answers to a broken recipe: as a file of its own, and in the metadata of a blend that is verified."""
    from safetensors.torch import load_file, save_file

    table = sound_recipe(sound["base"], sound["donor"])
    recipe, output = folder / "broken.json", folder / "out.safetensors"
    tensors = load_file(sound["base"])

    def answers(seed: int) -> Iterator[Answer]:
        text = broken_recipe(table, seed)
        recipe.write_text(text, encoding="utf-8", errors="surrogatepass")
        yield answer(["merge", str(recipe), "--output", str(output)])
        if seed % 5 == 0:
            save_file(tensors, folder / "blend.safetensors", metadata={"layermerge.recipe": text})
            yield answer(["verify", str(folder / "blend.safetensors")])

    return answers


def run(answers: Callable[[int], Iterator[Answer]], first: int, count: int) -> dict[str, Any]:
    """Run `count` seeds and print what was not answered in a line. Returns the figures."""
    statuses: Counter[int] = Counter()
    failed, calls, slowest, largest = 0, 0, 0.0, 0
    warm = False
    for seed in range(first, first + count):
        for call, each in enumerate(answers(seed)):
            calls += 1
            statuses[each.status] += 1
            if warm:  # the first call imports what every other uses
                slowest, largest = max(slowest, each.seconds), max(largest, each.memory)
            problem = each.traceback.strip().splitlines()[-1:] or (
                ["took too long"] if warm and each.seconds > MOST_SECONDS else []
            )
            if not problem and warm and each.memory > MOST_MEMORY:
                problem = ["took too much memory"]
            if not problem and each.status not in (0, 1, 2):
                problem = [f"exit status {each.status}"]
            if problem:
                failed += 1
                print(f"seed {seed}, call {call}: {problem[0]} | {each.said[:160]}", flush=True)
                if each.traceback:
                    print("   ", " < ".join(_frames(each.traceback)), flush=True)
            warm = warm or seed > first + 20
    return {
        "cases": count,
        "calls": calls,
        "failed": failed,
        "statuses": dict(statuses),
        "slowest_cpu_s": round(slowest, 2),
        "largest_growth_mb": round(largest / 1e6),
    }


def _frames(text: str) -> list[str]:
    lines = [line.strip() for line in text.splitlines() if line.strip().startswith("File ")]
    return [line.split("/")[-1].replace('", line ', ":").replace(", in ", " ") for line in reversed(lines)][:4]


if __name__ == "__main__":
    raise SystemExit(main())
