"""Configurations that are broken in a few places, made from seeds."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

SOUND: dict[str, Any] = {
    "name": "demo",
    "base": "base.safetensors",
    "donors": ["a.safetensors", {"path": "b.safetensors", "name": "b", "bounds": [0, 1]}],
    "pipeline": "pipeline",
    "components": ["denoiser"],
    "granularity": "block",
    "bounds": [-0.5, 1.5],
    "frozen": {"BASE": 0, "IN*": 0.2},
    "tied": [["OUT00", "OUT01"]],
    "tagger": {"path": "tagger", "kind": "wd", "threshold": 0.4},
    "judge": "judge",
    "vocabulary": {"top": 50},
    "tags_per_prompt": [2, 4],
    "template": "best, {tags}",
    "steps": 20,
    "sampler": "ddim",
    "size": [512, 512],
    "seed": 3,
    "baselines": ["uniform"],
    "method": "auto",
    "gradient": {"steps": 9, "learning_rate": 0.06},
    "trials": 40,
    "time_limit": 60.0,
    "storage": "sqlite:///study.db",
    "device": "cpu",
}

ODD: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        "",
        "x",
        " ",
        "\x07",
        "../..",
        "~nouser/x",
        "~",
        "é" * 300,
        "x" * 5000,
        "C:\\models",
        "²",
        "٣",
    ),
    *([], {}, [None], [[1]], [[["deep"]]], {"a": {}}, {1: 2}, {None: None}, {True: 1}),
    *({"*": [0, 1]}, ["IN*"], [["*"]]),
    *(0, -1, 1, 2, 7, 10**5, 10**9, 10**30, -(10**12), 0.0, -0.5, 1e30, float("nan"), float("inf"), 1e-300),
    *("sqlite:///a?b=c", "postgresql://me:pa/ss@host:port/x", "sqlite://", "://", "mysql://[::1", "1e5", "0x1F"),
)


def _each(key: str, values: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """A setting with each of these values."""
    return ((key, value) for value in values)


EDGES: tuple[tuple[str, Any], ...] = (  # that are read, or nearly
    *_each("granularity", ("stage", "module", "channel", {"*": "all"}, {"x": "mine"}, {})),
    *_each("frozen", ({"*": 0}, {"[": 0}, {"IN0?": 0}, {"M00": 1e30}, {"BASE": -0.0}, ["OUT*"])),
    *_each("tied", ([["*"]], [["IN*", "OUT*"]], [["OUT00"]], [[]], [["BASE", "IN00"]], [["no"]])),
    *_each("bounds", ([0, 0], [1, 1], [-1e300, 1e300], [0, 1e-320], [1, 0])),
    *_each("tags_per_prompt", ([1, 1], [0, 0], 1, [11, 11], [1, 10**6])),
    *_each("vocabulary", ({"top": 1}, {"tags": ["smile"]}, {"tags": []}, ["smile", "hat"], "tags.csv")),
    *_each("size", ([8, 8], 16384, [16384, 16384], [0, 8], 12)),
    *_each("prompts", (1, 2, 20_000, 100_001)),
    *_each("validation_prompts", (1, 1000)),
    *_each("template", ("{tags}", "{tags} {tags}", "{}", "{0}", "{tags!r:>999999999}", "{tags", "x")),
    *_each("keep", ({"tag": 0.02}, {"category": 0}, {"tag": -1}, {"tag": 1e400})),
    *_each("components", (["denoiser", "text_encoder"], ["text_encoder"], [], ["vae"])),
    *_each("method", ("gradient", "cmaes", "tpe", "bayes", "random", "no")),
    *_each("judge", ("tagger", {"path": "judge", "kind": "wd"}, "base.safetensors", ".")),
    *_each("donors", (["a.safetensors"] * 2, ["base.safetensors"], [{"path": "a.safetensors"}] * 40)),
    *_each("seed", (0, 2**63, 2**64, 10**30)),
    *(("baselines", []), ("pruning", True), ("device", "cuda:99"), ("device", "meta"), ("clip_skip", 11)),
    *(("threshold", 0), ("threshold", 1), ("time_limit", 1e-300), ("trials", 1), ("batch_size", 10_000)),
    *(("allow_mixed_prediction", True), ("distinct_prompts", False), ("objective", "no"), ("pipeline", "tagger")),
)
RAW = (
    "steps: 012",
    "time_limit: 1:30:00",
    "name: 2024-13-45",
    "seed: " + "9" * 5000,
    "template: " + "[" * 2000,
    "tied: " + "[" * 29 + "]" * 29,
    "base: *x",
    "base: &x [*x]",
    "frozen: {[a]: 1}",
    "frozen: [[a]]",
    "? {a: 1}\n: 2",
    "steps: !!int x",
    "steps: !!python/object/apply:os.system [x]",
    "steps: !!timestamp x",
    'base: "\\ud800"',
    'base: "a\\0b"',
    'base: "C:\\new\\test"',
    "steps:\t3",
    "<<: [1]",
    "<<: {steps: 3}",
    "---\nsteps: 3",
    "%YAML 3.0",
    "steps: 3\nsteps: 4",
    "\n".join(f"k{n}: &k{n} [*k{n - 1}, *k{n - 1}, *k{n - 1}]" if n else "k0: &k0 [1, 1]" for n in range(20)),
    "storage: postgresql://me:secret@host:port/x",
)


@dataclass(frozen=True)
class Broken:
    """A configuration file's bytes, and overrides as they are given to `--set`."""

    data: bytes
    overrides: tuple[str, ...] = ()


def sound_configuration() -> Broken:
    """What is broken here, whole."""
    return Broken(_dumped(SOUND))


def broken_configuration(seed: int) -> Broken:
    """A configuration with a few changes, in its values, its text or its bytes, or with overrides."""
    draw = random.Random(seed)
    text = yaml.safe_dump(SOUND, sort_keys=False, allow_unicode=True)
    kind = draw.random()
    if kind < 0.25:
        return Broken(_dumped(SOUND | dict(draw.sample(EDGES, draw.randint(1, 2)))))
    if kind < 0.6:
        return Broken(_dumped(_changed(draw, draw.randint(1, 3))))
    if kind < 0.7:
        return Broken(_with_line(text, draw).encode("utf-8", "surrogatepass"))
    if kind < 0.85:
        return Broken(_damaged(text.encode(), draw))
    return Broken(text.encode(), tuple(_override(draw) for _ in range(draw.randint(1, 2))))


def _dumped(value: Any) -> bytes:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True).encode("utf-8", "surrogatepass")


def _places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*place, key)
        yield from _places(inner, (*place, key))


def _changed(draw: random.Random, times: int) -> dict[str, Any]:
    """`SOUND` with some values replaced, removed, or put under another key."""
    value = copy.deepcopy(SOUND)
    for _ in range(times):
        place = draw.choice(list(_places(value)))
        holder: Any = value
        for key in place[:-1]:
            holder = holder[key]
        key, how = place[-1], draw.random()
        if how < 0.65:
            holder[key] = copy.deepcopy(draw.choice(ODD))
        elif how < 0.8:
            del holder[key]
        elif isinstance(holder, dict):
            odd = draw.choice(ODD)
            holder[odd if not isinstance(odd, (list, dict)) else f"{key}s"] = holder.pop(key)
        else:
            holder.insert(0, copy.deepcopy(draw.choice(ODD)))
    return value


def _with_line(text: str, draw: random.Random) -> str:
    line = draw.choice(RAW)
    kept = [each for each in text.splitlines() if not each.startswith(line.partition(":")[0] + ":")]
    place = draw.randrange(len(kept) + 1)
    return "\n".join([*kept[:place], line, *kept[place:]]) + "\n"


def _damaged(data: bytes, draw: random.Random) -> bytes:
    """Bytes flipped, cut out, doubled or cut off; or something else altogether."""
    how = draw.random()
    if how < 0.1:
        odd: Sequence[bytes] = (
            b"",
            b"[" * 10_000,
            b"- " * 5000,
            b"{a: " * 3000,
            b"\xff\xfe",
            b"null",
            b"3",
            b"a\n" * 9,
        )
        return draw.choice(odd)
    changed = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(len(changed))
        if how < 0.4:
            changed[place] = draw.randrange(256)
        elif how < 0.6:
            del changed[place : place + draw.randint(1, 20)]
        elif how < 0.8:
            changed[place:place] = changed[place : place + 20]
        else:
            changed[place:place] = draw.choice([b":", b"- ", b"\t", b"#", b"'", b'"', b"&a ", b"*a ", b"!", b"{", b"]"])
    return bytes(changed[: draw.randrange(len(changed))] if how > 0.95 else changed)


def _override(draw: random.Random) -> str:
    """`key=value` as somebody may type it."""
    keys = [*SOUND, "donors.0", "donors.1.bounds", "donors.٣.name", "donors.².name", "donors.-1", "donors.9"]
    keys += ["tagger.path", "gradient.steps.x", "frozen.IN00", "a" * 3000, ".".join("abcdef" * 20), "", ".", "steps."]
    value = str(draw.choice(ODD)) if draw.random() < 0.7 else draw.choice(["[", "{", "*a", "!!int x", "012", "a: b: c"])
    return draw.choice(keys) + draw.choice(["=", "=", "=", "", "=="]) + value
