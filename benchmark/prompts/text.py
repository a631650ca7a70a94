"""The words of a prompt with their emphasis, as web UIs read them. Pure.

`(tag)` is 1.1 times stronger, `((tag))` 1.21 times, `(tag:1.3)` 1.3 times, `[tag]` 1.1 times weaker, and `\\(` is an
ordinary parenthesis. `benchmark.pipelines.clip_text` encodes such prompts. The grammar is that of `prompt_parser.py`
in AUTOMATIC1111/stable-diffusion-webui (`re_attention`).
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


def filled(template: str, words: str) -> str:
    """The template with `words` (escaped) in every place of `{tags}`, so that the words are read as they are.

    The words may end like a weight: `({tags})` with the tag `:3` would be `(:3)`, nothing three times as strong. No web
    UI has an escape for a colon, so the weight that the bracket has anyway is written out: `(:3:1.1)`.
    """
    pieces = template.split("{tags}")
    text, inserted = pieces[0], list[tuple[int, int]]()
    for piece in pieces[1:]:
        if (len(text) - len(text.rstrip("\\"))) % 2 and words[:1] in tuple("()[]\\"):
            text += "\\"  # a backslash of the template would escape the tag's first character
        inserted.append((len(text), len(text) + len(words)))
        text += words + piece
    opened: list[str] = []
    ends: list[int] = []  # of brackets whose weight is written out
    for match in _PIECES.finditer(text):
        piece, last = match[0], opened[-1] if opened else ""
        if piece in "([":
            opened.append(piece)
        elif (piece == ")" and last == "(") or (piece == "]" and last == "["):
            opened.pop()
        elif piece[0] == ":" and piece[-1] == ")" and last == "(":
            opened.pop()
            if any(start < match.end() - 1 and match.start() < end for start, end in inserted):
                ends.append(match.end() - 1)
    for end in reversed(ends):
        text = f"{text[:end]}:{_STEP}{text[end:]}"
    return text
