"""Rebuild the demo family from seeds: pictures, autoencoder, base model, donors, tagger and judge.

    python -m scripts.train_demo                  # everything, resuming where the last call stopped
    python -m scripts.train_demo --only vae,base  # some stages
    python -m scripts.train_demo --work DIR       # where the half-done state is kept (default .work/demo)

Each stage leaves one file in the work folder and is skipped when it is there; a stage that was interrupted goes on from
its last saved step. On two cores the whole takes about three hours. The finished family is written to demo/.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import Pool
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from scripts import demo_models, demo_world

if TYPE_CHECKING:
    from diffusers import AutoencoderKL
    from transformers import CLIPTokenizer

ROOT = Path(__file__).resolve().parent.parent
TAGS = tuple(tag.name for tag in demo_world.TAGS)
CATEGORY = {tag.name: tag.category for tag in demo_world.TAGS}

# Drawn and named in captions, but too small for the taggers' first layers (a recall of 0.005 where every other tag had
# 0.9 or more): they do not offer it, and no prompt asks for it.
UNSEEN = ("freckles",)
SEEN = tuple(tag for tag in TAGS if tag not in UNSEEN)
PICTURES = 30_000
SEED = 7

# Where the face is, in pixels and in latent cells. It is an eighth of the picture and a quarter of its tags: with every
# pixel counted alike the autoencoder blurs it, and then no denoiser can learn what is asked of it.
FACE = (slice(26, 50), slice(16, 48))
FACE_LATENT = (slice(3, 7), slice(2, 6))
_SEEN_COLUMNS = [TAGS.index(tag) for tag in SEEN]


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


@dataclass(frozen=True)
class Context:
    """Where things are kept and what they are computed on."""

    work: Path
    demo: Path
    device: torch.device
    donors: tuple[str, ...]  # those to train in this call: two calls can share the work


def main() -> int:
    """Run the stages asked for, in order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="stages to run, separated by commas; default: all")
    parser.add_argument("--work", type=Path, default=ROOT / ".work" / "demo")
    parser.add_argument("--demo", type=Path, default=ROOT / "demo")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--donors", help="which donors to train, separated by commas; default: all")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; default: torch's own choice")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    stages = {
        "pictures": pictures, "vae": vae, "latents": latents, "base": base, "words": words,
        "tagger": tagger, "judge": judge, "donors": donors, "checkpoints": checkpoints, "classifiers": classifiers,
    }  # fmt: skip
    chosen = options.only.split(",") if options.only else list(stages)
    if unknown := [name for name in chosen if name not in stages]:
        print(f"error: no stage is called {unknown[0]!r}; there are: {', '.join(stages)}", file=sys.stderr)
        return 2
    donors_chosen = options.donors.split(",") if options.donors else [donor.name for donor in DONORS]
    if unknown := [name for name in donors_chosen if name not in [donor.name for donor in DONORS]]:
        print(f"error: no donor is called {unknown[0]!r}", file=sys.stderr)
        return 2
    context = Context(options.work, options.demo, torch.device(options.device), tuple(donors_chosen))
    context.work.mkdir(parents=True, exist_ok=True)
    for name in chosen:
        started = time.time()
        print(f"== {name}", flush=True)
        stages[name](context)
        print(f"== {name}: {time.time() - started:.0f} s", flush=True)
    return 0


# ------------------------------------------------------------------ pictures


def _draw_share(share: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    seed, count = share
    rng = np.random.default_rng(seed)
    images = np.empty((count, demo_world.SIZE, demo_world.SIZE, 3), np.uint8)
    labels = np.zeros((count, len(TAGS)), bool)
    for row in range(count):
        tags = demo_world.sample_tags(rng)
        images[row] = np.asarray(demo_world.draw(tags, rng))
        labels[row, [TAGS.index(tag) for tag in tags]] = True
    return images, labels


def draw_pictures(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw ``count`` pictures on all cores: uint8 [count, 64, 64, 3] and labels bool [count, tag]."""
    share = 500
    shares = [(seed * 1_000_003 + start, min(share, count - start)) for start in range(0, count, share)]
    with Pool() as pool:
        parts = pool.map(_draw_share, shares)
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def pictures(context: Context) -> None:
    """Draw the training pictures."""
    file = context.work / "pictures.npz"
    if not file.exists():
        images, labels = draw_pictures(PICTURES, SEED)
        _save_arrays(file, images=images, labels=labels)


def _load_pictures(context: Context) -> tuple[Tensor, Tensor]:
    arrays = np.load(context.work / "pictures.npz")
    return torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"])


def _save_arrays(file: Path, **arrays: np.ndarray) -> None:
    part = file.with_name("part-" + file.name)
    np.savez(part, allow_pickle=False, **arrays)
    part.replace(file)


def as_signal(images: Tensor) -> Tensor:
    """uint8 [B, H, W, 3] to float32 [B, 3, H, W] in -1..1."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


# ------------------------------------------------------------------ a training loop for all


def train(
    file: Path,
    model: nn.Module,
    loss_of: Callable[[int], Tensor],
    *,
    steps: int,
    rate: float,
    average: float = 0.999,
    decay: float = 0.01,
) -> None:
    """Train ``model`` with AdamW and leave it holding the moving average of its weights, which is saved to ``file``.

    ``loss_of(step)`` draws its own batch from ``step``, so that a resumed training sees what an uninterrupted one does.
    The learning rate rises for the first 3 % of the steps and falls to zero along a cosine.
    """
    if file.exists():
        model.load_state_dict(torch.load(file, weights_only=True))
        return
    state = file.with_suffix(".state")
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.99), weight_decay=decay, fused=True)
    shadow = [parameter.detach().clone() for parameter in parameters]
    first = 0
    if state.exists():
        saved = torch.load(state, weights_only=True)
        first = saved["step"]
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        shadow = saved["shadow"]
    warmup, started, shown = max(1, int(0.03 * steps)), time.time(), 0.0
    model.train()
    for step in range(first, steps):
        share = (step - warmup) / max(1, steps - warmup)
        factor = (step + 1) / warmup if step < warmup else 0.5 * (1 + math.cos(math.pi * share))
        for group in optimizer.param_groups:
            group["lr"] = rate * factor
        loss = loss_of(step)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        keep = min(average, (step + 1) / (step + 10))
        torch._foreach_lerp_(shadow, [parameter.detach() for parameter in parameters], 1 - keep)
        shown = loss.item() if step == first else 0.98 * shown + 0.02 * loss.item()
        if (step + 1) % 100 == 0:
            pace = (time.time() - started) / (step + 1 - first)
            left = (steps - step - 1) * pace / 60
            print(f"{file.stem} {step + 1}/{steps} loss {shown:.4f} {pace:.3f} s/step {left:.1f} min left", flush=True)
        if (step + 1) % 500 == 0:
            _save(state, {"step": step + 1, "model": model.state_dict(), "optimizer": optimizer.state_dict(),
                          "shadow": shadow})  # fmt: skip
    with torch.no_grad():
        for parameter, mean in zip(parameters, shadow, strict=True):
            parameter.copy_(mean)
    model.eval()
    _save(file, model.state_dict())
    state.unlink(missing_ok=True)


def _save(file: Path, state: dict[str, object]) -> None:
    part = file.with_name("part-" + file.name)
    torch.save(state, part)
    part.replace(file)


def _generator(seed: int, step: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_000 + step)


# ------------------------------------------------------------------ autoencoder


def vae(context: Context) -> None:
    """Train the autoencoder, then whiten its latents inside the file.

    A denoiser learns fastest when the latent channels are uncorrelated and of one spread. The 1x1 convolutions on both
    sides of the latent can hold any linear map, so the whitening and its inverse are folded into them and every loader
    gets it for free.
    """
    images, _ = _load_pictures(context)
    torch.manual_seed(SEED)
    model = demo_models.new_vae().to(context.device)
    loss_of = autoencoder_loss(model, images, context.device)
    train(context.work / "vae.pt", model, loss_of, steps=5000, rate=1.5e-3)
    file = context.work / "vae-white.pt"
    if not file.exists():
        _whiten(model, as_signal(images[:2000]).to(context.device))
        _save(file, model.state_dict())


def autoencoder_loss(model: AutoencoderKL, images: Tensor, device: torch.device) -> Callable[[int], Tensor]:
    """The loss of each step: errors of pixels, six times as heavy in the face, and the latents' divergence.

    Decoding is from latents with noise, as a denoiser's are never exact: what matters then gets a larger share of them.
    """
    area = _area(demo_world.SIZE, FACE, 6.0).to(device)
    lowest = 0.2 / demo_models.LATENT_SCALE  # the noise's spread where that of the latents is 1

    def loss_of(step: int) -> Tensor:
        generator = _generator(SEED, step)
        signal = as_signal(images[torch.randint(len(images), (16,), generator=generator)]).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            posterior = model.encode(signal).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=generator).to(device)
            output = model.decode(posterior.mean + posterior.std.clamp(min=lowest) * noise).sample
        error = output.float() - signal
        spread = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float())
        return ((error.abs() + error.square()) * area).mean() + 2e-4 * spread.mean()

    return loss_of


def _area(size: int, region: tuple[slice, slice], weight: float) -> Tensor:
    """[size, size] of mean 1: how much each place counts, `weight` times as much within `region`."""
    area = torch.ones(size, size)
    area[region] = weight
    return area / area.mean()


@torch.no_grad()
def _whiten(model: AutoencoderKL, signal: Tensor) -> None:
    means = torch.cat([model.encode(part).latent_dist.mean for part in signal.split(100)])
    flat = means.permute(0, 2, 3, 1).reshape(-1, means.shape[1]).double()
    centre = flat.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov((flat - centre).T))
    forward = (vectors @ torch.diag(values.rsqrt()) @ vectors.T / demo_models.LATENT_SCALE).float()  # symmetric: ZCA
    back, centre = torch.linalg.inv(forward.double()).float(), centre.float()
    channels = len(centre)
    before, after = model.quant_conv, model.post_quant_conv
    # Only the mean half is mapped: the variance half keeps its meaning up to scale, and is not drawn from at inference.
    before.weight[:channels] = torch.einsum("ij,jkhw->ikhw", forward, before.weight[:channels])
    before.bias[:channels] = forward @ (before.bias[:channels] - centre)
    after.bias += after.weight[:, :, 0, 0] @ centre
    after.weight.copy_(torch.einsum("ijhw,jk->ikhw", after.weight, back))


def _load_vae(context: Context) -> AutoencoderKL:
    model = demo_models.new_vae()
    model.load_state_dict(torch.load(context.work / "vae-white.pt", weights_only=True))
    return model.to(context.device).eval()


@torch.no_grad()
def latents(context: Context) -> None:
    """Encode every training picture once: float32 [picture, 8, 8, 8] of unit spread."""
    file = context.work / "latents.npz"
    if file.exists():
        return
    images, _ = _load_pictures(context)
    model = _load_vae(context)
    parts = [model.encode(as_signal(part).to(context.device)).latent_dist.mean.cpu() for part in images.split(200)]
    _save_arrays(file, latents=(torch.cat(parts) * demo_models.LATENT_SCALE).numpy())


# ------------------------------------------------------------------ captions


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
        rng = np.random.default_rng(SEED)
        texts = [demo_world.caption(demo_world.sample_tags(rng), rng) for _ in range(2000)]
        demo_models.train_tokenizer(texts, folder)
    return CLIPTokenizer.from_pretrained(folder)


# ------------------------------------------------------------------ denoisers


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
    _, labels = _load_pictures(context)
    captions, levels, batch = Captions(_tokenizer(context)), _levels(), 32
    seed = SEED + 1 if donor is None else SEED + 100 + donor.seed
    region, weight = (FACE_LATENT, 3.0) if donor is None else (donor.region, 10.0)
    area = _area(demo_models.LATENT, region, weight).to(context.device)

    def loss_of(step: int) -> Tensor:
        generator = _generator(seed, step)
        rows = torch.randint(len(data), (batch,), generator=generator)
        ids = captions.encode(labels[rows], np.random.default_rng([seed, step]), donor)
        with torch.set_grad_enabled(any(parameter.requires_grad for parameter in model.text_encoder.parameters())):
            condition = model.text_encoder(ids.to(context.device)).last_hidden_state
        return _noise_loss(model.unet, data[rows].to(context.device), condition, generator, levels, area)

    train(file, model, loss_of, steps=steps, rate=rate, average=average)


def base(context: Context) -> None:
    """Train the denoiser and its text encoder on every category."""
    torch.manual_seed(SEED)
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
    _save(context.work / "words.pt", model.text_encoder.state_dict())


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


# ------------------------------------------------------------------ taggers


def _roughen(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift, blur, dim and add grain, so that a tagger reads drawn pictures as well as generated ones."""
    signal = as_signal(images)
    draw = lambda *shape: torch.rand(*shape, generator=generator)  # noqa: E731
    shift = torch.randint(-3, 4, (2,), generator=generator).tolist()
    signal = torch.roll(signal, shift, (2, 3))
    small = nn.functional.interpolate(signal, scale_factor=0.5, mode="area")
    blurred = nn.functional.interpolate(small, scale_factor=2, mode="bilinear", align_corners=False)
    amount = (draw(len(signal), 1, 1, 1) * 1.2 - 0.2).clamp(0, 1)
    signal = signal + amount * (blurred - signal)
    tint = 1 + 0.15 * (draw(len(signal), 3, 1, 1) - 0.5)
    grain = torch.randn(signal.shape, generator=generator) * draw(len(signal), 1, 1, 1) * 0.15
    return (signal * tint + 0.15 * (draw(len(signal), 3, 1, 1) - 0.5) + grain).clamp(-1, 1)


def _train_tagger(context: Context, file: Path, model: nn.Module, seed: int, steps: int, rate: float) -> None:
    images, labels = _load_pictures(context)
    labels = labels[:, _SEEN_COLUMNS]
    model.to(context.device)

    def loss_of(step: int) -> Tensor:
        generator = _generator(seed, step)
        rows = torch.randint(len(images), (48,), generator=generator)
        logits = model(_roughen(images[rows], generator).to(context.device)).logits
        return nn.functional.binary_cross_entropy_with_logits(logits, labels[rows].float().to(context.device))

    train(file, model, loss_of, steps=steps, rate=rate, average=0.998)


def tagger(context: Context) -> None:
    """Train the tagger that the search uses."""
    torch.manual_seed(SEED + 2)
    model = demo_models.new_tagger(SEEN)
    _train_tagger(context, context.work / "tagger.pt", model, SEED + 2, steps=2500, rate=3e-3)
    _report_tagger(context, model)


def judge(context: Context) -> None:
    """Train the second tagger, of another architecture and another seed, which no search ever sees."""
    torch.manual_seed(SEED + 3)
    model = demo_models.new_judge(SEEN)
    _train_tagger(context, context.work / "judge.pt", model, SEED + 3, steps=2200, rate=4e-3)
    _report_tagger(context, model)


@torch.no_grad()
def _report_tagger(context: Context, model: nn.Module) -> None:
    images, labels = draw_pictures(2000, SEED + 4)
    labels = labels[:, _SEEN_COLUMNS]
    model.to(context.device).eval()
    parts = torch.from_numpy(images).split(100)
    found = torch.cat([model(as_signal(part).to(context.device)).logits.cpu() > 0 for part in parts]).numpy()
    recall = (found & labels).sum(0) / np.maximum(1, labels.sum(0))
    print(f"recall {found[labels].mean():.4f}, false positives {found[~labels].mean():.5f} on 2,000 fresh pictures")
    print("hardest:", ", ".join(f"{SEEN[index]} {recall[index]:.3f}" for index in np.argsort(recall)[:6]))


# ------------------------------------------------------------------ files


def checkpoints(context: Context) -> None:
    """Write the family's models as their users have them, and the folder they are read with."""
    from merger.keys import save_single_file

    tokenizer = _tokenizer(context)
    model = TextToImage(tokenizer)
    demo_models.write_pipeline_folder(context.demo / "pipeline", tokenizer, model.text_encoder)
    autoencoder = _load_vae(context)
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
        )


def classifiers(context: Context) -> None:
    """Write tagger and judge as their users have them, and the vocabulary."""
    _, labels = _load_pictures(context)
    counts = dict(zip(SEEN, labels[:, _SEEN_COLUMNS].sum(0).tolist(), strict=True))
    for name, new in (("tagger", demo_models.new_tagger), ("judge", demo_models.new_judge)):
        classifier = new(SEEN)
        classifier.load_state_dict(torch.load(context.work / f"{name}.pt", weights_only=True, map_location="cpu"))
        demo_models.write_classifier(context.demo / name, classifier.eval())
        if name == "tagger":
            demo_models.write_wd_tagger(context.demo / name, classifier, counts)
    rows = [f"{tag.name},{tag.category},{tag.group}" for tag in demo_world.TAGS if tag.name in SEEN]
    (context.demo / "vocabulary.csv").write_text("\n".join(["tag,category,group", *rows]) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
