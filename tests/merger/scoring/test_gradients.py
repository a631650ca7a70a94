"""Gradients against central finite differences of the same score, in float64 on tiny real models; a U-Net and a DiT."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmark.evaluate.runner import evaluate
from benchmark.images import to_bytes
from benchmark.pipelines.generation import GenerationSettings
from benchmark.pipelines.loading import SAMPLERS, load_pipeline
from benchmark.prompts.prompt_set import Prompt
from benchmark.taggers.registry import open_tagger
from merger.blend.live import LiveDenoiser
from merger.blend.sources import Hold
from merger.checkpoints.checkpoint import Checkpoint, open_checkpoint, read_unet_config
from merger.checkpoints.source import TensorInfo
from merger.layers.grouping import group
from merger.scoring.floors import Floors
from merger.scoring.gradients.followed import TooMuch
from merger.scoring.gradients.gradients import BlendGradients
from merger.scoring.gradients.memory import DECODER, image_memory
from merger.scoring.gradients.sampling import DifferentiableGenerator, Differentiation
from merger.scoring.objective import TAGGER, Metric

PROMPTS = tuple(
    Prompt(number, ", ".join(tags).replace("_", " "), tags, 70 + number)
    for number, tags in enumerate((("blue_hair", "smile"), ("hat",), ("glasses", "green_eyes"), ("red_dress", "smile")))
)
SETTINGS = GenerationSettings(steps=3, sampler="ddim", guidance=3.0, width=32, height=32, batch_size=2)
LOG = Metric("log_probability", 0.5, lambda tag: "general")
DONORS = ("warm", "cool")


@dataclass
class World:
    """Everything that gradients are made of, and the differences [P] of every parameter in every donor, in float64."""

    live: LiveDenoiser
    generator: DifferentiableGenerator
    tagger: Any
    layers: Mapping[str, Sequence[str]]
    differences: Mapping[str, tuple[Tensor, ...]]

    def gradients(self, how: Differentiation, **options: Any) -> BlendGradients:
        return BlendGradients(self.live, self.generator, self.tagger, LOG, how, **options)

    @property
    def weights(self) -> dict[str, dict[str, float]]:
        """Uneven ones, some negative."""
        draw = np.random.default_rng(3)
        return {layer: {donor: float(draw.uniform(-0.3, 0.7)) for donor in DONORS} for layer in self.layers}

    def score(self, move: Mapping[str, Tensor], first: int) -> float:
        """The score of the live denoiser, its parameters moved from the step `first` on: written out plainly."""
        with torch.no_grad(), moved(self.live.module, move, first):
            images = self.generator.draw(PROMPTS[:2], self.live.module, Differentiation(1.0, recompute=False))
            logits = self.tagger.logits(images)
        parts = []
        for prompt, row in zip(PROMPTS[:2], logits, strict=True):
            asked = [row[self.tagger.tags.index(tag)] for tag in prompt.tags]
            parts.append(sum(float(torch.log(1 / (1 + torch.exp(-logit)))) for logit in asked) / len(asked))
        return sum(parts) / len(parts)

    def difference_quotient(self, direction: Mapping[str, Tensor], first: int, by: float) -> float:
        ahead, behind = (self.score({name: sign * by * d for name, d in direction.items()}, first) for sign in (1, -1))
        return (ahead - behind) / (2 * by)


@contextmanager
def moved(module: nn.Module, move: Mapping[str, Tensor], first: int) -> Iterator[None]:
    """Parameters go by `move` when the module is called for the time `first`, and back at the end."""
    parameters, forward, calls = module.state_dict(keep_vars=True), module.forward, 0
    before = {name: parameters[name].detach().clone() for name in move}

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        if calls == first:
            for name, change in move.items():
                parameters[name].data.add_(change)
        calls += 1
        return forward(*args, **kwargs)

    module.forward = counted  # type: ignore[method-assign]
    try:
        yield
    finally:
        del module.forward
        for name, value in before.items():
            parameters[name].data.copy_(value)


def make_world(
    pipeline: Any,
    module: nn.Module,
    checkpoints: Sequence[Checkpoint],
    layers: Mapping[str, Sequence[str]],
    tagger: Any,
    make: Callable[[Any, GenerationSettings], DifferentiableGenerator] = DifferentiableGenerator,
    settings: GenerationSettings = SETTINGS,
    hold: Hold | None = None,
) -> World:
    base, *donors = checkpoints
    differences = {
        name: tuple(donor.read(name).double() - base.read(name).double() for donor in donors)
        for names in layers.values()
        for name in names
    }
    live = LiveDenoiser(module, base, donors, layers, hold=hold)
    return World(live, make(pipeline, settings), tagger, layers, differences)


@pytest.fixture(scope="module")
def tagger64(tiny_tagger_folder: Path) -> Any:
    tagger: Any = open_tagger(tiny_tagger_folder)
    tagger.model.double()
    return tagger


@pytest.fixture(scope="module")
def unet64(tiny_family: dict[str, Path], tiny_pipeline_folder: Path, tagger64: Any) -> World:
    pipeline = load_pipeline(tiny_family["base"], config=tiny_pipeline_folder, dtype=torch.float64)
    return make_world(pipeline, pipeline.unet, *opened(tiny_family, tiny_pipeline_folder, "stage"), tagger64)


@pytest.fixture(scope="module")
def unet32(tiny_family: dict[str, Path], tiny_pipeline_folder: Path, tiny_tagger_folder: Path) -> World:
    pipeline = load_pipeline(tiny_family["base"], config=tiny_pipeline_folder)
    tagger: Any = open_tagger(tiny_tagger_folder)
    return make_world(pipeline, pipeline.unet, *opened(tiny_family, tiny_pipeline_folder, "block"), tagger)


def opened(family: dict[str, Path], folder: Path, granularity: str) -> tuple[list[Checkpoint], dict[str, Any]]:
    checkpoints = [open_checkpoint(family[name], unet_config=read_unet_config(folder)) for name in ("base", *DONORS)]
    return checkpoints, group(checkpoints[0].denoiser, granularity)


class Shelf(Checkpoint):
    """A checkpoint of tensors in memory, under the same face."""

    def __init__(self, name: str, tensors: dict[str, Tensor]) -> None:
        infos = {key: TensorInfo(key, Path(), tuple(t.shape), t.dtype) for key, t in tensors.items()}
        super().__init__(name, Path(name), "dit", "diffusers", (), infos, (), {})
        object.__setattr__(self, "tensors", tensors)

    def read(self, name: str) -> Tensor:
        return self.tensors[name]  # type: ignore[attr-defined]


class WithoutText(DifferentiableGenerator):
    """Stable Diffusion 3's pipeline without its three text encoders: embeddings are drawn from the text's length."""

    def _text_arguments(self, texts: Sequence[str]) -> dict[str, Any]:
        draw = torch.Generator().manual_seed(sum(map(len, texts)))
        shapes = {"prompt_embeds": (2, 5, 8), "pooled_prompt_embeds": (2, 8)}
        shapes |= {f"negative_{name}": shape for name, shape in shapes.items()}
        return {name: torch.randn(shape, generator=draw, dtype=torch.float64) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def dit64(tiny_diffusers_folder: Path, tagger64: Any) -> World:
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )

    class Unrounded(FlowMatchEulerDiscreteScheduler):
        """diffusers' step is in float32, which finite differences would magnify."""

        def step(self, model_output: Tensor, timestep: Any, sample: Tensor, **_: Any) -> tuple[Tensor]:
            place = int((self.timesteps == timestep).nonzero()[0])
            return (sample + (self.sigmas[place + 1] - self.sigmas[place]) * model_output,)

    torch.manual_seed(6)
    transformer = SD3Transformer2DModel(
        sample_size=4,
        patch_size=1,
        in_channels=8,
        out_channels=8,
        num_layers=2,
        attention_head_dim=4,
        num_attention_heads=2,
        joint_attention_dim=8,
        caption_projection_dim=8,
        pooled_projection_dim=8,
        pos_embed_max_size=8,
    )
    vae = AutoencoderKL.from_pretrained(tiny_diffusers_folder / "vae")
    vae.register_to_config(shift_factor=0.1)
    encoders = dict.fromkeys(
        ("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3")
    )
    pipeline = StableDiffusion3Pipeline(transformer=transformer, vae=vae, scheduler=Unrounded(), **encoders)
    pipeline.to(dtype=torch.float64).set_progress_bar_config(disable=True)
    for part in (transformer, vae):
        part.requires_grad_(False).eval()
    base = {name: value.float() for name, value in transformer.state_dict().items()}
    shelves = [Shelf("base", {name: value.detach() for name, value in base.items()})]
    shelves += [
        Shelf(donor, {name: v + 0.05 * torch.randn_like(v) for name, v in shelves[0].tensors.items()})  # type: ignore[attr-defined]
        for donor in DONORS
    ]
    layers: dict[str, tuple[str, ...]] = {}
    for name in base:
        key = ".".join(name.split(".")[: 2 if name.startswith("transformer_blocks") else 1])
        layers[key] = (*layers.get(key, ()), name)
    settings = GenerationSettings(steps=3, guidance=3.0, width=32, height=32, batch_size=2)
    return make_world(pipeline, transformer, shelves, layers, tagger64, WithoutText, settings)


@pytest.mark.parametrize(("world", "fraction"), [("unet64", 1.0), ("unet64", 0.5), ("dit64", 0.5)])
def test_gradients_are_those_of_finite_differences(world: str, fraction: float, request: pytest.FixtureRequest) -> None:
    """Of every layer and donor. Where a part of the steps is differentiated, the latents of the others are held."""
    tiny: World = request.getfixturevalue(world)
    score, gradients = tiny.gradients(Differentiation(fraction))(tiny.weights, PROMPTS[:2])
    assert score.value == pytest.approx(tiny.score({}, 0), rel=1e-12)
    first = 0 if fraction == 1.0 else 1
    worst, largest = 0.0, max(abs(gradient) for row in gradients.values() for gradient in row.values())
    for layer, names in tiny.layers.items():
        for column, donor in enumerate(DONORS):
            direction = {name: tiny.differences[name][column] for name in names}
            expected = tiny.difference_quotient(direction, first, 1e-5)
            worst = max(worst, abs(gradients[layer][donor] - expected) / max(abs(expected), 1e-7 * largest))
    assert largest > 1e-3
    assert worst <= 1e-4


@contextmanager
def inputs_held(module: nn.Module, given: list[Tensor]) -> Iterator[None]:
    """The module gets the latents in `given`, whatever it is called with; if that is empty, its latents go there."""
    forward, known, calls = module.forward, bool(given), iter(tuple(given))

    def held(*args: Any, **kwargs: Any) -> Any:
        name = None if args else next(name for name, value in kwargs.items() if isinstance(value, Tensor))
        if not known:
            given.append((args[0] if name is None else kwargs[name]).detach().clone())
            return forward(*args, **kwargs)
        return forward(next(calls), *args[1:], **kwargs) if name is None else forward(**{**kwargs, name: next(calls)})

    module.forward = held  # type: ignore[method-assign]
    try:
        yield
    finally:
        module.__dict__.pop("forward", None)


@pytest.mark.parametrize("world", ["unet64", "dit64"])
def test_detached_gradients_are_those_of_finite_differences(world: str, request: pytest.FixtureRequest) -> None:
    """The weights move, and the denoiser is given the latents that it had before: they reach the image elsewhere."""
    tiny: World = request.getfixturevalue(world)
    score, gradients = tiny.gradients(Differentiation(1.0, chain=0.0))(tiny.weights, PROMPTS[:2])
    given: list[Tensor] = []
    with inputs_held(tiny.live.module, given):
        assert score.value == pytest.approx(tiny.score({}, 0), rel=1e-12)
    assert len(given) == 3
    largest = max(abs(gradient) for row in gradients.values() for gradient in row.values())
    for layer, names in tiny.layers.items():
        for column, donor in enumerate(DONORS):
            ahead, behind = ({name: by * tiny.differences[name][column] for name in names} for by in (1e-5, -1e-5))
            scores = []
            for move in (ahead, behind):
                with inputs_held(tiny.live.module, given):
                    scores.append(tiny.score(move, 0))
            assert gradients[layer][donor] == pytest.approx(
                (scores[0] - scores[1]) / 2e-5, rel=1e-4, abs=1e-7 * largest
            )


def test_the_chain_changes_gradients_alone_and_in_proportion(unet64: World) -> None:
    """Two steps have gradients, so there is one place between them where gradients are passed on."""
    whole, half, none = (
        unet64.gradients(Differentiation(0.5, chain=chain)).measure(unet64.weights, PROMPTS[:2])
        for chain in (1.0, 0.5, 0.0)
    )
    assert whole.score.value == half.score.value == none.score.value
    assert whole.score.checksum == half.score.checksum == none.score.checksum
    one, other, between = (as_vector(found.gradients) for found in (whole, none, half))
    passed = np.abs(one - other).max()
    assert passed > 1e-4 * np.abs(one).max(), "or the two could not be told apart"
    assert between - other == pytest.approx((one - other) / 2, rel=1e-3, abs=1e-5 * passed)
    for how in (Differentiation(0.5, recompute=False, chain=0.5), Differentiation(0.5, streamed=True, chain=0.5)):
        again = unet64.gradients(how, micro_batch=1).measure(unet64.weights, PROMPTS[:2])
        assert as_vector(again.gradients) == pytest.approx(between, rel=1e-8, abs=1e-12)


def test_what_is_below_floors_weighs_as_much_more_as_their_strength_says(unet64: World) -> None:
    """The floors are so high that all is below them: the score is 5 x blend - 4 x base, and so is the gradient."""
    plain = unet64.gradients(Differentiation(0.4))
    base = {layer: dict.fromkeys(DONORS, 0.0) for layer in unet64.weights}
    before, without = plain(unet64.weights, PROMPTS[:2])
    below = plain(base, PROMPTS[:2])[0].value + 1.0
    for high in (Floors(-1.0, None, 4.0, str), Floors(None, -1.0, 4.0, str)):  # each tag is a category of its own
        score, gradients = unet64.gradients(Differentiation(0.4), floors=high)(unet64.weights, PROMPTS[:2])
        assert score.value == pytest.approx(before.value - 4 * (below - before.value), rel=1e-12)
        assert score.checksum == before.checksum, "the base is drawn first, and then the blend is there again"
        for layer, row in gradients.items():
            assert row == pytest.approx({donor: 5 * value for donor, value in without[layer].items()}, rel=1e-9)


def test_the_base_is_below_no_floor(unet64: World) -> None:
    base = {layer: dict.fromkeys(DONORS, 0.0) for layer in unet64.weights}
    scores = [
        unet64.gradients(Differentiation(0.4), floors=floors)(base, PROMPTS[:2])[0].value
        for floors in (None, Floors(0.0, 0.0, 4.0, str))
    ]
    assert scores[0] == pytest.approx(scores[1], rel=1e-12)


def test_floors_do_not_depend_on_how_many_are_drawn_at_once(unet64: World) -> None:
    floors = Floors(0.0, 0.0, 4.0, lambda tag: "all")
    whole = unet64.gradients(Differentiation(0.7), micro_batch=4, floors=floors)(unet64.weights, PROMPTS)
    for how, micro_batch in ((Differentiation(0.7), 1), (Differentiation(0.7, streamed=True), 3)):
        score, gradients = unet64.gradients(how, micro_batch=micro_batch, floors=floors)(unet64.weights, PROMPTS)
        assert score.value == pytest.approx(whole[0].value, rel=1e-12)
        for layer, row in gradients.items():
            assert row == pytest.approx(whole[1][layer], rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("sampler", ["euler", "euler_a", "heun", "dpm++2m", "unipc", "pndm"])
def test_gradients_go_through_every_sampler(unet64: World, sampler: str) -> None:
    """In one direction, and less sharply: these round to float32 at each step."""
    world = World(
        unet64.live,
        DifferentiableGenerator(
            unet64.generator.pipeline, GenerationSettings(**{**vars(SETTINGS), "sampler": sampler})
        ),
        unet64.tagger,
        unet64.layers,
        unet64.differences,
    )
    _, gradients = world.gradients(Differentiation(1.0))(world.weights, PROMPTS[:2])
    direction = {name: pair[0] for name, pair in world.differences.items()}
    expected = world.difference_quotient(direction, 0, 1e-3)
    assert sum(row["warm"] for row in gradients.values()) == pytest.approx(expected, rel=2e-2)


def test_what_is_kept_and_how_many_are_drawn_at_once_change_nothing(unet64: World) -> None:
    plain = unet64.gradients(Differentiation(0.7), micro_batch=4).measure(unet64.weights, PROMPTS)
    for how in (Differentiation(0.7), Differentiation(0.7, recompute=False), Differentiation(0.7, streamed=True)):
        other = unet64.gradients(how, micro_batch=3 if how.recompute else 1).measure(unet64.weights, PROMPTS)
        assert other.score.value == pytest.approx(plain.score.value, rel=1e-12)
        assert other.score.checksum == plain.score.checksum
        for layer, row in plain.gradients.items():
            assert other.gradients[layer] == pytest.approx(row, rel=1e-8, abs=1e-12), (how, layer)


def test_a_slice_of_the_decoding_at_a_time_changes_nothing(unet64: World, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = unet64.gradients(Differentiation(0.5), micro_batch=4).measure(unet64.weights, PROMPTS)
    monkeypatch.setattr("merger.scoring.gradients.sampling._DECODED_AT_ONCE", 32 * 32)
    sliced = unet64.gradients(Differentiation(0.5), micro_batch=4).measure(unet64.weights, PROMPTS)
    for layer, row in plain.gradients.items():
        assert sliced.gradients[layer] == pytest.approx(row, rel=1e-8, abs=1e-12)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_images_are_the_benchmarks(unet32: World, sampler: str) -> None:
    settings = GenerationSettings(**{**vars(SETTINGS), "sampler": sampler})
    generator = DifferentiableGenerator(unet32.generator.pipeline, settings)
    unet32.live.apply(unet32.weights)
    drawn = generator.draw(PROMPTS[:2], unet32.live.module, Differentiation(0.5))
    plain = next(iter(generator.generate(PROMPTS[:2])))
    assert np.abs(to_bytes(drawn.detach()).astype(int) - plain).max() <= 1


def test_the_score_is_the_benchmarks(unet32: World) -> None:
    score, _, evaluation = unet32.gradients(Differentiation(), micro_batch=3).measure(unet32.weights, PROMPTS)
    plain = evaluate(unet32.generator, {TAGGER: unet32.tagger}, PROMPTS)
    by_benchmark = LOG.score(plain)
    assert evaluation.tags == plain.tags
    assert np.abs(evaluation.probabilities[TAGGER] - plain.probabilities[TAGGER]).max() < 0.01  # bytes are rounded
    assert np.array_equal(evaluation.found(TAGGER), plain.found(TAGGER))
    assert score.accuracy == by_benchmark.accuracy
    assert score.probability == pytest.approx(by_benchmark.probability, abs=2e-3)
    assert score.value == pytest.approx(np.mean(score.per_prompt), abs=1e-6)
    assert (score.images, score.attributes) == (4, {"broken": 0, "duplicates": 0})


def test_gradients_are_deterministic(unet32: World) -> None:
    first, again = (unet32.gradients(Differentiation())(unet32.weights, PROMPTS) for _ in range(2))
    assert first[1] == again[1]
    assert first[0].value == again[0].value


@pytest.mark.parametrize("hold", ["host", "file"])
def test_sources_held_elsewhere_give_the_same_gradients(
    unet32: World, tiny_family: dict[str, Path], tiny_pipeline_folder: Path, hold: Hold
) -> None:
    """From the beginning, and from when they move: what takes the gradients follows."""
    pipeline = load_pipeline(tiny_family["base"], config=tiny_pipeline_folder)
    checkpoints, layers = opened(tiny_family, tiny_pipeline_folder, "block")
    mapped = make_world(pipeline, pipeline.unet, checkpoints, layers, unet32.tagger, hold=hold)
    assert mapped.live.nbytes < unet32.live.nbytes
    takers = [world.gradients(Differentiation()) for world in (unet32, mapped)]
    one, other = (gradients(unet32.weights, PROMPTS) for gradients in takers)
    assert one[1] == other[1]
    assert one[0].value == other[0].value
    mapped.live.hold_in("device")
    assert mapped.live.nbytes == unet32.live.nbytes
    assert takers[1](unet32.weights, PROMPTS)[1] == one[1]


@pytest.mark.parametrize(
    ("dtype", "error"), [(torch.float64, 1e-4), (torch.float16, 0.1), (torch.bfloat16, 0.3)], ids=str
)
def test_other_dtypes_are_as_near_to_float32_as_stated(
    tiny_family: dict[str, Path],
    tiny_pipeline_folder: Path,
    tiny_tagger_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    error: float,
) -> None:
    """`error` is the length of the difference by that of the gradients, all layers and donors as one vector.

    Larger images than elsewhere: of a strided convolution of one pixel, oneDNN's gradient in bf16 is not determined.
    """

    def same_noise(shape: Any, generator: Any, device: Any, dtype: torch.dtype) -> Tensor:
        return torch.cat([torch.randn(1, *shape[1:], generator=seeded) for seeded in generator]).to(device, dtype)

    monkeypatch.setattr("diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion.randn_tensor", same_noise)
    settings = GenerationSettings(**{**vars(SETTINGS), "width": 64, "height": 64, "steps": 2})
    tagger: Any = open_tagger(tiny_tagger_folder)
    found = []
    for kind in (torch.float32, dtype):
        pipeline = load_pipeline(tiny_family["base"], config=tiny_pipeline_folder, dtype=kind)
        files = opened(tiny_family, tiny_pipeline_folder, "block")
        seen = Wide(tagger) if kind == torch.float64 else tagger
        world = make_world(pipeline, pipeline.unet, *files, seen, settings=settings)
        found.append(as_vector(world.gradients(Differentiation(1.0))(world.weights, PROMPTS[:2])[1]))
    exact, rough = found
    assert np.linalg.norm(exact - rough) < error * np.linalg.norm(exact)


class Wide:
    """A tagger that is shown float64 and computes in float32."""

    def __init__(self, tagger: Any) -> None:
        self.name, self.tags, self.inner = tagger.name, tagger.tags, tagger

    def logits(self, images: Tensor) -> Tensor:
        return self.inner.logits(images.float())


def as_vector(gradients: Mapping[str, Mapping[str, float]]) -> np.ndarray:
    return np.array([gradient for row in gradients.values() for gradient in row.values()])


def test_the_probability_is_an_objective_too(unet32: World) -> None:
    metric = Metric("probability", 0.5, lambda tag: "general")
    gradients = BlendGradients(unet32.live, unet32.generator, unet32.tagger, metric, Differentiation(1.0))
    score, _ = gradients({}, PROMPTS[:2])
    asked = [gradients.measure({}, [prompt]).evaluation.probabilities[TAGGER][0].mean() for prompt in PROMPTS[:2]]
    assert score.value == pytest.approx(np.mean(asked), rel=1e-4)


def test_without_room_the_micro_batch_is_halved(unet64: World) -> None:
    class Cramped:
        name, tags = "cramped", unet64.tagger.tags

        def logits(self, images: Tensor) -> Tensor:
            if len(images) > most:
                raise torch.OutOfMemoryError("no room")
            return unet64.tagger.logits(images)

    most = 1
    gradients = BlendGradients(unet64.live, unet64.generator, Cramped(), LOG, micro_batch=4)
    _, found = gradients(unet64.weights, PROMPTS[:3])
    assert gradients.micro_batch == 1
    _, expected = unet64.gradients(Differentiation(), micro_batch=1)(unet64.weights, PROMPTS[:3])
    assert found == expected
    most = 0
    with pytest.raises(torch.OutOfMemoryError):
        gradients(unet64.weights, PROMPTS[:1])


def test_the_memory_of_a_step_is_what_one_image_takes(unet64: World) -> None:
    gradients = unet64.gradients(Differentiation(), micro_batch=3)
    parameters = dict(unet64.live.module.named_parameters())
    image_memory(gradients, PROMPTS[0])  # text embeddings are kept from now on
    image = image_memory(gradients, PROMPTS[0])
    memory = image.of_step(gradients.how, unet64.live.nbytes, 2)
    assert min(memory.steps, memory.decoder, memory.tagger) > 0
    assert memory.decoder >= memory.decoded_kept > 0
    assert memory.gradients == sum(parameter.nbytes for parameter in parameters.values())
    assert (memory.held, memory.images, memory.decoded) == (unet64.live.nbytes, 2, 1024)
    assert not any(parameter.requires_grad for parameter in parameters.values())
    assert image_memory(gradients, PROMPTS[0], free=2 * memory.least) == image
    with pytest.raises(TooMuch) as refused:
        image_memory(gradients, PROMPTS[0], free=memory.decoder // 2)
    assert refused.value.part == DECODER
    assert not any(parameter.requires_grad for parameter in parameters.values())
