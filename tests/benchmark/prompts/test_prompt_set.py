from __future__ import annotations

import time
from collections import Counter

import pytest

from benchmark.errors import InputError
from benchmark.prompts.prompt_set import Prompt, derive_seed, fingerprint, make_prompts, repeated
from benchmark.prompts.taken import Taken
from benchmark.prompts.text import parse_emphasis
from benchmark.prompts.vocabulary import Vocabulary, spoken, vocabulary_from_tags

HAIR = ("red_hair", "blue_hair", "blonde_hair")
EYES = ("red_eyes", "blue_eyes")
VOCABULARY = Vocabulary(
    (*HAIR, *EYES, "smile", "hat", "glasses", "dress"),
    dict.fromkeys(HAIR, "hair"),
    dict.fromkeys(HAIR, "hair") | dict.fromkeys(EYES, "eyes"),
)


def test_the_same_seed_gives_the_same_prompts_and_another_seed_others() -> None:
    first = make_prompts(VOCABULARY, 20, tags_per_prompt=(2, 4), seed=1)
    assert first == make_prompts(VOCABULARY, 20, tags_per_prompt=(2, 4), seed=1)
    assert fingerprint(first) != fingerprint(make_prompts(VOCABULARY, 20, tags_per_prompt=(2, 4), seed=2))


def test_prompts_are_the_same_on_every_machine() -> None:
    (prompt,) = make_prompts(Vocabulary(("a_b", "cc")), 1, tags_per_prompt=2, seed=5)
    assert (prompt.text, prompt.seed) == ("cc, a_b", derive_seed(5, 0, 0))
    assert derive_seed(7, "validation") == 5640920454867550492


def test_every_tag_is_asked_about_equally_often() -> None:
    asked = Counter(tag for p in make_prompts(VOCABULARY, 90, tags_per_prompt=(2, 4), seed=3) for tag in p.tags)
    assert set(asked) == set(VOCABULARY.tags)
    assert max(asked.values()) - min(asked.values()) <= 2


def test_a_prompt_has_at_most_one_tag_of_a_group_and_no_tag_twice() -> None:
    for prompt in make_prompts(VOCABULARY, 50, tags_per_prompt=VOCABULARY.most_per_prompt(), seed=4):
        assert len(set(prompt.tags)) == len(prompt.tags) == 6
        assert len(set(prompt.tags) & set(HAIR)) == 1
        assert len(set(prompt.tags) & set(EYES)) == 1


def test_sizes_reach_both_ends_of_the_range() -> None:
    sizes = {len(p.tags) for p in make_prompts(VOCABULARY, 60, tags_per_prompt=(2, 4), seed=5)}
    assert sizes == {2, 3, 4}


def test_images_of_a_prompt_share_text_and_index_but_no_seed() -> None:
    prompts = make_prompts(VOCABULARY, 5, tags_per_prompt=3, seed=6, images=4)
    assert [p.index for p in prompts] == [i for i in range(5) for _ in range(4)]
    assert len({p.seed for p in prompts}) == 20
    assert len({(p.index, p.text) for p in prompts}) == 5


def test_template_and_spelling() -> None:
    (prompt,) = make_prompts(Vocabulary(("long_hair",)), 1, tags_per_prompt=1, seed=0, template="photo of {tags}!")
    assert prompt.text == "photo of long hair!"
    assert [spoken(t) for t in ("blue_hair", "o_o", ">_<", "star_(symbol)")] == [
        "blue hair",
        "o_o",
        ">_<",
        "star (symbol)",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tags_per_prompt": 7}, "fills at most 6"),
        ({"tags_per_prompt": (4, 2)}, "smaller first"),
        ({"tags_per_prompt": 0}, "from 1 up"),
        ({"tags_per_prompt": 1, "template": "a girl"}, "{tags}"),
    ],
)
def test_what_cannot_be_made_is_refused(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_prompts(VOCABULARY, 3, seed=0, **arguments)


def test_one_tag_a_prompt_asks_for_each_tag_once() -> None:
    """The single-tag test: as many prompts as tags."""
    vocabulary = vocabulary_from_tags(tuple(f"tag_{number}" for number in range(300)), 300)
    asked = [tag for prompt in make_prompts(vocabulary, 300, tags_per_prompt=(1, 1), seed=0) for tag in prompt.tags]
    assert sorted(asked) == sorted(vocabulary.tags)


def test_odd_tags_are_asked_for_and_drawn_as_they_are_written() -> None:
    tags = (":3", "\\m/", "\\(^o^)/", ">:)", "1:1", "(o)_(o)", "smile")
    for seed in range(20):
        for template, weight in (("{tags}", 1.0), ("({tags})", 1.1), ("({tags}:1.3)", 1.3)):
            (prompt,) = make_prompts(Vocabulary(tags), 1, tags_per_prompt=3, seed=seed, template=template)
            (part,) = parse_emphasis(prompt.text)
            assert part.text == ", ".join(prompt.tags)
            assert part.weight == pytest.approx(weight)


def three_sets(vocabulary: Vocabulary, counts: tuple[int, ...], tags: tuple[int, int], seed: int) -> list[list[Prompt]]:
    sets: list[list[Prompt]] = []
    for purpose, count in zip(("search", "validation", "test"), counts, strict=True):
        earlier = [prompt for made in sets for prompt in made]
        own = derive_seed(seed, purpose)
        sets.append(list(make_prompts(vocabulary, count, tags_per_prompt=tags, seed=own, unlike=earlier)))
    return sets


@pytest.mark.parametrize(
    ("tags", "counts"), [((2, 3), (6, 6, 9)), ((2, 2), (5, 5, 10)), ((1, 3), (40, 30, 30)), ((3, 3), (30, 60, 60))]
)
def test_sets_share_no_text_even_where_the_vocabulary_is_small(tags: tuple[int, int], counts: tuple[int, ...]) -> None:
    for seed in range(20):
        search, validation, test = three_sets(VOCABULARY, counts, tags, seed)
        assert [len(made) for made in (search, validation, test)] == list(counts)
        assert not {p.text for p in search} & {p.text for p in validation}
        assert not {p.text for p in test} & {p.text for p in (*search, *validation)}
        assert repeated(test, [*search, *validation]) == 0
        for prompt in (*validation, *test):
            assert tags[0] <= len(prompt.tags) <= tags[1]
            assert len(set(prompt.tags) & set(HAIR)) <= 1


def test_a_vocabulary_that_is_too_small_repeats_itself_and_it_is_counted() -> None:
    pair = Vocabulary(("hat", "smile"))
    search, validation, test = three_sets(pair, (1, 1, 3), (2, 2), 0)
    assert {search[0].text, validation[0].text} == {"hat, smile", "smile, hat"}
    assert repeated(test, [*search, *validation]) == 3
    assert len({prompt.seed for prompt in (*search, *validation, *test)}) == 5, "their noise differs all the same"


def test_prompts_that_are_distinct_anyway_stay_as_they_are() -> None:
    """Also those before the first that is drawn again: its draw has a seed of its own."""
    alone = make_prompts(VOCABULARY, 30, tags_per_prompt=(2, 4), seed=8)
    other = make_prompts(VOCABULARY, 30, tags_per_prompt=(2, 4), seed=9)
    free = [prompt for prompt in other if prompt.text not in {p.text for p in alone}]
    assert make_prompts(VOCABULARY, 30, tags_per_prompt=(2, 4), seed=8, unlike=free) == alone
    again = make_prompts(VOCABULARY, 30, tags_per_prompt=(2, 4), seed=8, unlike=[alone[20]])
    assert again[:20] == alone[:20]
    assert again[20].text != alone[20].text
    assert [prompt.seed for prompt in again] == [prompt.seed for prompt in alone]


@pytest.mark.parametrize("groups", [{}, {"a": "x", "b": "x"}])
def test_a_vocabulary_with_nothing_left_takes_no_time(groups: dict[str, str]) -> None:
    vocabulary = Vocabulary(tuple("abcd"), groups=groups)
    first = make_prompts(vocabulary, 30, tags_per_prompt=1, seed=1)
    assert {prompt.tags for prompt in first} == {(tag,) for tag in "abcd"}
    began = time.process_time()
    second = make_prompts(vocabulary, 2000, tags_per_prompt=1, seed=2, unlike=first)
    assert repeated(second, first) == 2000
    assert second == tuple(make_prompts(vocabulary, 2000, tags_per_prompt=1, seed=2)), "nothing else could be drawn"
    pairs = make_prompts(vocabulary, 300, tags_per_prompt=(1, 2), seed=3)
    orders = make_prompts(vocabulary, 2000, tags_per_prompt=(1, 2), seed=4, unlike=pairs)
    assert repeated(orders, pairs) == 2000
    assert time.process_time() - began < 1


def test_what_is_left_is_counted() -> None:
    vocabulary = Vocabulary(tuple("abcd"), groups={"a": "x", "b": "x"})  # pairs: ac ad bc bd cd
    pairs = [tuple(pair) for pair in ("ac", "ad", "bc", "bd", "dc")]
    every = [order for pair in pairs for order in (pair, pair[::-1])]
    taken = Taken(vocabulary, pairs[:4], 1, 2)
    assert (taken.has_set_left(1), taken.has_set_left(2), taken.any_set_left) == (True, True, True)
    assert Taken(vocabulary, [*pairs[:4], ("a", "b"), ("x", "y"), ("c", "c")], 2, 2).has_set_left(2), (
        "none of those counts"
    )
    taken = Taken(vocabulary, pairs, 2, 2)
    assert (taken.has_set_left(2), taken.any_set_left, taken.any_order_left) == (False, False, True)
    assert Taken(vocabulary, pairs, 1, 2).any_set_left
    assert not Taken(vocabulary, every, 2, 2).any_order_left
    large = Vocabulary(tuple(f"t{number}" for number in range(3000)))
    assert Taken(large, [("t1", "t2")], 2, 2000).any_set_left
