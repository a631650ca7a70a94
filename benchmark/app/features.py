"""The looks that a command line names, opened; and what their scores are compared with."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmark.errors import InputError
from benchmark.features.classifier import ClassifierLook
from benchmark.features.encoders import ClipEncoder, Look, open_encoder
from benchmark.features.references import look_at, picture_files
from benchmark.features.style import StyleLook
from benchmark.metrics.secondary import CLASSES, CLIP, ENCODER, STYLE, Beside
from benchmark.prompts.prompt_set import Prompt


def open_looks(args: argparse.Namespace, device: str, side: int) -> dict[str, Look]:
    """role -> look, for the arguments of `cli.add_arguments`; `side`: the shorter side of the images, in pixels.

    Raises InputError, for reference images too.
    """
    looks: dict[str, Look] = {}
    if args.frechet is not None:
        if not (args.clip or args.encoder):
            raise InputError("--frechet compares what an image encoder sees. Name one with --encoder or --clip.")
        if len(picture_files(args.frechet)) < 2:
            raise InputError(
                f"{args.frechet}: holds one image; a Fréchet distance needs two or more, better thousands."
            )
    if args.clip:
        looks[CLIP] = ClipEncoder(args.clip, device=device)
    if args.encoder:
        encoder = open_encoder(args.encoder, device=device)
        looks[CLIP if isinstance(encoder, ClipEncoder) and not args.clip else ENCODER] = encoder
    if args.inception_classifier:
        looks[CLASSES] = ClassifierLook(args.inception_classifier, device=device)
    if (args.style_vgg is None) != (args.style_reference is None):
        raise InputError("The style loss needs both --style-vgg FILE and --style-reference FOLDER.")
    if args.style_vgg is not None:
        looks[STYLE] = StyleLook(args.style_vgg, args.style_reference, side, device=device)
    return looks


def not_to_be_had(looks: Mapping[str, Look], images: int) -> list[str]:
    """A line for each figure that these looks could be expected to give and, from `images` of a prompt, cannot."""
    lines = []
    if ENCODER in looks and CLIP not in looks:
        name = looks[ENCODER].name
        lines.append(
            f"encoder {name}: reads no prompts, so there is no CLIP score and no R-precision (--clip gives them)"
        )
    if images < 2 and {CLIP, ENCODER} & looks.keys():
        lines.append("diversity: cannot be told from one image of each prompt (--images 2 gives it)")
    return lines


def beside(looks: Mapping[str, Look], prompts: Sequence[Prompt], frechet: Path | None, cache: Path) -> Beside:
    """The prompts as CLIP reads them, and the reference images as every encoder sees them."""
    encoders = {role: looks[role] for role in (CLIP, ENCODER) if role in looks}
    names = {role: look.name for role, look in encoders.items()}
    if len(set(names.values())) < len(names):
        names = {role: f"{name} ({role})" for role, name in names.items()}
    clip, texts = looks.get(CLIP), None
    if isinstance(clip, ClipEncoder):
        texts = clip.texts(list({prompt.index: prompt.text for prompt in prompts}.values()))
    seen = {} if frechet is None else {role: look_at(frechet, look, cache) for role, look in encoders.items()}
    return Beside(texts, names, seen)
