"""The feature extractors that a command line names, opened, and what their features are compared with."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmark.errors import InputError
from benchmark.features.classifier import ClassifierFeatures
from benchmark.features.encoders import ClipEncoder, open_encoder
from benchmark.features.extractor import FeatureExtractor
from benchmark.features.references import picture_files, reference_features
from benchmark.features.style import StyleFeatures
from benchmark.metrics.secondary import CLASSES, CLIP, ENCODER, STYLE, References
from benchmark.prompts.prompt_set import Prompt


def open_extractors(args: argparse.Namespace, device: str, side: int) -> dict[str, FeatureExtractor]:
    """role -> extractor, for the arguments of `cli.add_arguments`; `side`: the shorter side of the images, in pixels.

    Raises InputError, also for reference images.
    """
    extractors: dict[str, FeatureExtractor] = {}
    if args.frechet is not None:
        if not (args.clip or args.encoder):
            raise InputError("--frechet compares what an image encoder sees. Name one with --encoder or --clip.")
        if len(picture_files(args.frechet)) < 2:
            raise InputError(
                f"{args.frechet}: holds one image; a Fréchet distance needs two or more, better thousands."
            )
    if args.clip:
        extractors[CLIP] = ClipEncoder(args.clip, device=device)
    if args.encoder:
        encoder = open_encoder(args.encoder, device=device)
        extractors[CLIP if isinstance(encoder, ClipEncoder) and not args.clip else ENCODER] = encoder
    if args.inception_classifier:
        extractors[CLASSES] = ClassifierFeatures(args.inception_classifier, device=device)
    if (args.style_vgg is None) != (args.style_reference is None):
        raise InputError("The style loss needs both --style-vgg FILE and --style-reference FOLDER.")
    if args.style_vgg is not None:
        extractors[STYLE] = StyleFeatures(args.style_vgg, args.style_reference, side, device=device)
    return extractors


def unavailable_metrics(extractors: Mapping[str, FeatureExtractor], images: int) -> list[str]:
    """A line for each metric that these extractors suggest but, with `images` images of a prompt, do not give."""
    lines = []
    if ENCODER in extractors and CLIP not in extractors:
        name = extractors[ENCODER].name
        lines.append(
            f"encoder {name}: reads no prompts, so there is no CLIP score and no R-precision (--clip gives them)"
        )
    if images < 2 and {CLIP, ENCODER} & extractors.keys():
        lines.append("diversity: cannot be told from one image of each prompt (--images 2 gives it)")
    return lines


def references_of(
    extractors: Mapping[str, FeatureExtractor], prompts: Sequence[Prompt], frechet: Path | None, cache: Path
) -> References:
    """CLIP's embeddings of the prompts, and every encoder's of the reference images in the folder `frechet`."""
    encoders = {role: extractors[role] for role in (CLIP, ENCODER) if role in extractors}
    names = {role: encoder.name for role, encoder in encoders.items()}
    if len(set(names.values())) < len(names):
        names = {role: f"{name} ({role})" for role, name in names.items()}
    clip, texts = extractors.get(CLIP), None
    if isinstance(clip, ClipEncoder):
        texts = clip.texts(list({prompt.index: prompt.text for prompt in prompts}.values()))
    if frechet is None:
        return References(texts, names)
    images = {role: reference_features(frechet, encoder, cache) for role, encoder in encoders.items()}
    return References(texts, names, images)
