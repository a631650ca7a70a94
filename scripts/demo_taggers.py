"""The demo family's tagger and judge: training, how well they read, the folders that their users have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from scripts import demo_models, demo_world
from scripts.demo_training import (
    SEEN,
    SEEN_COLUMNS,
    Context,
    as_signal,
    draw_pictures,
    load_pictures,
    step_generator,
    train,
)


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
    images, labels = load_pictures(context)
    labels = labels[:, SEEN_COLUMNS]
    model.to(context.device)

    def loss_of(step: int) -> Tensor:
        generator = step_generator(seed, step)
        rows = torch.randint(len(images), (48,), generator=generator)
        logits = model(_roughen(images[rows], generator).to(context.device)).logits
        return nn.functional.binary_cross_entropy_with_logits(logits, labels[rows].float().to(context.device))

    train(file, model, loss_of, steps=steps, rate=rate, average=0.998)


def tagger(context: Context) -> None:
    """Train the tagger that the search uses."""
    torch.manual_seed(context.seed + 2)
    model = demo_models.new_tagger(SEEN)
    _train_tagger(context, context.work / "tagger.pt", model, context.seed + 2, steps=2500, rate=3e-3)
    _report_tagger(context, model)


def judge(context: Context) -> None:
    """Train the second tagger, of another architecture and another seed, which no search ever sees."""
    torch.manual_seed(context.seed + 3)
    model = demo_models.new_judge(SEEN)
    _train_tagger(context, context.work / "judge.pt", model, context.seed + 3, steps=2200, rate=4e-3)
    _report_tagger(context, model)


@torch.no_grad()
def _report_tagger(context: Context, model: nn.Module) -> None:
    images, labels = draw_pictures(2000, context.seed + 4)
    labels = labels[:, SEEN_COLUMNS]
    model.to(context.device).eval()
    parts = torch.from_numpy(images).split(100)
    found = torch.cat([model(as_signal(part).to(context.device)).logits.cpu() > 0 for part in parts]).numpy()
    recall = (found & labels).sum(0) / np.maximum(1, labels.sum(0))
    print(f"recall {found[labels].mean():.4f}, false positives {found[~labels].mean():.5f} on 2,000 fresh pictures")
    print("hardest:", ", ".join(f"{SEEN[index]} {recall[index]:.3f}" for index in np.argsort(recall)[:6]))


def classifiers(context: Context) -> None:
    """Write tagger and judge as their users have them, and the vocabulary."""
    _, labels = load_pictures(context)
    counts = dict(zip(SEEN, labels[:, SEEN_COLUMNS].sum(0).tolist(), strict=True))
    for name, new in (("tagger", demo_models.new_tagger), ("judge", demo_models.new_judge)):
        classifier = new(SEEN)
        classifier.load_state_dict(torch.load(context.work / f"{name}.pt", weights_only=True, map_location="cpu"))
        demo_models.write_classifier(context.demo / name, classifier.eval())
        if name == "tagger":
            demo_models.write_wd_tagger(context.demo / name, classifier, counts)
    rows = [f"{tag.name},{tag.category},{tag.group}" for tag in demo_world.TAGS if tag.name in SEEN]
    (context.demo / "vocabulary.csv").write_text("\n".join(["tag,category,group", *rows]) + "\n")
