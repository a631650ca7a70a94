"""Rows on disk: an interrupted run ends as an uninterrupted one, nothing is drawn twice, nothing is mixed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmark.errors import InputError
from benchmark.evaluate.completing import complete_rows
from benchmark.evaluate.results import Rows, RowSpec
from benchmark.evaluate.runner import Evaluation, evaluate
from benchmark.hashing import model_fingerprint
from benchmark.images import Images
from benchmark.pipelines.generation import FakeGenerator, GenerationSettings, ImageGenerator
from benchmark.prompts.prompt_set import Prompt, make_prompts
from benchmark.prompts.vocabulary import vocabulary_from_tags
from benchmark.report.progress import DrawingProgress
from benchmark.taggers.tagger import FakeTagger

TAGS = tuple("abcdefgh")
PROMPTS = make_prompts(vocabulary_from_tags(TAGS, 8), 11, tags_per_prompt=3, seed=1, images=2)
TAGGERS = {"tagger": FakeTagger(TAGS), "judge": FakeTagger(TAGS[::-1], "judge", noise=0.3)}
SPEC = RowSpec(
    "a model/v1",
    "0" * 64,
    GenerationSettings(width=64, height=64),
    PROMPTS,
    TAGS,
    {role: tagger.fingerprint for role, tagger in TAGGERS.items()},
)


class Stops(FakeGenerator):
    """Draws some images, then the power goes."""

    def __init__(self, batches: int, batch_size: int):
        super().__init__(TAGS, 0.6, batch_size=batch_size)
        self._batches = batches

    def generate(self, prompts: tuple[Prompt, ...]) -> Iterator[Images]:
        for number, images in enumerate(super().generate(prompts)):
            if number == self._batches:
                raise KeyboardInterrupt
            yield images


def draws(batch_size: int = 4) -> Callable[[int | None], ImageGenerator]:
    return lambda found: FakeGenerator(TAGS, 0.6, batch_size=found or batch_size)


def never(_: int | None) -> ImageGenerator:
    raise AssertionError("a complete model was opened")


def same(a: Evaluation, b: Evaluation) -> bool:
    return (
        a.prompts == b.prompts
        and a.tags == b.tags
        and np.array_equal(a.broken_images, b.broken_images)
        and np.array_equal(a.digests, b.digests)
        and all(np.array_equal(a.probabilities[role], b.probabilities[role]) for role in TAGGERS)
    )


@pytest.mark.parametrize("batches", range(6))
def test_interrupted_after_any_batch_and_run_again_is_the_uninterrupted_run(tmp_path: Path, batches: int) -> None:
    whole = evaluate(FakeGenerator(TAGS, 0.6), TAGGERS, PROMPTS, tags=TAGS)
    with pytest.raises(KeyboardInterrupt):
        complete_rows(Rows(tmp_path, SPEC), lambda _: Stops(batches, 4), TAGGERS)
    rows = Rows(tmp_path, SPEC)
    assert rows.done == 4 * batches
    assert rows.batch_size == (4 if batches else None)  # the next run has batches of the same size
    heard: list[int] = []
    done = complete_rows(rows, draws(), TAGGERS, lambda count, _: heard.append(count))
    assert same(done, whole)
    assert heard[0] == 4 * batches
    assert heard[-1] == len(PROMPTS)
    assert same(complete_rows(Rows(tmp_path, SPEC), never, TAGGERS), whole)
    assert not list(tmp_path.rglob("part-*")) + list(tmp_path.rglob("*.partial"))


def test_interrupted_between_the_last_row_and_the_joining(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Rows, "finish", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        complete_rows(Rows(tmp_path, SPEC), draws(), TAGGERS)
    monkeypatch.undo()
    assert complete_rows(Rows(tmp_path, SPEC), never, TAGGERS).broken == 0


def test_a_part_cut_short_is_drawn_again(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        complete_rows(Rows(tmp_path, SPEC), lambda _: Stops(3, 4), TAGGERS)
    (second,) = tmp_path.rglob("part-000004.npz")
    second.write_bytes(second.read_bytes()[:100])
    rows = Rows(tmp_path, SPEC)
    assert rows.done == 4
    assert same(complete_rows(rows, draws(), TAGGERS), evaluate(FakeGenerator(TAGS, 0.6), TAGGERS, PROMPTS, tags=TAGS))


def test_rows_are_read_back_without_prompts_being_lost(tmp_path: Path) -> None:
    complete_rows(Rows(tmp_path, SPEC), draws(), TAGGERS)
    (file,) = tmp_path.rglob("rows.npz")
    with np.load(file) as columns:
        assert columns["prompt"].tolist() == [p.index for p in PROMPTS]
        assert columns["seed"].tolist() == [p.seed for p in PROMPTS]
        assert columns["probabilities/judge"].dtype == np.float32
    assert file.parent.name == f"a-model-v1-{SPEC.fingerprint[:12]}"
    assert PROMPTS[0].text in (file.parent / "about.json").read_text()


@pytest.mark.parametrize(
    "changed",
    [
        replace(SPEC, model="1" * 64),
        replace(SPEC, settings=replace(SPEC.settings, steps=21)),
        replace(SPEC, settings=replace(SPEC.settings, negative_prompt="hat")),
        replace(SPEC, prompts=(replace(PROMPTS[0], seed=1), *PROMPTS[1:])),
        replace(SPEC, tags=TAGS[::-1]),
        replace(SPEC, taggers={**SPEC.taggers, "judge": "2" * 64}),
        replace(SPEC, taggers={"tagger": SPEC.taggers["tagger"]}),
    ],
)
def test_rows_of_another_spec_have_another_folder(tmp_path: Path, changed: RowSpec) -> None:
    assert changed.folder(tmp_path) != SPEC.folder(tmp_path)


def test_the_name_and_the_batch_size_decide_nothing() -> None:
    assert replace(SPEC, name="b", settings=replace(SPEC.settings, batch_size=3)).fingerprint == SPEC.fingerprint


def test_damaged_rows_are_one_line(tmp_path: Path) -> None:
    complete_rows(Rows(tmp_path, SPEC), draws(), TAGGERS)
    (file,) = tmp_path.rglob("rows.npz")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"rows\.npz: is damaged"):
        Rows(tmp_path, SPEC).evaluation()


def test_a_model_is_told_by_its_content(
    tiny_family: dict[str, Path], tiny_diffusers_folder: Path, tmp_path: Path
) -> None:
    import shutil

    assert len({model_fingerprint(path) for path in tiny_family.values()}) == 3
    copy = shutil.copytree(tiny_diffusers_folder, tmp_path / "copy")
    assert model_fingerprint(copy) == model_fingerprint(tiny_diffusers_folder)
    config = copy / "unet" / "config.json"
    config.write_text(config.read_text() + " ")
    assert model_fingerprint(copy) != model_fingerprint(tiny_diffusers_folder)


class Mean:
    """A feature extractor: the mean of each channel. Counts what it is shown."""

    name, fingerprint = "mean", "3" * 64

    def __init__(self) -> None:
        self.shown = 0

    def images(self, images: Images) -> np.ndarray:
        self.shown += len(images)
        return images.mean(axis=(1, 2), dtype=np.float32)


EXTRACTED = replace(SPEC, extractors={"mean": Mean.fingerprint})


def test_a_look_added_later_is_given_the_kept_images(tmp_path: Path) -> None:
    together = complete_rows(Rows(tmp_path / "a", EXTRACTED), draws(), TAGGERS, extractors={"mean": Mean()})
    rows = Rows(tmp_path / "b", EXTRACTED)
    keep = DrawingProgress("m", len(PROMPTS), rows.folder / "images", keep=None)
    complete_rows(Rows(tmp_path / "b", SPEC), draws(), TAGGERS, keep)
    assert rows.missing_features == ["mean"]
    later = complete_rows(rows, never, TAGGERS, extractors={"mean": Mean()})
    assert np.array_equal(later.features["mean"], together.features["mean"])
    assert same(later, together)
    assert complete_rows(Rows(tmp_path / "b", EXTRACTED), never, TAGGERS, extractors={}).features["mean"].shape == (
        22,
        3,
    )
    assert complete_rows(Rows(tmp_path / "b", SPEC), never, TAGGERS).features == {}
    other = replace(SPEC, extractors={"mean": "4" * 64})
    assert Rows(tmp_path / "b", other).missing_features == ["mean"]  # another model version in the same role


def test_where_no_images_were_kept_they_are_drawn_again_and_an_interruption_loses_nothing(tmp_path: Path) -> None:
    whole = complete_rows(Rows(tmp_path / "a", EXTRACTED), draws(), TAGGERS, extractors={"mean": Mean()})
    rows = Rows(tmp_path / "b", EXTRACTED)
    keep = DrawingProgress("m", len(PROMPTS), rows.folder / "images", keep=8)  # with loss, for the page
    complete_rows(Rows(tmp_path / "b", SPEC), draws(), TAGGERS, keep)
    first, second = Mean(), Mean()
    with pytest.raises(KeyboardInterrupt):
        complete_rows(rows, lambda _: Stops(3, 4), TAGGERS, extractors={"mean": first})
    done = complete_rows(rows, draws(), TAGGERS, extractors={"mean": second})
    assert (first.shown, second.shown) == (12, 10)
    assert np.array_equal(done.features["mean"], whole.features["mean"])
    assert not list(tmp_path.rglob("look-*"))


def test_rows_begun_without_a_look_are_begun_again_with_it(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        complete_rows(Rows(tmp_path, SPEC), lambda _: Stops(3, 4), TAGGERS)
    assert Rows(tmp_path, SPEC).done == 12
    assert Rows(tmp_path, EXTRACTED).done == 0
    done = complete_rows(Rows(tmp_path, EXTRACTED), draws(), TAGGERS, extractors={"mean": Mean()})
    assert done.features["mean"].shape == (22, 3)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("seed", lambda values: values[0]),
        ("seed", lambda values: values + 1),
        ("broken", lambda values: values[:-1]),
        ("digest", lambda values: values.astype(np.float32)),
        ("probabilities/judge", lambda values: values[:, :-1]),
        ("probabilities/judge", lambda values: values.astype(str)),
    ],
)
def test_a_part_that_holds_something_else_is_drawn_again(tmp_path: Path, name: str, change: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        complete_rows(Rows(tmp_path, SPEC), lambda _: Stops(3, 4), TAGGERS)
    (second,) = tmp_path.rglob("part-000004.npz")
    with np.load(second) as archive:
        columns = dict(archive)
    np.savez(second, **{**columns, name: change(columns[name])})
    rows = Rows(tmp_path, SPEC)
    assert rows.done == 4
    assert same(complete_rows(rows, draws(), TAGGERS), evaluate(FakeGenerator(TAGS, 0.6), TAGGERS, PROMPTS, tags=TAGS))
    (whole,) = tmp_path.rglob("rows.npz")
    with np.load(whole) as archive:
        columns = dict(archive)
    np.savez(whole, **{**columns, name: change(columns[name])})
    with pytest.raises(InputError, match=r"rows\.npz: is damaged"):
        Rows(tmp_path, SPEC).evaluation()
