"""What runs a search: the live denoiser, the pipeline that generates images with it, and what scores them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch

from benchmark.evaluate.runner import Evaluation
from benchmark.pipelines.clip_text import knows_clip
from benchmark.pipelines.diffusers_generator import DiffusersGenerator
from benchmark.pipelines.generation import GenerationSettings, ImageGenerator
from benchmark.pipelines.loading import denoiser_of, dtypes, load_pipeline
from merger.app.exam import Exam
from merger.app.session import Session
from merger.blend.live import LiveDenoiser
from merger.blend.sources import Hold
from merger.checkpoints.checkpoint import Checkpoint
from merger.checkpoints.components import use_text_encoders, use_vae
from merger.checkpoints.text_encoders import components_of
from merger.config.config import Config
from merger.errors import CheckpointError, ConfigError
from merger.scoring.gradients.gradients import BlendGradients, DifferentiableTagger
from merger.scoring.gradients.sampling import DifferentiableGenerator, Differentiation
from merger.scoring.gradients.steps import FreshSteps
from merger.scoring.objective import TAGGER, BlendObjective, evaluate_blend
from merger.scoring.pruning import pruned
from merger.search.trials import PrunedObjective


@dataclass(frozen=True)
class Runtime:
    """The live denoiser, what generates images with it, and the exam that they are for."""

    live: LiveDenoiser
    generator: DiffusersGenerator
    exam: Exam

    @property
    def objective(self) -> BlendObjective:
        """A blend's score on the search prompts."""
        exam = self.exam
        scored = (self.live, self.generator, exam.taggers[TAGGER], exam.prompts["search"], exam.metric)
        floors = exam.floors
        if floors is None:
            return BlendObjective(*scored)
        return BlendObjective(*scored, lambda evaluation: floors.broken(evaluation, self._base, TAGGER))

    @cached_property
    def _base(self) -> Evaluation:
        """The base's evaluation on the search prompts, which floors are measured from."""
        exam = self.exam
        return evaluate_blend(self.live, self.generator, {TAGGER: exam.taggers[TAGGER]}, exam.prompts["search"], {})

    @property
    def pruned_objective(self) -> PrunedObjective:
        """The same, but trials that are clearly worse than the best are ended early."""
        return pruned(self.objective)

    def gradient_steps(
        self,
        layers: Sequence[str],
        how: Differentiation,
        *,
        widths: Mapping[str, int] | None = None,
        micro_batch: int | None = None,
    ) -> FreshSteps:
        """Score and gradient of a blend on the prompts of its step.

        layers: those whose weights are searched. widths, micro_batch: as `BlendGradients` wants them. The runtime must
        have been loaded with `gradients`.
        """
        generator = cast(DifferentiableGenerator, self.generator)
        tagger = cast(DifferentiableTagger, self.exam.taggers[TAGGER])
        # The log probability has a gradient everywhere. A probability near 0 or 1 has almost none, and an accuracy none
        # at all.
        metric = replace(self.exam.metric, kind="log_probability")
        return FreshSteps(
            BlendGradients(
                self.live,
                generator,
                tagger,
                metric,
                how,
                micro_batch=micro_batch,
                layers=layers,
                widths=widths,
                floors=self.exam.floors,
            ),
            self.exam.step_prompts,
        )


def load_runtime(session: Session, *, gradients: bool, hold: Hold | None = None) -> Runtime:
    """Loads the base's pipeline and makes its denoiser live.

    gradients: whether images must be differentiable. hold: as `LiveDenoiser` wants it. Raises `InputError` in one line.
    """
    config, base = session.config, session.sources.base
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    pipeline = _load_pipeline(config, base.path, session.device)
    encoders = text_encoders_of(pipeline, components_of(base.text), base)
    live = LiveDenoiser(
        denoiser_of(pipeline), base, session.sources.donors, session.sources.layers, encoders, hold=hold
    )
    if live.remark:
        print(live.remark, file=sys.stderr)
    kind = DifferentiableGenerator if gradients else DiffusersGenerator
    # If no text encoder is blended, every text is encoded only once.
    state = (lambda: live.text_checksum) if encoders else None
    return Runtime(live, kind(pipeline, generation_settings(config), state), session.exam)


def load_file(session: Session, file: Path) -> ImageGenerator:
    """A generator with another checkpoint file as it lies on disk, under the session's settings."""
    pipeline = _load_pipeline(session.config, file, session.device)
    return DiffusersGenerator(pipeline, generation_settings(session.config))


def text_encoders_of(pipeline: Any, components: Sequence[str], base: Checkpoint) -> dict[str, torch.nn.Module]:
    """{component: module} of a pipeline's text encoders that are blended.

    Raises CheckpointError for one that the pipeline lacks, and ConfigError if some text encoder is not CLIP's: such
    pipelines encode text themselves, and the embeddings kept from them would not follow the blend.
    """
    if components and not knows_clip(pipeline):
        raise ConfigError(
            f"components: a search blends text encoders only if all are CLIP's (SD 1, SD 2, SDXL), and {base.name} has "
            "others: leave out 'text_encoder'"
        )
    found = {name: getattr(pipeline, name, None) for name in components}
    for name, module in found.items():
        if module is None:
            raise CheckpointError(f"{base.path}: holds a {name}, which its {type(pipeline).__name__} does not use.")
    return {name: module for name, module in found.items() if module is not None}


def generation_settings(config: Config) -> GenerationSettings:
    """How images are generated, as the benchmark wants it."""
    width, height = config.size
    return GenerationSettings(
        steps=config.steps,
        sampler=config.sampler,
        guidance=config.guidance,
        width=width,
        height=height,
        negative_prompt=config.negative_prompt,
        batch_size=config.batch_size,
        clip_skip=config.clip_skip - 1,
    )


def _load_pipeline(config: Config, path: Path, device: str) -> Any:
    whole = config.pipeline if path.is_file() else None
    to_fill = ["vae"] if config.vae else []
    to_fill += ["text_encoder", "text_encoder_2", "text_encoder_3"] if config.text_encoders_from else []
    pipeline = load_pipeline(path, config=whole, dtype=dtypes()[config.dtype], device=device, to_fill=to_fill)
    if config.vae is not None:
        use_vae(pipeline, config.vae, allow_pickle=config.allow_pickle)
    if config.text_encoders_from is not None:
        use_text_encoders(pipeline, config.text_encoders_from, config=config.pipeline)
    return pipeline
