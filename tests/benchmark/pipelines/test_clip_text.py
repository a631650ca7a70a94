"""Long prompts, emphasis and clip skip, against diffusers' own encoding and a slow one written out here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmark.pipelines.clip_text import chunk_tokens, encode_clip, knows_clip
from benchmark.pipelines.diffusers_generator import DiffusersGenerator
from benchmark.pipelines.generation import GenerationSettings
from benchmark.pipelines.loading import load_pipeline
from benchmark.pipelines.quiet import quiet_diffusers
from benchmark.prompts.prompt_set import Prompt
from benchmark.prompts.text import plain_text

LONG = ", ".join(["blonde hair", "blue eyes", "open mouth", "red dress", "star \\(symbol\\)"] * 9)


@pytest.fixture(scope="module")
def pipeline(tiny_diffusers_folder: Path) -> Any:
    return load_pipeline(tiny_diffusers_folder)


@pytest.fixture(scope="module")
def two_encoders(pipeline: Any) -> Any:
    """A pipeline of SDXL's kind: the tiny text encoder, and one with a projection beside it."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    config = CLIPTextConfig(**{**pipeline.text_encoder.config.to_dict(), "projection_dim": 16, "hidden_act": "gelu"})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(50)
        second = CLIPTextModelWithProjection(config).eval()
        unet = UNet2DConditionModel(
            sample_size=4,
            in_channels=8,
            out_channels=8,
            layers_per_block=1,
            block_out_channels=(8, 16),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=2,
            norm_num_groups=4,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 16,
        ).eval()
    made = StableDiffusionXLPipeline(
        vae=pipeline.vae,
        text_encoder=pipeline.text_encoder,
        text_encoder_2=second,
        tokenizer=pipeline.tokenizer,
        tokenizer_2=pipeline.tokenizer,
        unet=unet,
        scheduler=EulerDiscreteScheduler.from_config(pipeline.scheduler.config),
        add_watermarker=False,
    )
    made.set_progress_bar_config(disable=True)
    return made


@pytest.mark.parametrize("text", ["", "blonde hair, smile", "hat"])
def test_a_short_plain_prompt_is_what_the_pipeline_encodes(pipeline: Any, text: str) -> None:
    ours, pooled = encode_clip(pipeline, text)
    assert torch.equal(ours, pipeline.encode_prompt([text], "cpu", 1, False)[0])
    assert pooled is None


def test_clip_skip_leaves_out_last_layers_but_not_the_last_norm(pipeline: Any) -> None:
    """Written out here: diffusers 0.42 fails at its own `clip_skip` with the CLIPTextModel of transformers 5.6 on."""
    encoder = pipeline.text_encoder
    ids = pipeline.tokenizer("smile", padding="max_length", max_length=77, return_tensors="pt").input_ids
    states = encoder.embeddings(input_ids=ids)
    mask = torch.full((77, 77), float("-inf")).triu(1)[None, None]
    layers = [states := layer(states, attention_mask=mask) for layer in encoder.encoder.layers]
    assert torch.allclose(encode_clip(pipeline, "smile", 0)[0], encoder.final_layer_norm(layers[-1]), atol=1e-5)
    assert torch.allclose(encode_clip(pipeline, "smile", 1)[0], encoder.final_layer_norm(layers[-2]), atol=1e-5)


@pytest.mark.parametrize("clip_skip", [0, 1])
def test_two_encoders_are_what_the_pipeline_encodes(two_encoders: Any, clip_skip: int) -> None:
    theirs = two_encoders.encode_prompt(
        "red dress, hat", device="cpu", do_classifier_free_guidance=False, clip_skip=clip_skip or None
    )
    ours, pooled = encode_clip(two_encoders, "red dress, hat", clip_skip)
    assert torch.equal(ours, theirs[0])
    assert pooled is not None
    assert torch.equal(pooled, theirs[2])


def test_a_long_prompt_is_chunks_of_75_joined_and_cut_after_commas(pipeline: Any) -> None:
    tokenizer = pipeline.tokenizer
    plain = tokenizer(plain_text(LONG), add_special_tokens=False, verbose=False).input_ids
    chunks, weights = chunk_tokens(tokenizer, LONG)
    assert len(chunks) == 3
    assert {len(chunk) for chunk in chunks + weights} == {77}
    inner = [[t for t in chunk if t not in (tokenizer.bos_token_id, tokenizer.eos_token_id)] for chunk in chunks]
    assert [t for chunk in inner for t in chunk] == plain  # nothing lost, nothing twice
    comma = tokenizer.convert_tokens_to_ids(",</w>")
    assert all(chunk[-1] == comma for chunk in inner[:-1])
    assert all(chunk[0] != comma for chunk in inner)
    ours, _ = encode_clip(pipeline, LONG)
    apart = torch.cat([pipeline.text_encoder(torch.tensor([chunk])).last_hidden_state for chunk in chunks], dim=1)
    assert torch.allclose(ours, apart, atol=1e-6)
    assert ours.shape == (1, 231, 16)


def test_a_chunk_without_a_comma_is_cut_where_it_is_full(pipeline: Any) -> None:
    chunks, _ = chunk_tokens(pipeline.tokenizer, "a " * 100)
    assert [chunk.count(pipeline.tokenizer.eos_token_id) for chunk in chunks] == [1, 51]  # the end, and the padding


def test_emphasis_scales_the_tokens_and_keeps_the_size_of_the_whole(pipeline: Any) -> None:
    plain, _ = encode_clip(pipeline, "smile, hat, glasses")
    strong, _ = encode_clip(pipeline, "smile, (hat:1.5), glasses")
    ratio = (strong / plain)[0].mean(dim=1)
    _, (weights,) = chunk_tokens(pipeline.tokenizer, "smile, (hat:1.5), glasses")
    assert weights.count(1.5) >= 1
    assert torch.allclose(ratio / ratio[0], torch.tensor(weights), atol=1e-4)
    assert strong.square().mean() == pytest.approx(plain.square().mean().item(), rel=1e-5)
    assert torch.equal(encode_clip(pipeline, "smile, (hat:1.0), glasses")[0], plain)


def draw(pipeline: Any, texts: list[str], batch_size: int, **settings: Any) -> np.ndarray:
    prompts = [Prompt(n, text, (), n) for n, text in enumerate(texts)]
    options = {"steps": 3, "width": 32, "height": 32, "guidance": 4.0, "batch_size": batch_size, **settings}
    return np.concatenate(list(DiffusersGenerator(pipeline, GenerationSettings(**options)).generate(prompts)))


@pytest.mark.parametrize("kind", ["pipeline", "two_encoders"])
def test_prompts_of_different_length_share_a_batch_and_images_do_not_notice(
    kind: str, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(kind)
    texts = ["smile", LONG, LONG + ", " + LONG, "hat, (glasses:1.4)"]
    together, alone = (
        draw(model, texts, 4, negative_prompt="red hair"),
        draw(model, texts, 1, negative_prompt="red hair"),
    )
    assert np.abs(together.astype(int) - alone).max() <= 2
    assert np.abs(together[1].astype(int) - draw(model, ["", LONG[:300]], 2)[1]).max() > 2  # the end of it is read


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_an_empty_negative_prompt_is_the_pipelines_own_with_two_encoders(two_encoders: Any) -> None:
    """SDXL was trained with zeros for it; diffusers does the same where no negative prompt is given."""
    plain = two_encoders(
        "red dress",
        generator=torch.Generator("cpu").manual_seed(0),
        num_inference_steps=3,
        guidance_scale=4.0,
        width=32,
        height=32,
        output_type="np",
    ).images
    assert np.abs(draw(two_encoders, ["red dress"], 1)[0] - plain[0] * 255).max() <= 0.51


def test_two_encoders_load_from_a_folder(two_encoders: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with quiet_diffusers():
        two_encoders.save_pretrained(tmp_path / "xl")
    capfd.readouterr()
    loaded = load_pipeline(tmp_path / "xl")
    assert capfd.readouterr() == ("", "")
    assert np.array_equal(draw(loaded, ["smile"], 1), draw(two_encoders, ["smile"], 1))


def test_embeddings_may_be_used_where_gradients_are_taken(pipeline: Any) -> None:
    weight = torch.nn.Parameter(torch.ones(16))
    (encode_clip(pipeline, "smile")[0] * weight).sum().backward()
    assert weight.grad is not None


def test_clip_skip_changes_the_image(pipeline: Any) -> None:
    assert not np.array_equal(draw(pipeline, ["smile"], 1), draw(pipeline, ["smile"], 1, clip_skip=1))


def test_other_encoders_are_left_to_the_pipeline(pipeline: Any, two_encoders: Any) -> None:
    assert knows_clip(pipeline)
    assert knows_clip(two_encoders)

    class Other:
        unet, tokenizer, text_encoder = object(), object(), type("T5EncoderModel", (), {})()

    assert not knows_clip(Other())
    assert not knows_clip(object())
