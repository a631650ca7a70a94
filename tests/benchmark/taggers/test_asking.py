"""Taggers that fail: one line that names the tagger and the reason, whatever they raise or answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmark.errors import InputError, memory_said, out_of_memory
from benchmark.evaluate.runner import evaluate
from benchmark.pipelines.generation import FakeGenerator
from benchmark.prompts.prompt_set import make_prompts
from benchmark.prompts.vocabulary import vocabulary_from_tags
from benchmark.taggers import registry
from benchmark.taggers.asking import TaggerError, logits_of, probabilities_of
from benchmark.taggers.tagger import FakeTagger

TAGS = tuple("abcdef")
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)


class Answers(FakeTagger):
    """A tagger with an answer from outside."""

    def __init__(self, answer: Callable[[Any], Any]) -> None:
        super().__init__(TAGS, "odd")
        self.answer = answer

    def probabilities(self, images: Any) -> Any:
        return self.answer(images)

    def logits(self, images: torch.Tensor) -> Any:
        return self.answer(images)


class Own(Exception):
    """An error of a plug-in's own."""


def raising(error: BaseException) -> Callable[[Any], Any]:
    def answer(images: Any) -> Any:
        raise error

    return answer


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("size mismatch\n  at line 3"),
        ValueError("no such size"),
        OSError(5, "Input/output error"),
        KeyError("pixel_values"),
        IndexError(),
        Own("its own"),
        StopIteration(),
    ],
)
@pytest.mark.parametrize("asked", [probabilities_of, lambda tagger, images: logits_of(tagger, torch.zeros(3, 3, 8, 8))])
def test_what_a_tagger_raises_is_one_line_with_its_name_and_the_reason(asked: Any, error: Exception) -> None:
    with pytest.raises(TaggerError) as caught:
        asked(Answers(raising(error)), IMAGES)
    (line,) = caught.value.lines
    assert line.startswith(f"the tagger odd fails on 3 images ({type(error).__name__}: ")
    assert str(error).split("\n")[0] in line
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("could not create a primitive"),
        OSError(12, "Cannot allocate memory"),
        InputError("odd: does not take images of 8 x 8."),
        KeyboardInterrupt(),
    ],
)
def test_a_lack_of_memory_and_what_is_said_already_pass_unchanged(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught:
        probabilities_of(Answers(raising(error)), IMAGES)
    assert caught.value is error


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (np.zeros((3, 5), np.float32), r"answers \[3, 5\] for 3 images and 6 tags"),
        (np.zeros((2, 6), np.float32), r"answers \[2, 6\] for 3 images"),
        (np.zeros(6, np.float32), r"answers \[6\] for 3 images"),
        (None, r"answers \[\] for 3 images"),
        (np.zeros((3, 6), np.int64), "of type int64, not float32"),
        (np.zeros((3, 6), np.complex64), "of type complex64"),
        (np.full((3, 6), "a"), "of type <U1"),
        (np.full((3, 6), np.nan, np.float32), "answers nan to nan, which are no probabilities"),
        (np.full((3, 6), 7, np.float32), "answers 7 to 7, which are no probabilities"),
        (np.full((3, 6), -1, np.float32), "which are no probabilities"),
    ],
)
def test_an_answer_that_is_none_is_named(answer: Any, reason: str) -> None:
    with pytest.raises(TaggerError, match=f"the tagger odd .*{reason}"):
        probabilities_of(Answers(lambda images: answer), IMAGES)


def test_a_sound_answer_passes_and_what_is_said_of_a_broken_image_counts_as_0() -> None:
    answer = np.random.default_rng(0).random((3, 6))
    kept = answer.copy()
    answer[1] = np.nan
    said = probabilities_of(Answers(lambda images: answer), IMAGES, np.array([False, True, False]))
    assert said.dtype == np.float32
    np.testing.assert_array_equal(said, kept.astype(np.float32) * [[1], [0], [1]])


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda images: images.mean((2, 3)), r"answers \[2, 3\] for 2 images and 6 tags"),
        (lambda images: images.mean((2, 3)).repeat(1, 2).detach(), "cannot be differentiated"),
        (lambda images: images.mean((2, 3)).repeat(1, 2) * 0 / 0, "answers NaN for an image that is finite"),
        (lambda images: torch.zeros(2, 6, dtype=torch.int64), "of type torch.int64"),
        (lambda images: np.zeros((2, 6)), "with a ndarray, not a tensor"),
        (lambda images: torch.zeros(2, 6, device="meta"), "answers on meta, and the images are on cpu"),
    ],
)
def test_logits_that_are_none_are_named(answer: Callable[[Any], Any], reason: str) -> None:
    images = torch.rand(2, 3, 8, 8, requires_grad=True)
    with pytest.raises(TaggerError, match=f"the tagger odd .*{reason}"):
        logits_of(Answers(answer), images)


def test_logits_of_an_image_that_is_not_finite_may_be_nan() -> None:
    images = torch.rand(2, 3, 8, 8)
    images[0, 0, 0, 0] = torch.nan
    said = logits_of(Answers(lambda images: images.mean((2, 3)).repeat(1, 2)), images)
    assert said[0].isnan().any()
    assert said[1].isfinite().all()


def test_a_pass_names_the_judge_that_fails() -> None:
    prompts = make_prompts(vocabulary_from_tags(TAGS, 6), 4, tags_per_prompt=(1, 2), seed=0)
    taggers = {"tagger": FakeTagger(TAGS), "judge": Answers(raising(LookupError("lost")))}
    with pytest.raises(TaggerError, match=r"the tagger odd fails on 4 images \(LookupError: lost\)"):
        evaluate(FakeGenerator(TAGS), taggers, prompts)


class CannotOpen(FakeTagger):
    """A plug-in that fails while it is opened."""

    def __init__(self, folder: Path, *, device: str, threads: int | None) -> None:
        raise Own("no licence")


def test_a_plug_in_that_cannot_be_opened_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_FORMATS", {})
    registry.register_tagger(registry.TaggerFormat("odd", ("odd.txt",), f"{CannotOpen.__module__}:CannotOpen"))
    (tmp_path / "odd.txt").write_text("")
    with pytest.raises(TaggerError, match=r"the tagger cannot be opened \(Own: no licence\)"):
        registry.open_tagger(tmp_path)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryError("Unable to allocate 8.00 GiB for an array"),
        RuntimeError("could not create a primitive"),
        RuntimeError("std::bad_alloc"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        OSError(12, "Cannot allocate memory"),
        RuntimeError("can't start new thread"),
    ],
)
def test_a_lack_of_memory_is_known_by_type_or_text(error: Exception) -> None:
    with pytest.raises(InputError, match=r"^out of memory"), memory_said():
        raise error


@pytest.mark.parametrize(
    "error", [RuntimeError("could not create a primitive descriptor for the matmul"), OSError(28, "No space left")]
)
def test_what_is_no_lack_of_memory_passes(error: Exception) -> None:
    assert not out_of_memory(error)
    with pytest.raises(type(error)), memory_said():
        raise error
