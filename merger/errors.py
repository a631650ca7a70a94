"""What can go wrong, as types. Every message is one line that says what is wrong, where, and how to fix it."""

from __future__ import annotations

from collections.abc import Sequence

from benchmark.errors import InputError, WriteError, did_you_mean

__all__ = [
    "BlendNotApplied",
    "CheckpointError",
    "ConfigError",
    "ConfigProblems",
    "InputError",
    "NoDenoiser",
    "NoRoom",
    "RecipeError",
    "Stopped",
    "StudyError",
    "WriteError",
    "did_you_mean",
]


class CheckpointError(InputError):
    """A checkpoint file that is missing, damaged, of another format, or that does not fit the others."""


class NoDenoiser(CheckpointError):
    """A sound file of weights without a denoiser. kind, words: as `merger.checkpoints.kinds.kind_of` says them."""

    def __init__(self, message: str, kind: str, words: str) -> None:
        super().__init__(message)
        self.kind, self.words = kind, words


class ConfigError(InputError):
    """A configuration value that is unknown, of the wrong type, or out of range."""


class ConfigProblems(ConfigError):
    """Several configuration values that are wrong. Each has a line of its own."""

    def __init__(self, lines: Sequence[str]) -> None:
        self._lines = tuple(" ".join(line.split()) for line in lines)
        super().__init__("\n".join(self._lines))

    @property
    def lines(self) -> tuple[str, ...]:
        """What to print: a line for each problem."""
        return self._lines


class NoRoom(ConfigError):
    """What was asked for takes more memory than there is."""


class RecipeError(InputError):
    """A recipe that cannot be read, or whose sources cannot be found or have changed."""


class StudyError(InputError):
    """A study that is missing, or that was begun with other sources, prompts or settings."""


class BlendNotApplied(RuntimeError):
    """The live denoiser does not hold the blend that was asked for: a fault of ours or of the program around us."""


class Stopped(Exception):
    """A signal (Ctrl-C, SIGTERM, SIGHUP) ended the search, and everything finished is kept.

    Its text says how to continue. status: the exit status, 128 and the signal's number.
    """

    def __init__(self, message: str, status: int = 130) -> None:
        super().__init__(message)
        self.status = status
