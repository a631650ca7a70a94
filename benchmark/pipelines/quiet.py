"""diffusers and transformers without their progress bars and notices."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_diffusers() -> Iterator[None]:
    """Within it, diffusers and transformers show no progress bars, notices or deprecations; errors are still raised.

    transformers is silenced before diffusers is imported: without torchvision it then prints that it falls back to
    Pillow, which makes no difference here.
    """
    from transformers.utils import logging as transformers_logging

    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    from diffusers.utils import logging as diffusers_logging

    own_level, own_bars = diffusers_logging.get_verbosity(), diffusers_logging.is_progress_bar_enabled()
    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        diffusers_logging.set_verbosity(own_level)
        transformers_logging.set_verbosity(level)
        if own_bars:
            diffusers_logging.enable_progress_bar()
        if bars:
            transformers_logging.enable_progress_bar()
