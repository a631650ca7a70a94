"""Names of what can be blended: in a configuration and a recipe, and of a pipeline's text encoders."""

from __future__ import annotations

from collections.abc import Sequence

from merger.errors import did_you_mean

DENOISER, TEXT = "denoiser", "text_encoder"
COMPONENTS = (DENOISER, TEXT)
"""What a configuration or a recipe may blend: always the denoiser; `text_encoder` is all text encoders of the base."""

TEXT_ENCODERS = {"text_encoder": "TE", "text_encoder_2": "TE2", "text_encoder_3": "TE3"}
"""A pipeline's text encoders -> the layer that each is at granularity `block`."""


def components_problem(components: Sequence[object]) -> str:
    """What is wrong with a list of components, in words; empty if it is right."""
    for component in components:
        if component not in COMPONENTS:
            return f"there is no '{component}'.{did_you_mean(str(component), COMPONENTS)}"
    if DENOISER not in components or len(set(components)) != len(components):
        return f"give [{DENOISER}] or [{', '.join(COMPONENTS)}]; the denoiser is always blended"
    return ""
