"""What training any part of the demo family needs: the pictures, a resumable loop, where things are kept."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from scripts import demo_world

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
SEEN_COLUMNS = [TAGS.index(tag) for tag in SEEN]


@dataclass(frozen=True)
class Context:
    """Where things are kept and what they are computed on."""

    work: Path
    demo: Path
    device: torch.device
    donors: tuple[str, ...]  # those to train in this call: two calls can share the work
    seed: int = SEED


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
        images, labels = draw_pictures(PICTURES, context.seed)
        save_arrays(file, images=images, labels=labels)


def load_pictures(context: Context) -> tuple[Tensor, Tensor]:
    """The training pictures, uint8 [picture, 64, 64, 3], and their labels, bool [picture, tag]."""
    arrays = np.load(context.work / "pictures.npz")
    return torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"])


def save_arrays(file: Path, **arrays: np.ndarray) -> None:
    """Write a NumPy archive whole or not at all."""
    part = file.with_name("part-" + file.name)
    np.savez(part, allow_pickle=False, **arrays)
    part.replace(file)


def as_signal(images: Tensor) -> Tensor:
    """uint8 [B, H, W, 3] to float32 [B, 3, H, W] in -1..1."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


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
            save_state(state, {"step": step + 1, "model": model.state_dict(), "optimizer": optimizer.state_dict(),
                          "shadow": shadow})  # fmt: skip
    with torch.no_grad():
        for parameter, mean in zip(parameters, shadow, strict=True):
            parameter.copy_(mean)
    model.eval()
    save_state(file, model.state_dict())
    state.unlink(missing_ok=True)


def save_state(file: Path, state: dict[str, object]) -> None:
    """Write a state whole or not at all."""
    part = file.with_name("part-" + file.name)
    torch.save(state, part)
    part.replace(file)


def step_generator(seed: int, step: int) -> torch.Generator:
    """A step's own source of random numbers."""
    return torch.Generator().manual_seed(seed * 1_000_000 + step)


def area_of(size: int, region: tuple[slice, slice], weight: float) -> Tensor:
    """[size, size] of mean 1: how much each place counts, `weight` times as much within `region`."""
    area = torch.ones(size, size)
    area[region] = weight
    return area / area.mean()
