"""The words of a prompt with their emphasis, as web UIs read them. Pure.

`(tag)` is 1.1 times stronger, `((tag))` 1.21 times, `(tag:1.3)` 1.3 times, `[tag]` 1.1 times weaker, and `\\(` is an
ordinary parenthesis. `benchmark.pipelines.clip_text` encodes such prompts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_STEP = 1.1  # what one pair of brackets changes a weight by
_PIECES = re.compile(r"\\[()\[\]\\]|[(\[]|:\s*[+-]?(?:\d+\.?\d*|\.\d+)\s*\)|[)\]]|[^\\()\[\]:]+|[\\:]")


@dataclass(frozen=True)
class WeightedText:
    """Words that share one weight."""

    text: str
    weight: float


def parse_emphasis(prompt: str) -> tuple[WeightedText, ...]:
    """The prompt's words with their weights.

    A closing bracket without an opening one is an ordinary character; a bracket that is never closed reaches to the
    end.
    """
    texts: list[str] = []
    weights: list[float] = []
    opened: list[tuple[str, int]] = []  # a bracket, and where in `texts` its words begin

    def scale(start: int, factor: float) -> None:
        weights[start:] = [weight * factor for weight in weights[start:]]

    for piece in _PIECES.findall(prompt):
        last = opened[-1][0] if opened else ""
        if piece in "([":
            opened.append((piece, len(texts)))
        elif piece == ")" and last == "(":
            scale(opened.pop()[1], _STEP)
        elif piece == "]" and last == "[":
            scale(opened.pop()[1], 1 / _STEP)
        elif piece[0] == ":" and piece[-1] == ")" and last == "(":
            scale(opened.pop()[1], float(piece[1:-1]))
        else:
            texts.append(piece[1:] if len(piece) == 2 and piece[0] == "\\" else piece)
            weights.append(1.0)
    while opened:
        bracket, start = opened.pop()
        scale(start, _STEP if bracket == "(" else 1 / _STEP)
    found: list[WeightedText] = []
    for text, weight in zip(texts, weights, strict=True):
        if found and found[-1].weight == weight:
            found[-1] = WeightedText(found[-1].text + text, weight)
        else:
            found.append(WeightedText(text, weight))
    return tuple(found)


def plain_text(prompt: str) -> str:
    """The prompt without its emphasis, for encoders that do not know it."""
    return "".join(part.text for part in parse_emphasis(prompt))


def escaped(text: str) -> str:
    """The text with its brackets and backslashes escaped, so that none is read as emphasis."""
    return re.sub(r"([()\[\]\\])", r"\\\1", text)
