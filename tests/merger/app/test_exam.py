"""The three prompt sets of a search, and the steps of a gradient search: no text is in two of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmark.prompts.prompt_set import fingerprint
from merger.app.exam import Exam, open_exam
from merger.app.previous_version import translated_config
from merger.config.config import Config

DEMO = Path(__file__).parents[3] / "demo"


def exam(folder: Path, tagger: Path, vocabulary: str, **changes: object) -> Exam:
    words = folder / "words.csv"
    words.write_text(vocabulary)
    settings = {"base": str(folder / "base.safetensors"), "donors": [str(folder / "donor.safetensors")]}
    settings |= {"tagger": str(tagger), "vocabulary": str(words), "prompts": 6, "validation_prompts": 8}
    return open_exam(Config.model_validate({**settings, "test_prompts": 10, **changes}), "cpu")


def test_the_sets_and_the_steps_share_no_text(tmp_path: Path, tiny_tagger_folder: Path) -> None:
    tags = "tag\nblonde_hair\nblue_hair\nsmile\nhat\n"
    made = exam(tmp_path, tiny_tagger_folder, tags, tags_per_prompt=(2, 3))
    assert not made.remarks()
    texts = {which: {prompt.text for prompt in prompts} for which, prompts in made.prompts.items()}
    assert not texts["search"] & texts["validation"]
    assert not texts["test"] & (texts["search"] | texts["validation"])
    several = exam(tmp_path, tiny_tagger_folder, tags, tags_per_prompt=(2, 4), prompts=20)
    texts = {which: {prompt.text for prompt in prompts} for which, prompts in several.prompts.items()}
    for place in range(10):
        step = {prompt.text for prompt in several.step_prompts(place)}
        assert not step & (texts["validation"] | texts["test"])


def test_a_vocabulary_that_cannot_is_said_aloud(tmp_path: Path, tiny_tagger_folder: Path) -> None:
    made = exam(tmp_path, tiny_tagger_folder, "tag\nsmile\nhat\n", tags_per_prompt=1)
    assert made.remarks() == [
        f"{count} of {count} {which} prompts repeat the text of {before} prompts, with other noise: give a larger "
        "vocabulary, more tags per prompt or fewer prompts"
        for count, which, before in ((8, "validation", "search"), (10, "test", "search or validation"))
    ]


def test_runs_of_the_previous_version_keep_their_prompts() -> None:
    assert translated_config({"seed": 1})["distinct_prompts"] is False
    assert translated_config({"seed": 1, "distinct_prompts": True})["distinct_prompts"] is True


@pytest.mark.parametrize("distinct", [True, False])
def test_the_demos_prompts_are_what_they_always_were(distinct: bool) -> None:
    from merger.config.loading import load_config

    made = open_exam(load_config(DEMO / "search.yaml", [f"distinct_prompts={str(distinct).lower()}"]), "cpu")
    assert {which: fingerprint(prompts)[:16] for which, prompts in made.prompts.items()} == {
        "search": "f886083a9b1716b0",
        "validation": "b65fc3fa9aad73c0",
        "test": "eb19732f95def355",
    }
    assert fingerprint(made.step_prompts(3))[:16] == "c1cc10301426f644"
