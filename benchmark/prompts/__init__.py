"""Vocabularies of tags, prompts made of them, and the emphasis that prompts may have. Pure: no model is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmark.lazy import lazily

if TYPE_CHECKING:
    from benchmark.prompts.prompt_set import Prompt as Prompt
    from benchmark.prompts.prompt_set import derive_seed as derive_seed
    from benchmark.prompts.prompt_set import fingerprint as fingerprint
    from benchmark.prompts.prompt_set import make_prompts as make_prompts
    from benchmark.prompts.text import escaped as escaped
    from benchmark.prompts.text import parse_emphasis as parse_emphasis
    from benchmark.prompts.text import plain_text as plain_text
    from benchmark.prompts.vocabulary import Vocabulary as Vocabulary
    from benchmark.prompts.vocabulary import read_vocabulary as read_vocabulary
    from benchmark.prompts.vocabulary import shipped_vocabulary as shipped_vocabulary
    from benchmark.prompts.vocabulary import vocabulary_from_tags as vocabulary_from_tags

__getattr__, __dir__ = lazily(
    __name__,
    {
        "derive_seed": "benchmark.prompts.prompt_set",
        "escaped": "benchmark.prompts.text",
        "fingerprint": "benchmark.prompts.prompt_set",
        "make_prompts": "benchmark.prompts.prompt_set",
        "parse_emphasis": "benchmark.prompts.text",
        "plain_text": "benchmark.prompts.text",
        "Prompt": "benchmark.prompts.prompt_set",
        "read_vocabulary": "benchmark.prompts.vocabulary",
        "shipped_vocabulary": "benchmark.prompts.vocabulary",
        "Vocabulary": "benchmark.prompts.vocabulary",
        "vocabulary_from_tags": "benchmark.prompts.vocabulary",
    },
)
