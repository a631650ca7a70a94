"""The configuration of a search: one frozen value that is checked once and written beside every result.

`merger.config.loading` reads it from a YAML file. All paths in it are absolute, except hub ids, which stay as they are.
Everything is checked that can be checked without opening the named files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from benchmark.errors import did_you_mean
from merger.config.parts import (
    AmountOfMemory,
    Bounds,
    Count,
    Donor,
    Finite,
    FrozenAtTheBase,
    GradientSettings,
    ImageSize,
    KeepSettings,
    Name,
    NotNegative,
    PromptCount,
    Settings,
    Sourced,
    Storage,
    TableOfLayers,
    TagCounts,
    Tagger,
    Template,
    Threshold,
    Vocabulary,
    bytes_of,
    name_of,
)
from merger.layers.components import DENOISER, TEXT, components_problem
from merger.layers.unet import COMMUNITY, BlockNames
from merger.search.registry import CHOOSERS, no_method, sampler_names

Granularity = Annotated[Literal["stage", "block", "module", "tensor", "channel"] | dict[str, str], TableOfLayers]
BaselineKind = Literal["uniform", "best_uniform", "greedy_soup"]
ObjectiveKind = Literal["accuracy", "probability", "log_probability"]


class Config(Settings):
    """The whole configuration of a search. Numbers of prompts are numbers of images."""

    name: Name | None = Field(
        default=None,
        description="Name of the run, whose folder is `runs/NAME/`. Without one it is the configuration file's name.",
    )
    base: Sourced = Field(
        description="The checkpoint that the donors are blended into: a file, a diffusers folder or a hub id. It also "
        "supplies the text encoders, the VAE and the scheduler."
    )
    base_name: Name | None = Field(
        default=None, description="What tables and recipes call the base. Without one it is the file's name."
    )
    donors: Annotated[tuple[Donor, ...], Field(min_length=1)] = Field(
        description="The checkpoints whose differences from the base are blended in: a list of paths, or of "
        "`{path: FILE, name: NAME, bounds: [LOWEST, HIGHEST]}`."
    )
    pipeline: Sourced | None = Field(
        default=None,
        description="A diffusers folder or hub id with the configuration and the tokenizer that a single file is read "
        "with. Its weights are used only for parts that the file lacks. Without it diffusers looks for one itself.",
    )
    vae: Sourced | None = Field(
        default=None, description="A VAE to use instead of the base's: a file that holds one, a folder or a hub id."
    )
    text_encoders_from: Sourced | None = Field(
        default=None, description="A checkpoint, folder or hub id whose text encoders are used instead of the base's."
    )
    allow_pickle: bool = Field(
        default=False,
        description="Whether donors may be pickles (`.ckpt`, `.pt`, `.bin`), of which only plain tensors are read. Off "
        "by default, because opening a pickle in other programs can run any code.",
    )

    allow_mixed_prediction: bool = Field(
        default=False,
        description="Whether donors may predict something else than the base (noise, v or flow), or be made for "
        "another noise schedule (zero terminal SNR). Images are generated as the base wants it, so such a donor alone "
        "looks wrong.",
    )
    components: tuple[str, ...] = Field(
        default=(DENOISER,),
        description="What is blended: `[denoiser]`, or `[denoiser, text_encoder]` for the text encoders as well.",
    )
    granularity: Granularity = Field(
        default="block",
        description="Which tensors share one weight per donor: `stage`, `block` (the community's layer names), "
        "`module`, `tensor`, `channel`, or a table of your own (`pattern: layer`, in place or as a YAML file). At "
        "`channel` each output channel of a matrix or convolution has a weight of its own, and every other tensor has "
        "one; only gradients can search so many.",
    )
    block_names: BlockNames = Field(
        default=COMMUNITY,
        description="Whose names of a U-Net's blocks `granularity: block` has: `community`, or `layermerge-0.1`, in "
        "which the last normalisation and convolution belong to `BASE`. Runs of version 0.1 keep the latter.",
    )
    bounds: Bounds = Field(
        default=(-0.5, 1.5),
        description="Lowest and highest blend weight. 0 is the base and 1 the donor; the default leaves room on both "
        "sides, since good weights often lie outside 0 to 1. Or a table of them by layer, for example "
        "`{'*': [0, 1], 'OUT*': [-1, 2]}`: a layer may be a pattern, and later lines override earlier ones.",
    )
    frozen: Annotated[Mapping[str, Finite], FrozenAtTheBase] = Field(
        default={},
        description="Layers that are not searched. A list keeps them at the base; a table gives every donor the weight "
        "named, for example `{IN00: 0.2}`. A layer may be a pattern, for example `['IN*']`; later lines override "
        "earlier ones.",
    )
    tied: tuple[tuple[str, ...], ...] = Field(
        default=(),
        description="Groups of layers that share their weights, for example `[[IN01, IN02], [OUT10, OUT11]]`. A layer "
        "may be a pattern, which leaves out frozen layers: `[['IN*'], ['OUT*']]`.",
    )

    tagger: Tagger = Field(
        description="The tagger whose findings the search maximizes: a folder, or `{path: FOLDER, kind: KIND, "
        "threshold: NUMBER}`."
    )
    judge: Tagger | None = Field(
        default=None,
        description="A second tagger, in the same form. It is asked only at the end and chooses nothing, so it shows "
        "whether a gain is real or only pleases the first tagger.",
    )
    threshold: Threshold = Field(
        default=0.35, description="The probability from which a tag counts as found. 0.35 is customary for WD taggers."
    )
    vocabulary: Vocabulary = Field(
        description="The tags that prompts ask for: a CSV file with the columns `tag,category,group`, or `{top: K}` "
        "for the first K general tags of the tagger's own list."
    )
    tags_per_prompt: TagCounts = Field(
        default=(4, 8), description="Number of tags in a prompt: one number, or the fewest and the most."
    )
    template: Template = Field(default="{tags}", description="The prompt's text. `{tags}` is replaced by the tags.")
    negative_prompt: str = Field(default="", description="The negative prompt of all images.")
    prompts: PromptCount = Field(
        default=64,
        description="Number of images in a trial, one per prompt. More images make a trial's score less noisy.",
    )
    validation_prompts: PromptCount = Field(
        default=128, description="Number of images per finalist and parent when the winner is chosen."
    )
    test_prompts: PromptCount = Field(
        default=256,
        description="Number of images per model in the final table, which nothing is chosen on. The tag accuracy there "
        "is the recall of the tags asked for.",
    )

    distinct_prompts: bool = Field(
        default=True,
        description="Whether search, validation and test prompts share no text, as far as the vocabulary is large "
        "enough. Runs of version 0.1.0 are continued without it, as they began.",
    )

    steps: Annotated[int, Field(ge=1, le=1000)] = Field(default=20, description="Number of sampling steps of an image.")
    sampler: str = Field(
        default="default",
        description="How images are sampled: `default` (the pipeline's own scheduler), `ddim`, `pndm`, `euler`, "
        "`euler_a`, `heun`, `dpm++2m`, `dpm++2m-karras` or `unipc`.",
    )
    guidance: NotNegative = Field(default=5.0, description="Scale of classifier-free guidance.")
    clip_skip: Annotated[int, Field(ge=1, le=11)] = Field(
        default=1,
        description="Which of CLIP's layers, counted from the last, gives the text's embeddings, as web UIs count: 1 "
        "is the last layer, 2 the one before it.",
    )
    size: ImageSize = Field(
        default=(512, 512), description="Width and height of images in pixels, multiples of 8. One number is both."
    )
    seed: Annotated[int, Field(ge=0)] = Field(
        default=0,
        description="Seed of prompts, noise and proposals. The same seed repeats a search on the same machine; search, "
        "validation and test prompts have seeds derived from it.",
    )

    baselines: tuple[BaselineKind, ...] = Field(
        default=("uniform", "best_uniform", "greedy_soup"),
        description="Averages that are evaluated before the search, besides base and donors: `uniform` (the mean of "
        "all), `best_uniform` (the best single weight for all layers and donors), `greedy_soup` (parents are added to "
        "the mean as long as it gets better). `[]` is none.",
    )
    method: str = Field(
        default="auto",
        description="How blends are proposed: `gradient` (Adam along the score's gradient), `cmaes`, `tpe`, `gp` (a "
        "Gaussian process), `random`, or `bayes`, which chooses one of the black-box samplers by the number of weights "
        "and trials. `auto` is `gradient` if the tagger can be differentiated and a step fits into memory, else "
        "`bayes`.",
    )
    gradient: GradientSettings = Field(default=GradientSettings(), description="Settings of the gradient search.")
    pruning: bool = Field(
        default=False,
        description="Whether a trial of a black-box sampler is ended early if it is clearly worse than the best so "
        "far. Off by default: it gained nothing in measurements.",
    )
    objective: ObjectiveKind = Field(
        default="probability",
        description="The score that trials are compared by: `probability` (the mean probability of the tags asked "
        "for), `log_probability` (its mean logarithm) or `accuracy` (the share of them found at the threshold). A mean "
        "probability is less noisy than a share of hits. Gradient steps always follow the mean log probability.",
    )
    keep: KeepSettings = Field(
        default=KeepSettings(),
        description="Floors for what the search may lose, for example `{tag: 0.02, category: 0.0}`: a penalty in "
        "gradient steps, for which the base is drawn at every step too, and a constraint for the black-box samplers "
        "`tpe` and `gp` and for finalists.",
    )
    trials: Count = Field(
        default=200,
        description="The most trials, baselines included. If the baselines would take more than half of them, a search "
        "that begins raises the limit to twice the most that they take, and prints that.",
    )
    patience: Count = Field(
        default=60,
        description="The search ends after this many trials in a row without an improvement that is larger than its "
        "own noise. Baselines are not counted.",
    )
    time_limit: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="Seconds of trials, in all sittings together, after which the search ends. It is checked between "
        "trials; the final evaluation is not counted.",
    )
    storage: Storage | None = Field(
        default=None,
        description="URL of the study's database. Without one it is an SQLite file in the run's folder. The path of an "
        "SQLite file starts at the configuration's folder if it is relative.",
    )

    batch_size: Annotated[int, Field(ge=1, le=10_000)] | None = Field(
        default=None,
        description="Number of images that are generated at once. Without it the program chooses; on a GPU a batch "
        "that does not fit is halved.",
    )
    device: str = Field(default="auto", description="`cpu`, `cuda`, `cuda:1` ...; `auto` is a GPU if there is one.")
    memory: AmountOfMemory | None = Field(
        default=None,
        description="The most memory of the device that the search may take, all models included, for example `12GB`. "
        "It chooses how images and gradients are computed and where base and donors lie so that it fits, and prints "
        "that. Without it, that is three quarters of what is free.",
    )
    dtype: Literal["fp32", "fp16", "bf16"] = Field(
        default="fp32", description="Number format that the pipeline computes in: `fp32`, `fp16` or `bf16`."
    )
    threads: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        default=None, description="Number of CPU threads for torch and ONNX taggers. Without it torch chooses."
    )

    @field_validator("components")
    @classmethod
    def _known_components(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if problem := components_problem(value):
            raise ValueError(problem)
        return tuple(sorted(value))  # two orders of the same components are the same search

    @field_validator("method")
    @classmethod
    def _known_method(cls, value: str) -> str:
        if value not in (*CHOOSERS, *sampler_names()):
            raise ValueError(no_method(value))
        return value

    @field_validator("sampler")
    @classmethod
    def _known_sampler(cls, value: str) -> str:
        from benchmark.pipelines.loading import OWN_SAMPLER, SAMPLERS  # loads no library

        known = [OWN_SAMPLER, *SAMPLERS]
        if value not in known:
            raise ValueError(f"there is no '{value:.80}'.{did_you_mean(value[:80], known)}")
        return value

    @model_validator(mode="after")
    def _distinct_names(self) -> Self:
        names = [self.named_base, *self.donor_names]
        if "uniform" in names:
            raise ValueError("no checkpoint may be called 'uniform', which is the average of all: give it a `name:`")
        for name in names:
            if names.count(name) > 1:
                raise ValueError(
                    f"two checkpoints are called '{name}': give one a `name:` (or the base a `base_name:`)"
                )
        return self

    @model_validator(mode="after")
    def _one_text_encoder(self) -> Self:
        if self.blends_text and self.text_encoders_from is not None:
            raise ValueError(
                "text_encoders_from: another checkpoint's text encoders cannot be blended: leave it out, or "
                "'text_encoder' out of the components"
            )
        return self

    @property
    def blends_text(self) -> bool:
        """Whether the text encoders are blended too."""
        return TEXT in self.components

    @property
    def memory_limit(self) -> int | None:
        """The most bytes of the device's memory, if they are limited."""
        return None if self.memory is None else bytes_of(self.memory)

    @property
    def named_base(self) -> str:
        """The base's name: its own, or its file's."""
        return self.base_name or name_of(self.base)

    @property
    def donor_names(self) -> tuple[str, ...]:
        """The donors' names, in order."""
        return tuple(donor.name or name_of(donor.path) for donor in self.donors)

    @property
    def tagger_threshold(self) -> float:
        """The probability from which the search's tagger finds a tag."""
        return self.tagger.threshold or self.threshold

    @property
    def judge_threshold(self) -> float:
        """The probability from which the judge finds a tag."""
        return (self.judge.threshold if self.judge else None) or self.threshold
