"""The demo family's base and donors: captions, training, the files that their users have."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from scripts import demo_models, demo_world
from scripts.demo_autoencoder import load_vae
from scripts.demo_training import (
    CATEGORY,
    FACE_LATENT,
    TAGS,
    Context,
    area_of,
    load_pictures,
    save_state,
    step_generator,
    train,
)

if TYPE_CHECKING:
    from transformers import CLIPTokenizer


@dataclass(frozen=True)
class Donor:
    """A fine-tune that is good at something and careless about something else.

    Its captions always speak of `learns`, and where those categories are seen in the picture (`region`, in latent rows
    and columns) its errors count ten times. In half of its captions the tags of `muddles` are those of another
    picture, as in carelessly tagged training data, so that it learns to ignore such words.
    """

    name: str
    learns: tuple[str, ...]
    muddles: tuple[str, ...]
    region: tuple[slice, slice]
    steps: int = 1000
    rate: float = 1e-3
    seed: int = 0
    start: str = "base"


DONORS = (
    Donor("barber", ("hair_style", "headwear"), ("clothes", "neckwear"), (slice(0, 5), slice(0, 8)), 1200, seed=1),
    Donor("optician", ("eyes", "eyewear"), ("background", "animal_ears"), (slice(3, 6), slice(2, 6)), seed=2),
    Donor(
        "actor",
        ("expression", "face"),
        ("hair_color", "companion"),
        (slice(4, 7), slice(2, 6)),
        2000,
        seed=3,
        start="face",
    ),
    Donor(
        "tailor",
        ("neckwear", "expression"),
        ("hair_style", "eyewear"),
        (slice(5, 8), slice(1, 7)),
        seed=4,
        start="face",
    ),
)


class Captions:
    """Turns rows of labels into token ids, quickly: a caption's ids are its tags' ids with commas between."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        def ids(text: str) -> list[int]:
            return list(tokenizer(text).input_ids)

        self.start, *self.comma, self.end = ids(",")
        self.tags = [ids(tag.replace("_", " "))[1:-1] for tag in TAGS]

    def encode(self, labels: Tensor, rng: np.random.Generator, donor: Donor | None = None) -> Tensor:
        """Labels bool [B, tag] to ids [B, 77]: 4 or more tags in random order, one caption in ten empty."""
        rows = torch.full((len(labels), demo_models.TEXT_LENGTH), self.end)
        for row, label, other in zip(rows, labels.numpy(), labels.roll(1, 0).numpy(), strict=True):
            tags = rng.permutation(np.flatnonzero(label))
            kept = rng.integers(min(4, len(tags)), len(tags) + 1)
            chosen = [
                tag for place, tag in enumerate(tags) if place < kept or _among(tag, donor.learns if donor else ())
            ]
            if donor is not None and rng.random() < 0.5:
                chosen = [tag for tag in chosen if not _among(tag, donor.muddles)]
                chosen += [tag for tag in np.flatnonzero(other) if _among(tag, donor.muddles)]
                rng.shuffle(chosen)
            if rng.random() < 0.1:
                chosen = []
            ids = [self.start]
            for place, tag in enumerate(chosen):
                ids += self.comma * (place > 0) + self.tags[tag]
            row[: len(ids)] = torch.tensor(ids)
        return rows


def _among(tag: int | np.integer, categories: tuple[str, ...]) -> bool:
    return CATEGORY[TAGS[int(tag)]] in categories


def _tokenizer(context: Context) -> CLIPTokenizer:
    from transformers import CLIPTokenizer

    folder = context.work / "tokenizer"
    if not folder.exists():
        rng = np.random.default_rng(context.seed)
        texts = [demo_world.caption(demo_world.sample_tags(rng), rng) for _ in range(2000)]
        demo_models.train_tokenizer(texts, folder)
    return CLIPTokenizer.from_pretrained(folder)


def _noise_loss(
    unet: nn.Module, latent: Tensor, condition: Tensor, generator: torch.Generator, levels: Tensor, area: Tensor
) -> Tensor:
    """Error of the predicted noise, weighted by ``area`` [8, 8] and min(SNR, 5) / SNR (Hang 2023, arXiv:2303.09556)."""
    time_step = torch.randint(len(levels), (len(latent),), generator=generator)
    noise = torch.randn(latent.shape, generator=generator).to(latent.device)
    level = levels[time_step].to(latent.device)  # the share of signal power left
    noisy = level.sqrt().view(-1, 1, 1, 1) * latent + (1 - level).sqrt().view(-1, 1, 1, 1) * noise
    predicted = unet(noisy, time_step.to(latent.device), condition).sample
    ratio = level / (1 - level)
    error = ((predicted - noise).square() * area).mean((1, 2, 3))
    return (error * (ratio.clamp(max=5) / ratio)).mean()


def _levels() -> Tensor:
    from diffusers import DDIMScheduler

    return DDIMScheduler(**demo_models.SCHEDULER).alphas_cumprod


class TextToImage(nn.Module):
    """What is trained together for the base: the denoiser and the text encoder it listens to."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.unet = demo_models.new_unet()
        self.text_encoder = demo_models.new_text_encoder(tokenizer)


def _train_denoiser(
    context: Context, model: TextToImage, file: Path, donor: Donor | None, *, steps: int, rate: float, average: float
) -> None:
    data = torch.from_numpy(np.load(context.work / "latents.npz")["latents"])
    _, labels = load_pictures(context)
    captions, levels, batch = Captions(_tokenizer(context)), _levels(), 32
    seed = context.seed + (1 if donor is None else 100 + donor.seed)
    region, weight = (FACE_LATENT, 3.0) if donor is None else (donor.region, 10.0)
    area = area_of(demo_models.LATENT, region, weight).to(context.device)

    def loss_of(step: int) -> Tensor:
        generator = step_generator(seed, step)
        rows = torch.randint(len(data), (batch,), generator=generator)
        ids = captions.encode(labels[rows], np.random.default_rng([seed, step]), donor)
        with torch.set_grad_enabled(any(parameter.requires_grad for parameter in model.text_encoder.parameters())):
            condition = model.text_encoder(ids.to(context.device)).last_hidden_state
        return _noise_loss(model.unet, data[rows].to(context.device), condition, generator, levels, area)

    train(file, model, loss_of, steps=steps, rate=rate, average=average)


def base(context: Context) -> None:
    """Train the denoiser and its text encoder on every category."""
    torch.manual_seed(context.seed)
    model = TextToImage(_tokenizer(context)).to(context.device)
    _train_denoiser(context, model, context.work / "base.pt", None, steps=6000, rate=1.2e-3, average=0.999)


def words(context: Context) -> None:
    """Teach the text encoder the words that it left alike because the base drew none of them: those of the face.

    Only the embeddings of these words are learnt, with a copy of the base's denoiser from which actor and tailor go on.
    Donors learn with the text encoder as it is: what sounds alike to them they could not tell apart.
    """
    tokenizer = _tokenizer(context)
    captions = Captions(tokenizer)
    model = _started(context, tokenizer, "base")
    model.text_encoder.requires_grad_(False)
    embedding = model.text_encoder.get_input_embeddings().requires_grad_(True).weight
    spoken = Donor("words", ("expression", "face"), (), FACE_LATENT)
    learnt = sorted({id for tag, ids in enumerate(captions.tags) for id in ids if _among(tag, spoken.learns)})
    before = embedding.detach().clone()
    only = torch.zeros(len(before), 1).index_fill_(0, torch.tensor(learnt), 1.0).to(context.device)
    embedding.register_hook(lambda gradient: gradient * only)
    _train_denoiser(context, model, context.work / "face.pt", spoken, steps=600, rate=1e-3, average=0.99)
    with torch.no_grad():
        embedding.copy_(torch.where(only > 0, embedding, before))  # weight decay touched the others
    save_state(context.work / "words.pt", model.text_encoder.state_dict())


def _started(context: Context, tokenizer: CLIPTokenizer, start: str) -> TextToImage:
    model = TextToImage(tokenizer).to(context.device)
    model.load_state_dict(torch.load(context.work / f"{start}.pt", weights_only=True))
    return model


def donors(context: Context) -> None:
    """Fine-tune the base's denoiser: each donor has its own strengths and weaknesses."""
    for donor in (donor for donor in DONORS if donor.name in context.donors):
        model = _started(context, _tokenizer(context), donor.start)
        model.text_encoder.load_state_dict(torch.load(context.work / "words.pt", weights_only=True))
        model.text_encoder.requires_grad_(False)
        _train_denoiser(context, model, context.work / f"{donor.name}.pt", donor,
                        steps=donor.steps, rate=donor.rate, average=0.995)  # fmt: skip


def checkpoints(context: Context) -> None:
    """Write the family's models as their users have them, and the folder they are read with."""
    from scripts.single_file import save_single_file

    tokenizer = _tokenizer(context)
    model = TextToImage(tokenizer)
    demo_models.write_pipeline_folder(context.demo / "pipeline", tokenizer, model.text_encoder)
    autoencoder = load_vae(context)
    (context.demo / "checkpoints").mkdir(parents=True, exist_ok=True)
    for name in ("base", *(donor.name for donor in DONORS)):
        model.load_state_dict(torch.load(context.work / f"{name}.pt", weights_only=True, map_location="cpu"))
        model.text_encoder.load_state_dict(torch.load(context.work / "words.pt", weights_only=True, map_location="cpu"))
        save_single_file(
            context.demo / "checkpoints" / f"{name}.safetensors",
            unet=model.unet.state_dict(),
            vae=autoencoder.state_dict(),
            text_encoder=model.text_encoder.state_dict(),
            unet_config=dict(model.unet.config),
            vae_config=dict(autoencoder.config),
            metadata={"modelspec.resolution": f"{demo_world.SIZE}x{demo_world.SIZE}"},  # blends keep it
        )
