from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmark.errors import InputError
from benchmark.evaluate import scores
from benchmark.evaluate.runner import Evaluation, evaluate, tags_asked
from benchmark.images import Images, is_broken
from benchmark.pipelines.diffusers_generator import DiffusersGenerator
from benchmark.pipelines.generation import FakeGenerator, GenerationSettings
from benchmark.pipelines.loading import load_pipeline
from benchmark.prompts.prompt_set import Prompt, make_prompts
from benchmark.prompts.vocabulary import vocabulary_from_tags
from benchmark.taggers.registry import open_tagger
from benchmark.taggers.tagger import FakeTagger

TAGS = tuple("abcdefgh")
PROMPTS = make_prompts(vocabulary_from_tags(TAGS, 8), 30, tags_per_prompt=(2, 3), seed=1, images=2)
TAGGERS = {"search": FakeTagger(TAGS, "search"), "judge": FakeTagger((*TAGS[::-1], "z"), "judge")}


def test_an_evaluation_holds_what_each_tagger_said() -> None:
    done = evaluate(FakeGenerator(TAGS, 0.7), {"search": TAGGERS["search"]}, PROMPTS, keep_images=5)
    images = np.concatenate(list(FakeGenerator(TAGS, 0.7).generate(PROMPTS)))
    assert done.tags == TAGS == tags_asked(PROMPTS)
    assert np.array_equal(done.probabilities["search"], TAGGERS["search"].probabilities(images))
    assert np.array_equal(done.images, images[:5])
    assert done.prompt_of.tolist() == [p.index for p in PROMPTS]
    assert [set(np.array(TAGS)[row]) for row in done.asked] == [set(p.tags) for p in PROMPTS]
    assert done.accuracy("search") == scores.tag_accuracy(done.probabilities["search"], done.asked, done.prompt_of, 0.5)
    assert done.per_prompt("search").shape == (30,)
    assert done.broken == 0
    assert done.seconds > 0


def test_duplicates_repeat_the_image_of_another_prompt_and_are_whole() -> None:
    prompts = tuple(Prompt(index, "a", ("a",), seed) for seed, index in enumerate((0, 0, 1, 1, 2, 2)))
    broken = np.array([False, False, False, False, True, True])
    said = {"t": np.zeros((6, 1), np.float32)}
    digests = np.array([7, 7, 7, 8, 9, 7])  # rows 0 and 1 share a prompt; row 2 repeats them; the last two are broken
    assert Evaluation(prompts, ("a",), said, broken, digests, 0.0).duplicates == 1
    assert Evaluation(prompts, ("a",), said, ~broken, digests, 0.0).duplicates == 0
    assert Evaluation(prompts, ("a",), said, np.zeros(6, bool), digests, 0.0).duplicates == 2


def test_columns_are_asked_of_each_tagger_in_its_own_order() -> None:
    side = FakeTagger(TAGS)
    done = evaluate(
        FakeGenerator(TAGS, 1.0), {"a": side, "b": FakeTagger(TAGS[::-1])}, PROMPTS, tags=("c", *TAGS[3:], *"ab")
    )
    assert done.tags == ("c", "d", "e", "f", "g", "h", "a", "b")
    assert done.accuracy("a").value == 1
    everything = side.probabilities(np.concatenate(list(FakeGenerator(TAGS, 1.0).generate(PROMPTS))))
    assert np.array_equal(done.probabilities["a"], everything[:, [2, 3, 4, 5, 6, 7, 0, 1]])
    reverse = FakeTagger(TAGS[::-1]).probabilities(np.concatenate(list(FakeGenerator(TAGS, 1.0).generate(PROMPTS))))
    assert np.array_equal(done.probabilities["b"], reverse[:, ::-1][:, [2, 3, 4, 5, 6, 7, 0, 1]])


def test_a_tag_that_a_tagger_does_not_know_is_refused_before_anything_is_drawn() -> None:
    class Refuses:
        def generate(self, prompts: object) -> Iterator[Images]:
            raise AssertionError("drew")

    with pytest.raises(InputError, match="judge does not know the tag 'h'"):
        evaluate(Refuses(), {"search": TAGGERS["search"], "judge": FakeTagger(TAGS[:-1], "judge")}, PROMPTS)
    with pytest.raises(InputError, match="asks for"):
        evaluate(Refuses(), {"search": TAGGERS["search"]}, PROMPTS, tags=TAGS[:3])


def test_report_hears_of_every_batch_and_may_stop_the_pass() -> None:
    heard: list[tuple[int, float]] = []
    done = evaluate(
        FakeGenerator(TAGS, 0.7, batch_size=16), {"t": FakeTagger(TAGS)}, PROMPTS, report=lambda *a: heard.append(a)
    )
    assert [count for count, _ in heard] == [16, 32, 48, 60]
    assert heard[-1][1] == pytest.approx(done.accuracy("t").value)

    class Hopeless(Exception):
        pass

    def stop(count: int, _: float) -> None:
        raise Hopeless(count)

    with pytest.raises(Hopeless, match="16"):
        evaluate(FakeGenerator(TAGS, batch_size=16), {"t": FakeTagger(TAGS)}, PROMPTS, report=stop)


def test_a_broken_image_finds_nothing_and_is_counted() -> None:
    class Breaks(FakeGenerator):
        def generate(self, prompts: tuple[Prompt, ...]) -> Iterator[Images]:
            for images in super().generate(prompts):
                images[0] = 255  # white: every tag at probability 1
                yield images

    done = evaluate(Breaks(TAGS, 1.0, batch_size=10), {"t": FakeTagger(TAGS)}, PROMPTS)
    assert done.broken == 6
    assert np.flatnonzero(done.broken_images).tolist() == [0, 10, 20, 30, 40, 50]
    assert not done.probabilities["t"][done.broken_images].any()
    assert done.accuracy("t").value < 1


def test_flat_images_are_broken_and_faint_ones_are_not() -> None:
    images = np.full((4, 8, 8, 3), 100, np.uint8)
    images[1, 0, 0, 0] = 102
    images[2, 0, 0, 0] = 103
    images[3] = 0
    assert is_broken(images).tolist() == [True, True, False, True]


def test_a_generator_that_loses_prompts_is_caught() -> None:
    class Loses(FakeGenerator):
        def generate(self, prompts: tuple[Prompt, ...]) -> Iterator[Images]:
            yield from super().generate(prompts[:-1])

    with pytest.raises(RuntimeError, match="59 images for 60 prompts"):
        evaluate(Loses(TAGS), {"t": FakeTagger(TAGS)}, PROMPTS)


def test_real_models_end_to_end(
    tiny_family: dict[str, Path], tiny_pipeline_folder: Path, tiny_tagger_folder: Path, tiny_wd_tagger: Path
) -> None:
    taggers = {"search": open_tagger(tiny_tagger_folder), "judge": open_tagger(tiny_wd_tagger, threads=1)}
    prompts = make_prompts(vocabulary_from_tags(taggers["judge"].general, 8), 6, tags_per_prompt=2, seed=2)
    pipeline = load_pipeline(tiny_family["base"], config=tiny_pipeline_folder)
    generator = DiffusersGenerator(pipeline, GenerationSettings(steps=2, width=32, height=32))
    done, again = (evaluate(generator, taggers, prompts) for _ in range(2))
    for name in taggers:
        assert np.array_equal(done.probabilities[name], again.probabilities[name])
        assert done.probabilities[name].shape == (6, len(done.tags))
        assert 0 <= done.accuracy(name).value <= 1
    assert done.images is None
