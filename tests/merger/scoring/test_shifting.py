"""Images moved by a few pixels before the tagger reads them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmark.prompts.prompt_set import Prompt
from merger.scoring.gradients.shifting import shifted

IMAGES = torch.rand(6, 3, 16, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
PROMPTS = [Prompt(index, "a bow", ("bow",), seed=1000 + index) for index in range(6)]


def padded(image: torch.Tensor, down: int, right: int) -> np.ndarray:
    """An image moved by NumPy's own edge padding."""
    rows = np.clip(np.arange(image.shape[1]) - down, 0, image.shape[1] - 1)
    columns = np.clip(np.arange(image.shape[2]) - right, 0, image.shape[2] - 1)
    return np.asarray(image.numpy()[:, rows][:, :, columns])


def moves(share: float) -> list[tuple[int, int]]:
    """By how many pixels each image is moved, found by trying all."""
    found = []
    for image, moved in zip(IMAGES, shifted(IMAGES, PROMPTS, share), strict=True):
        fits = [
            (down, right)
            for down in range(-8, 9)
            for right in range(-8, 9)
            if np.array_equal(padded(image, down, right), moved.numpy())
        ]
        assert len(fits) == 1
        found += fits
    return found


def test_images_are_moved_by_whole_pixels_within_their_reach() -> None:
    found = moves(0.125)
    assert all(abs(down) <= 2 and abs(right) <= 3 for down, right in found)
    assert len(set(found)) > 3, "each image by its own amount"


def test_every_move_is_as_likely() -> None:
    prompts = [Prompt(0, "a bow", ("bow",), seed=seed) for seed in range(3000)]
    ramp = torch.arange(11.0).expand(3000, 1, 11, 11)
    centres = shifted(ramp, prompts, 0.1)[:, 0, 5, 5]
    counts = torch.bincount((5 - centres).long() + 1, minlength=3)
    assert counts.sum() == 3000 and (counts - 1000).abs().max() < 120


def test_a_move_depends_on_the_prompts_seed_alone() -> None:
    together = shifted(IMAGES, PROMPTS, 0.2)
    alone = [shifted(IMAGES[place : place + 1], PROMPTS[place : place + 1], 0.2)[0] for place in range(6)]
    assert torch.equal(together, torch.stack(alone))


def test_no_share_and_less_than_a_pixel_move_nothing() -> None:
    assert shifted(IMAGES, PROMPTS, 0.0) is IMAGES
    assert shifted(IMAGES, PROMPTS, 0.01) is IMAGES


def test_the_gradient_is_that_of_the_pixels_read() -> None:
    images = IMAGES[:2, :, :6, :6].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda each: shifted(each, PROMPTS[:2], 0.3).square(), (images,))


def test_images_and_prompts_are_pairs() -> None:
    with pytest.raises(ValueError):
        shifted(IMAGES, PROMPTS[:5], 0.2)
