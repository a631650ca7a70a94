"""The looks that a command line names, opened; and what their scores are compared with."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmark.classifier import ClassifierLook
from benchmark.encoders import ClipEncoder, Look
from benchmark.errors import InputError
from benchmark.prompts import Prompt
from benchmark.references import look_at, picture_files
from benchmark.secondary import CLASSES, CLIP, STYLE, Beside
from benchmark.style import StyleLook


def open_looks(args: argparse.Namespace, device: str, side: int) -> dict[str, Look]:
    """role -> look, for the arguments of `cli.add_arguments`; `side`: the shorter side of the images, in pixels.

    Raises InputError, for reference images too.
    """
    looks: dict[str, Look] = {}
    if args.frechet is not None:
        if not args.clip:
            raise InputError("--frechet compares what CLIP sees. Name a CLIP model with --clip.")
        if len(picture_files(args.frechet)) < 2:
            raise InputError(
                f"{args.frechet}: holds one image; a Fréchet distance needs two or more, better thousands."
            )
    if args.clip:
        looks[CLIP] = ClipEncoder(args.clip, device=device)
    if args.inception_classifier:
        looks[CLASSES] = ClassifierLook(args.inception_classifier, device=device)
    if (args.style_vgg is None) != (args.style_reference is None):
        raise InputError("The style loss needs both --style-vgg FILE and --style-reference FOLDER.")
    if args.style_vgg is not None:
        looks[STYLE] = StyleLook(args.style_vgg, args.style_reference, side, device=device)
    return looks


def beside(looks: Mapping[str, Look], prompts: Sequence[Prompt], frechet: Path | None, cache: Path) -> Beside:
    """The prompts and the reference images as CLIP sees them."""
    clip = looks.get(CLIP)
    if not isinstance(clip, ClipEncoder):
        return Beside()
    texts = clip.texts(list({prompt.index: prompt.text for prompt in prompts}.values()))
    return Beside(texts, None if frechet is None else look_at(frechet, clip, cache))
