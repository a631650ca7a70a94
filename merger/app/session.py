"""Everything a configuration names, opened and checked before anything is written; then the search, whole.

Two steps, because most bad input shows before the models are loaded: `open_session` reads headers, taggers and
vocabulary; `Session.load` makes the denoiser live. Only then is the run folder made.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from benchmark.errors import first_line
from benchmark.pipelines.clip_text import knows_clip
from benchmark.pipelines.diffusers_generator import DiffusersGenerator
from benchmark.pipelines.generation import GenerationSettings, ImageGenerator
from benchmark.pipelines.loading import OWN_SAMPLER, SAMPLERS, denoiser_of, dtypes, load_pipeline
from benchmark.prompts.prompt_set import Prompt, derive_seed, make_prompts
from benchmark.prompts.vocabulary import Vocabulary, read_vocabulary, vocabulary_from_tags
from benchmark.taggers.registry import open_tagger
from benchmark.taggers.tagger import Tagger, columns_of
from merger.app.identity import identity_of
from merger.blend.live import LiveDenoiser
from merger.checkpoints.adapter import open_donor
from merger.checkpoints.checkpoint import Checkpoint, open_checkpoint, read_unet_config
from merger.checkpoints.compatibility import check_fit, remarks
from merger.checkpoints.components import check_configuration, check_overrides, use_text_encoders, use_vae
from merger.checkpoints.hub import local
from merger.checkpoints.text_encoders import components_of, with_text_encoders
from merger.checkpoints.weight_files import refuse_pickled_base
from merger.config.config import Config
from merger.config.parts import TaggerSettings
from merger.errors import CheckpointError, ConfigError, did_you_mean
from merger.export.recipe import Recipe
from merger.layers.unet import group
from merger.scoring.gradients.gradients import BlendGradients, DifferentiableTagger
from merger.scoring.gradients.sampling import DifferentiableGenerator, Differentiation
from merger.scoring.gradients.steps import FreshSteps
from merger.scoring.objective import JUDGE, TAGGER, BlendObjective, Live, Metric
from merger.scoring.pruning import Racer
from merger.search.adam import AdamSettings
from merger.search.baselines import most_trials
from merger.search.coarse import levels_of
from merger.search.sampler_choice import Choice, choose
from merger.search.space import Space, Weights, make_space
from merger.search.study import SearchSettings

SETS = ("search", "validation", "test")


@dataclass(frozen=True)
class Session:
    """What a search works with. `prompts[set]` are three sets that share no prompt's noise.

    `no_gradients` is why it has to do without gradients although its tagger has them; '' where it has not.
    """

    config: Config
    base: Checkpoint
    donors: tuple[Checkpoint, ...]
    layers: Mapping[str, tuple[str, ...]]
    space: Space
    taggers: Mapping[str, Tagger]
    vocabulary: Vocabulary
    prompts: Mapping[str, tuple[Prompt, ...]]
    device: str
    no_gradients: str = ""

    @property
    def metric(self) -> Metric:
        """How evaluations become scores here."""
        return Metric(self.config.objective, self.config.tagger_threshold, self.vocabulary.category)

    @property
    def thresholds(self) -> dict[str, float]:
        """From which probability each tagger has found a tag."""
        return {TAGGER: self.config.tagger_threshold, JUDGE: self.config.judge_threshold}

    @property
    def chosen(self) -> Choice:
        """What the configuration's `method` comes to here."""
        config = self.config
        tagger = self.taggers[TAGGER]
        blind = "" if hasattr(tagger, "logits") else f"the tagger {tagger.name} cannot be differentiated"
        return choose(
            config.method,
            tagger=tagger.name,
            no_gradients=blind or self.no_gradients,
            weights=len(self.space.parameters),
            trials=max(config.trials - most_trials(self.space, config.baselines), 0),
            scipy=importlib.util.find_spec("scipy") is not None,
        )

    @property
    def search_settings(self) -> SearchSettings:
        """What the study needs of the configuration."""
        config = self.config
        gradient = config.gradient
        adam = None
        if self.chosen.method == "gradient":
            adam = AdamSettings(
                gradient.steps,
                gradient.learning_rate,
                gradient.start,
                weight_decay=gradient.weight_decay,
                negative_penalty=gradient.negative_penalty,
            )
        return SearchSettings(
            self.chosen.method,
            config.seed,
            config.trials,
            config.patience,
            config.time_limit,
            adam,
            gradient.eval_every,
            config.baselines,
            config.polish,
            levels_of(self.space, self.layers, config.coarse_to_fine.items()),
        )

    def load(self) -> Loaded:
        """Loads the base's pipeline and makes its denoiser live. Raises `InputError` in one line."""
        if self.config.threads is not None:
            torch.set_num_threads(self.config.threads)
        pipeline = self._pipeline(self.base.path)
        encoders = text_encoders_of(pipeline, components_of(self.base.text), self.base)
        live = LiveDenoiser(denoiser_of(pipeline), self.base, self.donors, self.layers, encoders)
        if live.remark:
            print(live.remark, file=sys.stderr)
        kind = DifferentiableGenerator if self.chosen.method == "gradient" else DiffusersGenerator
        state = (lambda: live.text_checksum) if encoders else None  # without: texts are encoded once for all
        return Loaded(live, kind(pipeline, generation_settings(self.config), state))

    def load_file(self, file: Path) -> ImageGenerator:
        """A generator of another checkpoint file under the same settings, just as it lies on disk."""
        return DiffusersGenerator(self._pipeline(file), generation_settings(self.config))

    def objective(self, loaded: Loaded) -> BlendObjective:
        """The search's objective."""
        return BlendObjective(loaded.live, loaded.generator, self.taggers[TAGGER], self.prompts["search"], self.metric)

    def racer(self, loaded: Loaded) -> Racer | None:
        """The objective where hopeless trials are given up; None where all are drawn to their end."""
        return Racer(self.objective(loaded)) if self.config.racing else None

    def gradient_steps(self, loaded: Loaded, *, streamed: bool = False) -> FreshSteps | None:
        """What takes the steps of a climb; None for other methods. See `Differentiation` for `streamed`."""
        if self.chosen.method != "gradient":
            return None
        generator = cast(DifferentiableGenerator, loaded.generator)  # as `load` has made it
        live = cast(LiveDenoiser, loaded.live)
        tagger = cast(DifferentiableTagger, self.taggers[TAGGER])  # as `open_session` has seen to
        # their objective has a gradient everywhere, where a probability near 0 or 1 has none, and an accuracy never
        metric = replace(self.metric, kind="log_probability")
        how = Differentiation(self.config.gradient.backprop_fraction, streamed=streamed)
        layers = {layer for parameter in self.space.parameters for layer in parameter.layers}
        gradients = BlendGradients(live, generator, tagger, metric, how, layers=layers)
        return FreshSteps(gradients, self.fresh_prompts)

    def fresh_prompts(self, place: int) -> tuple[Prompt, ...]:
        """The prompts of step `place`: as many as a trial's, drawn for it alone."""
        return _draw(self.config, self.vocabulary, self.config.prompts, "slopes", place)

    def recipe(self, weights: Weights) -> Recipe:
        """How to rebuild a blend of this session's checkpoints."""
        config = self.config
        return Recipe.of(self.base, self.donors, config.granularity, weights, components=config.components)

    def identity(self) -> dict[str, str]:
        """All that must be the same for a search to be continued, by name. Hashes every source once."""
        return identity_of(self)

    def _pipeline(self, path: Path) -> Any:
        config = self.config
        whole = config.pipeline if path.is_file() else None
        to_fill = ["vae"] if config.vae else []
        to_fill += ["text_encoder", "text_encoder_2", "text_encoder_3"] if config.text_encoders_from else []
        pipeline = load_pipeline(path, config=whole, dtype=dtypes()[config.dtype], device=self.device, to_fill=to_fill)
        if config.vae is not None:
            use_vae(pipeline, config.vae, allow_pickle=config.allow_pickle)
        if config.text_encoders_from is not None:
            use_text_encoders(pipeline, config.text_encoders_from, config=config.pipeline)
        return pipeline


@dataclass(frozen=True)
class Loaded:
    """The live denoiser and what draws with it."""

    live: Live
    generator: ImageGenerator


def open_session(config: Config) -> Session:
    """Opens and checks all that `config` names, but loads no model. Raises `InputError` in one line."""
    if config.sampler not in (OWN_SAMPLER, *SAMPLERS):
        known = [OWN_SAMPLER, *SAMPLERS]
        raise ConfigError(f"sampler: there is no '{config.sampler}'.{did_you_mean(config.sampler, known)}")
    config = local(config)
    device = _device(config.device)
    unet_config = read_unet_config(config.pipeline) if config.pipeline is not None else None
    refuse_pickled_base(config.base)
    base = open_checkpoint(
        config.base, name=config.named_base, unet_config=unet_config, allow_pickle=config.allow_pickle
    )
    if config.blends_text:
        base = with_text_encoders(base)
    check_configuration(base, config.pipeline)
    check_overrides(vae=config.vae, text_encoders_from=config.text_encoders_from)
    donors = tuple(
        open_donor(donor.path, base, name=name, allow_pickle=config.allow_pickle)
        for donor, name in zip(config.donors, config.donor_names, strict=True)
    )
    for remark in remarks(donors, check_fit(base, donors)):
        print(remark, file=sys.stderr)
    if base.text and all(len(donor.lent) == len(components_of(base.text)) for donor in donors):
        raise ConfigError(
            "components: no donor has a text encoder, so there is none to blend: leave out 'text_encoder'"
        )
    layers = group(base.blended, config.granularity)
    own_bounds = zip(config.donor_names, config.donors, strict=True)
    space = make_space(
        tuple(layers),
        config.donor_names,
        bounds=config.bounds,
        donor_bounds={name: donor.bounds for name, donor in own_bounds if donor.bounds is not None},
        frozen=config.frozen,
        tied=config.tied,
    )
    taggers = {TAGGER: _tagger(config.tagger, config, device)}
    if config.judge is not None:
        taggers[JUDGE] = _tagger(config.judge, config, device)
    if config.method == "gradient" and not hasattr(taggers[TAGGER], "logits"):
        raise ConfigError(
            f"method: the tagger {taggers[TAGGER].name} cannot be differentiated, so there are no gradients to follow. "
            "Use a transformers tagger, a WD tagger's PyTorch weights (kind: wd-timm), or another method."
        )
    vocabulary = _vocabulary(config, taggers[TAGGER])
    for tagger in taggers.values():
        columns_of(tagger, vocabulary.tags)
    prompts = _prompts(config, vocabulary)
    session = Session(config, base, donors, layers, space, taggers, vocabulary, prompts, device)
    if config.coarse_to_fine and session.chosen.method != "cmaes":
        raise ConfigError(f"coarse_to_fine: is for method 'cmaes', and this search's is '{session.chosen.method}'")
    return session


def text_encoders_of(pipeline: Any, components: Sequence[str], base: Checkpoint) -> dict[str, torch.nn.Module]:
    """{component: module} of a pipeline's text encoders that are blended.

    Raises CheckpointError for one that it does not have, and ConfigError where text is encoded by others than CLIP's:
    those pipelines encode it by themselves, and what is kept of it would not follow the blend.
    """
    if components and not knows_clip(pipeline):
        raise ConfigError(
            f"components: a search blends text encoders where all are CLIP's (SD 1, SD 2, SDXL), and {base.name} has "
            "others: leave out 'text_encoder'"
        )
    found = {name: getattr(pipeline, name, None) for name in components}
    for name, module in found.items():
        if module is None:
            raise CheckpointError(f"{base.path}: holds a {name}, which its {type(pipeline).__name__} does not use.")
    return {name: module for name, module in found.items() if module is not None}


def generation_settings(config: Config) -> GenerationSettings:
    """How images are drawn, as the benchmark wants it."""
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


def _tagger(settings: TaggerSettings, config: Config, device: str) -> Tagger:
    return open_tagger(settings.path, kind=settings.kind, device=device, threads=config.threads)


def _vocabulary(config: Config, tagger: Tagger) -> Vocabulary:
    if config.vocabulary.path is not None:
        return read_vocabulary(config.vocabulary.path)
    return vocabulary_from_tags(tagger.general, config.vocabulary.top or len(tagger.general))


def _prompts(config: Config, vocabulary: Vocabulary) -> dict[str, tuple[Prompt, ...]]:
    counts = (config.prompts, config.validation_prompts, config.test_prompts)
    return {which: _draw(config, vocabulary, count, which) for which, count in zip(SETS, counts, strict=True)}


def _draw(config: Config, vocabulary: Vocabulary, count: int, *purpose: object) -> tuple[Prompt, ...]:
    return make_prompts(
        vocabulary,
        count,
        tags_per_prompt=config.tags_per_prompt,
        seed=derive_seed(config.seed, *purpose),
        template=config.template,
    )


def _device(named: str) -> str:
    if named == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=named)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device: '{named}' cannot be used here ({first_line(error)})") from None
    return named
