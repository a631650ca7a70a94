"""How far a run of the benchmark is, on standard error, and the pictures it keeps."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmark.evaluate.runner import Batch
from benchmark.images import Images
from benchmark.writing import write_picture


class DrawingProgress:
    """A line on standard error: images done, images a second, time left.

    Keeps the first `keep` images (None: all, without loss).
    """

    def __init__(
        self, label: str, total: int, images: Path, keep: int | None, clock: Callable[[], float] = time.monotonic
    ):
        self._label, self._total, self._images, self._clock = label, total, images, clock
        self._keep, self._lossless = (total, True) if keep is None else (keep, False)
        self._first, self._started = 0, clock()

    def __call__(self, done: int, batch: Batch | None) -> None:
        """Print how far the model is, after a batch or (None) before the first."""
        if batch is None:
            self._first, self._started = done, self._clock()
        else:
            start = done - len(batch.images)
            save_images(self._images, start, batch.images[: max(0, self._keep - start)], lossless=self._lossless)
        line = f"{self._label}: {done}/{self._total} images"
        seconds = self._clock() - self._started
        if done > self._first and seconds > 0:
            rate = (done - self._first) / seconds
            line += f", {rate:.1f} images/s, {time_left((self._total - done) / rate)} left"
        if sys.stderr.isatty():
            print(f"\r{line:<70}", end="\n" if done == self._total else "", file=sys.stderr, flush=True)
        elif batch is None or done == self._total:
            print(line, file=sys.stderr, flush=True)


def save_images(folder: Path, start: int, images: Images, *, lossless: bool = False) -> None:
    """Write images [B, H, W, 3] as `000012.webp`, numbered by row. Lossless images can be measured again later."""
    from PIL import Image

    for number, pixels in enumerate(images, start=start):
        path = folder / f"{number:06}.webp"
        write_picture(path, Image.fromarray(pixels), quality=90, lossless=lossless, method=2)


def time_left(seconds: float) -> str:
    """`0:07`, `12:30`, `1:05:00`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
