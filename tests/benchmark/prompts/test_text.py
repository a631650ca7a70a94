"""Emphasis, as web UIs read it."""

from __future__ import annotations

import itertools
import random

import pytest

from benchmark.prompts.prompt_set import make_prompts
from benchmark.prompts.text import WeightedText, escaped, filled, parse_emphasis, plain_text
from benchmark.prompts.vocabulary import Vocabulary


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("a, b", [("a, b", 1)]),
        ("", []),
        ("(a)", [("a", 1.1)]),
        ("((a)) b", [("a", 1.21), (" b", 1)]),
        ("a (b:1.3) c", [("a ", 1), ("b", 1.3), (" c", 1)]),
        ("(a (b:2) c:0.5)", [("a ", 0.5), ("b", 1.0), (" c", 0.5)]),
        ("[a]", [("a", 1 / 1.1)]),
        ("[(a)]", [("a", 1.0)]),
        (r"star \(symbol\)", [("star (symbol)", 1)]),
        (r"(star \(symbol\):1.2)", [("star (symbol)", 1.2)]),
        ("(a: .5 )", [("a", 0.5)]),
        ("12:30, a: b", [("12:30, a: b", 1)]),
        (":) a", [(":) a", 1)]),
        ("(a", [("a", 1.1)]),
        ("a] b", [("a] b", 1)]),
        ("[a:1.5)", [("a:1.5)", 1 / 1.1)]),
        ("a\\b", [("a\\b", 1)]),
    ],
)
def test_emphasis(prompt: str, parts: list[tuple[str, float]]) -> None:
    parsed = parse_emphasis(prompt)
    assert [part.text for part in parsed] == [text for text, _ in parts]
    assert [part.weight for part in parsed] == pytest.approx([weight for _, weight in parts])


def test_escaping_is_undone_by_parsing() -> None:
    for text in ("star (symbol)", "a [b] \\ c", ":)", "(o)_(o)", "((x:1.2))"):
        assert parse_emphasis(escaped(text)) == (WeightedText(text, 1.0),)
        assert plain_text(escaped(text)) == text


def test_tags_with_parentheses_are_no_emphasis() -> None:
    (prompt,) = make_prompts(
        Vocabulary(("star_(symbol)",)), 1, tags_per_prompt=1, seed=0, template="(best:1.2), {tags}"
    )
    assert parse_emphasis(prompt.text) == (WeightedText("best", 1.2), WeightedText(", star (symbol)", 1.0))


@pytest.mark.parametrize(
    ("template", "words", "text"),
    [
        ("({tags})", "smile, :3", "(smile, :3:1.1)"),
        ("(({tags}))", "1:1", "((1:1:1.1))"),
        ("({tags} ), b", ":.5", "(:.5 :1.1), b"),
        ("({tags}:1.3)", ":3", "(:3:1.3)"),
        ("[{tags}]", ":3", "[:3]"),
        ("({tags}, b)", ":3", "(:3, b)"),
        ("(a:{tags})", "2", "(a:2:1.1)"),
        ("{tags}), b", ":3", ":3), b"),
    ],
)
def test_a_tag_that_ends_like_a_weight_gets_the_weight_that_its_bracket_has(
    template: str, words: str, text: str
) -> None:
    assert filled(template, words) == text


def test_every_tag_survives_every_template() -> None:
    """As if the tags were one letter that no grammar knows, which is put back after parsing."""
    draw = random.Random(4)
    templates = ("{tags}", "({tags})", "[{tags}]", "(best:1.2), ({tags}:1.1)", "(a, {tags}), b", "({tags}", "{tags})")
    templates += (
        "[({tags})]",
        "(a:{tags})",
        "({tags} )",
        "({tags}5)",
        "a\\{tags}",
        "({tags}), ({tags}:0.9)",
        "a:{tags}",
    )
    known = [":3", ">:3", "1:1", ":)", "\\m/", "\\(^o^)/", "(o)_(o)", "||_||", ":0", "2024", ";)", "a:1.5)", "\\", ":"]
    for _ in range(3000):
        tag = draw.choice(known) if draw.random() < 0.3 else "".join(draw.choices("ab:()[]\\/^0135. +-|", k=3))
        template = draw.choice(templates)
        expected = [
            (part.text.replace("\0", tag), part.weight) for part in parse_emphasis(template.replace("{tags}", "\0"))
        ]
        got = parse_emphasis(filled(template, escaped(tag)))
        assert [(part.text, part.weight) for part in got] == expected, (template, tag)


def test_faces_in_any_order_survive_every_template() -> None:
    """As a prompt set writes them: several tags, of which the last, a middle one or all may end like a weight."""
    faces = (":3", ">:3", "\\m/", "\\(^o^)/", "(o)_(o)", "3:", "1:1", ":1", "smile", "\\o/", "[x]", ":)", "(:")
    templates = ("{tags}", "({tags})", "({tags}:1.2)", "[{tags}]", "(({tags}))", "best, ({tags}, (a:1.3))", "({tags}")
    for template, count in itertools.product(templates, (1, 2, 3)):
        for tags in itertools.islice(itertools.permutations(faces, count), 0, None, 7 if count == 3 else 1):
            words = ", ".join(tags)
            expected = [
                (part.text.replace("\0", words), part.weight)
                for part in parse_emphasis(template.replace("{tags}", "\0"))
            ]
            got = parse_emphasis(filled(template, escaped(words)))
            assert [(part.text, part.weight) for part in got] == expected, (template, words)


def test_a_prompt_set_draws_faces_as_they_are_written() -> None:
    faces = (":3", "\\m/", "\\(^o^)/", "(o)_(o)", "1:1")
    vocabulary = Vocabulary(faces)
    for prompt in make_prompts(vocabulary, 20, tags_per_prompt=(1, 5), seed=3, template="a, ({tags})"):
        (first, second) = parse_emphasis(prompt.text)
        assert (first.text, first.weight) == ("a, ", 1.0)
        assert second.text == ", ".join(prompt.tags)
        assert second.weight == pytest.approx(1.1)
