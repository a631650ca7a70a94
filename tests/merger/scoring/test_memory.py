"""What a step of so many images takes, from what one image takes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmark.pipelines.lending import lent
from merger.scoring.gradients.followed import Followed
from merger.scoring.gradients.memory import StepMemory, image_memory, size
from merger.scoring.gradients.sampling import NETWORKS, Differentiation
from tests.merger.scoring.test_gradients import PROMPTS, World, unet32  # noqa: F401

PARTS = {"text": 10, "steps": 70, "graphs": 5, "decoder": 90, "decoded_kept": 60, "tagger": 20}
MB = 1_000_000


def memory(**changes: int) -> StepMemory:
    parts = {name: count * MB for name, count in (PARTS | changes).items()}
    return StepMemory(held=2_000 * MB, gradients=500 * MB, images=8, decoded=4, **parts)


def test_the_larger_of_steps_and_decoder_counts() -> None:
    assert memory().needed(1) == (10 + 70 + 500) * MB
    assert memory(steps=10, decoder=900).needed(1) == (10 + 5 + 900) * MB
    assert memory(steps=10, decoder=100, tagger=1000).needed(1) == (10 + 5 + 60 + 1000) * MB
    # four of the eight are decoded at once, all eight are shown to the tagger
    assert memory(steps=1, decoder=900).needed(8) == (80 + 40 + 4 * 900) * MB
    assert memory(steps=1, tagger=900).needed(8) == (80 + 40 + 4 * 60 + 8 * 900) * MB
    assert memory().least == memory().needed(1)
    assert memory(visiting=10_000).needed(8) == 10_000 * MB, "text encoders that come before an image is begun"
    assert size(12_345_678) == "12 MB"


def test_as_many_images_as_fit() -> None:
    assert memory().most_images(memory().needed(3), 8) == 3
    assert memory().most_images(memory().needed(3) - 1, 8) == 2
    assert memory().most_images(memory().needed(20), 8) == 8
    assert memory().most_images(memory().needed(1) - 1, 8) == 0


@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("checkpointed", [frozenset(), frozenset(NETWORKS)], ids=["all kept", "blocks"])
def test_every_way_of_a_step_follows_from_one_image(
    unet32: World,  # noqa: F811
    checkpointed: frozenset[str],
    halves: bool,
) -> None:
    """Against the peak of real steps of one and of three images, with a sampling step more than was measured."""
    how = Differentiation(1.0, streamed=True, checkpointed=checkpointed, halves=halves)
    measured = image_memory(unet32.gradients(how), PROMPTS[0])
    assert measured.calls == unet32.generator.settings.steps == 3
    for changes in ({}, {"streamed": False}, {"streamed": False, "recompute": False}):
        way = replace(how, **changes)  # type: ignore[arg-type]
        predicted = measured.of_step(way, 0, 3)
        for images in (1, 3):
            gradients, checksum = unet32.gradients(way, micro_batch=images), unet32.live.apply(unet32.weights)
            # Blending is over before an image is begun.
            with lent(unet32.live, "apply", lambda _: checksum), Followed(torch.device("cpu")) as followed:  # noqa: B023
                gradients.measure(unet32.weights, PROMPTS[:images])
            real = max(followed.peaks.values())
            # Kept graphs are freed one by one while gradients gather, which is counted as if all were there at once.
            most = 1.1 if way.recompute else 1.25
            assert 0.97 * real <= predicted.needed(images) <= most * real, (way, images)
