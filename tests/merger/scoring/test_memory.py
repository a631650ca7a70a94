"""What a step of so many images takes, from what one image takes."""

from __future__ import annotations

from merger.scoring.gradients.memory import StepMemory, size

PARTS = {"text": 10, "steps": 70, "graphs": 5, "decoder": 90, "decoded_kept": 60, "tagger": 20}
MB = 1_000_000


def memory(**changes: int) -> StepMemory:
    parts = {name: count * MB for name, count in (PARTS | changes).items()}
    return StepMemory(held=2_000 * MB, gradients=500 * MB, images=8, decoded=4, **parts)


def test_the_larger_of_steps_and_decoder_counts_and_is_said() -> None:
    assert memory().needed(1) == (10 + 70 + 500) * MB
    assert memory(steps=10, decoder=900).needed(1) == (10 + 5 + 900) * MB
    assert memory(steps=10, decoder=100, tagger=1000).needed(1) == (10 + 5 + 60 + 1000) * MB
    # four of the eight are decoded at once, all eight are shown to the tagger
    assert memory(steps=1, decoder=900).needed(8) == (80 + 40 + 4 * 900) * MB
    assert memory(steps=1, tagger=900).needed(8) == (80 + 40 + 4 * 60 + 8 * 900) * MB
    assert memory().least == memory().needed(1)
    assert memory().total == (2000 + 80 + 560 + 500) * MB
    assert str(memory()) == (
        "memory of a step: 3.1 GB = blend, base and donors 2.0 GB + 1.1 GB for 8 images at once, "
        "gradients 500 MB of them"
    )
    assert size(12_345_678) == "12 MB"


def test_as_many_images_as_fit() -> None:
    assert memory().most_images(memory().needed(3), 8) == 3
    assert memory().most_images(memory().needed(3) - 1, 8) == 2
    assert memory().most_images(memory().needed(20), 8) == 8
    assert memory().most_images(memory().needed(1) - 1, 8) == 0
