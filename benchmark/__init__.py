"""Tag accuracy of any diffusers text-to-image model: how many of the tags asked for a tagger finds again.

Tag accuracy is the recall of the tags asked for: tags asked for and found / tags asked for.
`benchmark.evaluate.evaluate` scores one model, `python -m benchmark` compares several. The names below are imported
when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmark.lazy import lazily

if TYPE_CHECKING:
    from benchmark.errors import InputError as InputError
    from benchmark.evaluate.runner import Evaluation as Evaluation
    from benchmark.metrics.comparison import compare as compare
    from benchmark.pipelines.diffusers_generator import DiffusersGenerator as DiffusersGenerator
    from benchmark.pipelines.generation import GenerationSettings as GenerationSettings
    from benchmark.pipelines.loading import load_pipeline as load_pipeline
    from benchmark.prompts.prompt_set import Prompt as Prompt
    from benchmark.prompts.prompt_set import make_prompts as make_prompts
    from benchmark.prompts.vocabulary import Vocabulary as Vocabulary
    from benchmark.prompts.vocabulary import read_vocabulary as read_vocabulary
    from benchmark.prompts.vocabulary import shipped_vocabulary as shipped_vocabulary
    from benchmark.taggers.registry import TaggerFormat as TaggerFormat
    from benchmark.taggers.registry import open_tagger as open_tagger
    from benchmark.taggers.registry import register_tagger as register_tagger
    from benchmark.taggers.tagger import Tagger as Tagger

__getattr__, __dir__ = lazily(
    __name__,
    {
        "compare": "benchmark.metrics.comparison",
        "DiffusersGenerator": "benchmark.pipelines.diffusers_generator",
        "Evaluation": "benchmark.evaluate.runner",
        "GenerationSettings": "benchmark.pipelines.generation",
        "InputError": "benchmark.errors",
        "load_pipeline": "benchmark.pipelines.loading",
        "make_prompts": "benchmark.prompts.prompt_set",
        "open_tagger": "benchmark.taggers.registry",
        "Prompt": "benchmark.prompts.prompt_set",
        "read_vocabulary": "benchmark.prompts.vocabulary",
        "register_tagger": "benchmark.taggers.registry",
        "shipped_vocabulary": "benchmark.prompts.vocabulary",
        "Tagger": "benchmark.taggers.tagger",
        "TaggerFormat": "benchmark.taggers.registry",
        "Vocabulary": "benchmark.prompts.vocabulary",
    },
)
