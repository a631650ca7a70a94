"""Drawing with real (tiny, random) pipelines, and the fake beside them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmark.errors import InputError
from benchmark.images import to_bytes
from benchmark.pipelines.diffusers_generator import DiffusersGenerator
from benchmark.pipelines.generation import FakeGenerator, GenerationSettings
from benchmark.pipelines.kept_text import _stack
from benchmark.pipelines.lending import lent
from benchmark.pipelines.loading import SAMPLERS, load_pipeline, make_scheduler, quicken
from benchmark.prompts.prompt_set import Prompt, make_prompts
from benchmark.prompts.vocabulary import vocabulary_from_tags

SMALL = {"width": 32, "height": 32, "steps": 3}


@pytest.fixture(scope="module")
def pipeline(tiny_diffusers_folder: Path) -> Any:
    return load_pipeline(tiny_diffusers_folder)


@pytest.fixture(scope="module")
def prompts(tiny_wd_tagger: Path) -> tuple[Prompt, ...]:
    tags = ("blonde_hair", "blue_eyes", "smile", "hat", "glasses", "red_dress")
    return make_prompts(vocabulary_from_tags(tags, 6), 5, tags_per_prompt=(1, 3), seed=1)


def draw(pipeline: Any, prompts: tuple[Prompt, ...], **settings: Any) -> np.ndarray:
    generator = DiffusersGenerator(pipeline, GenerationSettings(**{**SMALL, "batch_size": 2, **settings}))
    return np.concatenate(list(generator.generate(prompts)))


@pytest.mark.parametrize("sampler", ["default", *SAMPLERS])
def test_an_image_does_not_depend_on_its_batch(pipeline: Any, prompts: tuple[Prompt, ...], sampler: str) -> None:
    images = draw(pipeline, prompts, sampler=sampler, batch_size=3)
    assert images.shape == (5, 32, 32, 3)
    assert images.dtype == np.uint8
    assert np.array_equal(images, draw(pipeline, prompts, sampler=sampler, batch_size=3))
    backwards = draw(pipeline, prompts[::-1], sampler=sampler, batch_size=1)[::-1]
    assert np.abs(images.astype(int) - backwards).max() <= 2  # kernels round differently for another batch size
    assert np.abs(images[0].astype(int) - images[1]).max() > 20


def test_samplers_differ_and_default_stays_the_pipelines_own(pipeline: Any, prompts: tuple[Prompt, ...]) -> None:
    own = pipeline.scheduler
    default = draw(pipeline, prompts[:1])
    drawn = [draw(pipeline, prompts[:1], sampler=name) for name in ("euler_a", "dpm++2m", "dpm++2m-karras")]
    assert all(np.abs(a.astype(int) - b).max() > 0 for i, a in enumerate(drawn) for b in drawn[:i])
    assert np.array_equal(default, draw(pipeline, prompts[:1]))
    assert pipeline.scheduler is own
    assert np.array_equal(default, draw(pipeline, prompts[:1], sampler="ddim"))


def test_images_are_those_of_the_pipeline_called_plainly(pipeline: Any, prompts: tuple[Prompt, ...]) -> None:
    plain = pipeline(
        prompts[0].text,
        negative_prompt="hat",
        generator=torch.Generator("cpu").manual_seed(prompts[0].seed),
        num_inference_steps=3,
        guidance_scale=4.0,
        width=32,
        height=32,
        output_type="np",
    ).images
    ours = draw(pipeline, prompts[:1], guidance=4.0, negative_prompt="hat")
    assert np.abs(ours - plain * 255).max() <= 0.51
    for other in ({"guidance": 2.0}, {"negative_prompt": ""}, {"steps": 4}):
        assert not np.array_equal(
            ours, draw(pipeline, prompts[:1], **{"guidance": 4.0, "negative_prompt": "hat", **other})
        )


def test_without_guidance_and_in_another_shape(pipeline: Any, prompts: tuple[Prompt, ...]) -> None:
    assert draw(pipeline, prompts, guidance=1.0, height=48).shape == (5, 48, 32, 3)


def test_quickened_it_draws_the_same_but_for_rounding(
    pipeline: Any, prompts: tuple[Prompt, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[str] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(type(self).__name__))
    quick = copy.deepcopy(pipeline)
    quicken(quick, channels_last=True, compiled=True)
    assert compiled == ["UNet2DConditionModel"]
    assert quick.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert np.abs(draw(pipeline, prompts).astype(int) - draw(quick, prompts).astype(int)).max() <= 1


def test_texts_are_encoded_once(pipeline: Any, prompts: tuple[Prompt, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    generator = DiffusersGenerator(pipeline, GenerationSettings(**SMALL, batch_size=2))
    first = np.concatenate(list(generator.generate(prompts)))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the text was encoded again")

    monkeypatch.setattr(pipeline.text_encoder, "forward", refuse)
    assert np.array_equal(np.concatenate(list(generator.generate(prompts))), first)


@torch.no_grad()
def test_whoever_calls_the_pipeline_itself_draws_the_same(pipeline: Any, prompts: tuple[Prompt, ...]) -> None:
    generator = DiffusersGenerator(pipeline, GenerationSettings(**SMALL, sampler="ddim", negative_prompt="hat"))
    expected = np.concatenate(list(generator.generate(prompts[:2])))
    with lent(pipeline, "scheduler", generator.scheduler), generator.text_kept():
        (images,) = pipeline(**generator.arguments(prompts[:2]))[:1]
    assert np.array_equal(to_bytes(images), expected)


def test_text_with_a_graph_is_not_kept_and_what_was_kept_comes_back(
    pipeline: Any, prompts: tuple[Prompt, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = DiffusersGenerator(pipeline, GenerationSettings(**SMALL, negative_prompt="hat"))
    before = generator.arguments(prompts[:2])["prompt_embeds"]
    weight = pipeline.text_encoder.get_input_embeddings().weight.requires_grad_()
    try:
        with generator.text_with_graph():
            arguments = generator.arguments(prompts[:2])
            for name in ("prompt_embeds", "negative_prompt_embeds"):
                assert torch.autograd.grad(arguments[name].sum(), weight, retain_graph=True)[0].abs().max() > 0
    finally:
        weight.requires_grad_(False)
    monkeypatch.setattr(pipeline.text_encoder, "forward", None)  # nothing is encoded again
    after = generator.arguments(prompts[:2])["prompt_embeds"]
    assert torch.equal(before, after)
    assert torch.equal(arguments["prompt_embeds"].detach(), after)
    assert not after.requires_grad


def test_texts_do_not_fill_the_memory(
    pipeline: Any, prompts: tuple[Prompt, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = draw(pipeline, prompts)
    monkeypatch.setattr("benchmark.pipelines.kept_text._MOST_EMBEDDINGS", 1)
    generator = DiffusersGenerator(pipeline, GenerationSettings(**SMALL, batch_size=2))
    assert np.array_equal(np.concatenate(list(generator.generate(prompts))), expected)
    assert generator._embeddings is not None
    assert list(generator._embeddings._kept) == [prompts[-1].text]  # of the last batch, which was of one


def test_text_encoders_are_there_only_while_they_encode(pipeline: Any, prompts: tuple[Prompt, ...]) -> None:
    settings = GenerationSettings(**SMALL, batch_size=2, negative_prompt="hat")
    expected = np.concatenate(list(DiffusersGenerator(pipeline, settings).generate(prompts)))
    before = {key: value.clone() for key, value in pipeline.text_encoder.state_dict().items()}
    generator, came = DiffusersGenerator(pipeline, settings), 0
    generator.encode(prompts)
    assert generator._embeddings is not None
    assert not generator._embeddings._kept, "they are there, so nothing is encoded ahead"
    generator.set_text_aside(True)
    here = generator._embeddings.visits.here  # type: ignore[union-attr]

    def counted() -> Any:
        nonlocal came
        came += 1
        return here()

    with lent(generator._embeddings.visits, "here", counted):
        generator.encode(prompts)
        assert np.array_equal(np.concatenate(list(generator.generate(prompts))), expected)
    assert came == 1
    generator.set_text_aside(False)
    assert generator._embeddings.visits is None
    after = pipeline.text_encoder.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_changed_weights_are_seen(pipeline: Any, prompts: tuple[Prompt, ...]) -> None:
    generator = DiffusersGenerator(pipeline, GenerationSettings(**SMALL))
    before = np.concatenate(list(generator.generate(prompts[:1])))
    weight = pipeline.unet.mid_block.resnets[0].conv1.weight
    kept = weight.clone()
    weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    after = np.concatenate(list(generator.generate(prompts[:1])))
    weight.copy_(kept)
    assert not np.array_equal(before, after)
    assert np.array_equal(before, np.concatenate(list(generator.generate(prompts[:1]))))


def test_a_pipeline_that_takes_only_words(pipeline: Any, prompts: tuple[Prompt, ...]) -> None:
    class Words:
        """A pipeline without `prompt_embeds`, as other families may be."""

        scheduler, device = pipeline.scheduler, pipeline.device

        def __call__(self, prompt: list[str], negative_prompt: list[str], **options: Any) -> Any:
            return pipeline(prompt, negative_prompt=negative_prompt, **options)

    words = draw(Words(), prompts, guidance=4.0)
    assert np.abs(words.astype(int) - draw(pipeline, prompts, guidance=4.0)).max() <= 2
    generator = DiffusersGenerator(Words(), GenerationSettings(**SMALL))
    with generator.text_with_graph():  # it has no embeddings of its own to keep a graph
        assert generator.arguments(prompts[:1])["prompt"] == [prompts[0].text]


def test_out_of_memory_halves_the_batch_and_loses_nothing(
    pipeline: Any, prompts: tuple[Prompt, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = DiffusersGenerator(pipeline, GenerationSettings(**SMALL, batch_size=4))
    plain, sizes = generator._draw, []

    def small(batch: Any) -> Any:
        sizes.append(len(batch))
        if len(batch) > 1:
            raise torch.OutOfMemoryError("full")
        return plain(batch)

    monkeypatch.setattr(generator, "_draw", small)
    images = np.concatenate(list(generator.generate(prompts)))
    assert sizes == [4, 2, 1, 1, 1, 1, 1]
    assert np.abs(images.astype(int) - draw(pipeline, prompts)).max() <= 2


def test_a_batch_size_is_found(pipeline: Any) -> None:
    assert DiffusersGenerator(pipeline, GenerationSettings(width=64, height=64)).batch_size == 16
    assert DiffusersGenerator(pipeline, GenerationSettings(width=1024, height=1024)).batch_size == 1


def test_an_image_with_a_nan_is_black_and_the_others_stay() -> None:
    images = torch.full((3, 3, 2, 2), 0.5)
    images[1, 0, 0, 0] = float("nan")
    images[2, 2, 1, 1] = float("inf")
    assert to_bytes(images).reshape(3, -1).tolist() == [[128] * 12, [0] * 12, [0] * 12]
    assert to_bytes(torch.tensor([-1.0, 0.2, 2.0]).reshape(1, 3, 1, 1)).ravel().tolist() == [0, 51, 255]


def test_texts_of_unequal_length_share_a_batch_without_changing_attention() -> None:
    draw = torch.Generator().manual_seed(0)
    short, long = (torch.randn(1, length, 4, generator=draw, dtype=torch.float64) for length in (2, 6))
    stacked = _stack([short, long], 6)
    assert stacked.shape == (2, 6, 4)
    query = torch.randn(1, 3, 4, generator=draw, dtype=torch.float64)
    attention = torch.nn.functional.scaled_dot_product_attention
    assert torch.allclose(attention(query, stacked[:1], stacked[:1]), attention(query, short, short))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps 0"),
        ({"width": 33}, "multiples of 8"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"clip_skip": -1}, "clip_skip -1"),
    ],
)
def test_settings_that_cannot_be_are_refused(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        GenerationSettings(**{**SMALL, **options})


def test_samplers_that_cannot_be_are_refused(pipeline: Any) -> None:
    with pytest.raises(InputError, match=r"Unknown sampler 'dpm\+\+2n'. Did you mean 'dpm\+\+2m'"):
        make_scheduler(pipeline, "dpm++2n")

    class Flow:
        scheduler = type("FlowMatchEulerDiscreteScheduler", (), {})()

    with pytest.raises(InputError, match="flow-matching"):
        make_scheduler(Flow(), "ddim")


class TestFakeGenerator:
    def test_it_paints_what_the_fake_tagger_reads(self) -> None:
        from benchmark.evaluate.runner import evaluate
        from benchmark.taggers.tagger import FakeTagger

        tags = tuple("abcdefghij")
        prompts = make_prompts(vocabulary_from_tags(tags, 10), 100, tags_per_prompt=4, seed=0)
        for skill in (0.0, 0.4, 1.0):
            done = evaluate(FakeGenerator(tags, skill), {"t": FakeTagger(tags)}, prompts)
            assert done.accuracy("t").value == pytest.approx(skill, abs=0.06)
            assert not done.found("t")[~done.asked].any()

    def test_it_keeps_the_promises_of_a_generator(self) -> None:
        prompts = make_prompts(vocabulary_from_tags(tuple("abcd"), 4), 7, tags_per_prompt=2, seed=0)
        one, four = (np.concatenate(list(FakeGenerator("abcd", batch_size=size).generate(prompts))) for size in (1, 4))
        assert np.array_equal(one, four)
        assert one.shape == (7, 64, 64, 3)
