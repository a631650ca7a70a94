"""JSON files that are broken in one or two places, as a slip, another program or an ill will may leave them."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

ODD: tuple[Any, ...] = (
    *(None, True, False, "", "x", "\x00", "../..", "tab\there", "é" * 300, [], {}, [None], [[1]], {"a": {}}),
    *(0, -1, 1, 2, 7, 10**5, 10**9, 10**30, -(10**12), 0.0, -0.5, 0.3, 1e30, float("nan"), float("inf")),
    *(
        [1, 2, 3],
        [0, 0, 0],
        [0.5] * 7,
        {"height": -1, "width": 3},
        {"height": 10**6, "width": 10**6},
        {"shortest_edge": 0},
    ),
    *({"shortest_edge": "9"}, {"longest_edge": 9}, ["a", "b", "c"], [10**9] * 3),
)


def broken(text: str, draw: random.Random) -> bytes:
    """The JSON `text` with one or two values, keys or bytes changed."""
    kind = draw.random()
    if kind < 0.08:
        return text.encode()[: draw.randrange(len(text))]
    if kind < 0.12:
        data = bytearray(text.encode())
        for _ in range(draw.randint(1, 4)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        return bytes(data)
    if kind < 0.14:
        return draw.choice(
            [b"[" * 100_000, b'{"a":' * 50_000, b"", b"null", b"[]", b"3", b'"x"', b"9" * 5000, b"\xff\xfe{"]
        )
    value = json.loads(text)
    for _ in range(draw.randint(1, 2)):
        place = draw.choice(list(_places(value)) or [()])
        value = _changed(value, place, draw)
    return json.dumps(value).encode()


def _places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where values are: their keys and indices from the top."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*place, key)
        yield from _places(inner, (*place, key))


def _changed(value: Any, place: tuple[Any, ...], draw: random.Random) -> Any:
    if not place:
        return copy.deepcopy(draw.choice(ODD))
    holder = value
    for key in place[:-1]:
        holder = holder[key]
    how, key = draw.random(), place[-1]
    if how < 0.7:
        holder[key] = copy.deepcopy(draw.choice(ODD))
    elif how < 0.85:
        del holder[key]
    elif isinstance(holder, dict):
        holder[draw.choice(["unknown", str(key).upper(), f" {key}", "", "model_type", "torch_dtype"])] = holder.pop(key)
    else:
        holder.append(copy.deepcopy(draw.choice(ODD)))
    return value
