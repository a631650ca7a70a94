"""Weights -> live blend -> images -> score, and the score's gradient in every weight, from one backward pass.

    w[l, d]   weight of donor d in layer l; L layers, D donors; R weights per donor: L, or more with weights by channel
    p         a parameter of layer l, blended from b (base) and d_1 .. d_D (donors)
    S         score: mean over prompts of the mean over the tags asked for of log sigmoid(logit)

    dS / dw[l, d] = sum over the parameters p of layer l of  <dS / dp, d_d - b>, or over the elements of one channel

A blend is linear in its weights, so no graph needs to pass through the blend. `merger.scoring.gradients.sampling`
generates the images, `merger.scoring.gradients.reduction` takes the dot products.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from benchmark.evaluate.runner import Evaluation
from benchmark.images import to_bytes
from benchmark.pipelines.lending import lent
from benchmark.prompts.prompt_set import Prompt
from benchmark.taggers.asking import logits_of
from benchmark.taggers.tagger import columns_of
from merger.blend.live import LiveDenoiser
from merger.errors import ConfigError
from merger.scoring.floors import Floors
from merger.scoring.gradients.checkpointing import checkpointed
from merger.scoring.gradients.findings import StepFindings
from merger.scoring.gradients.reduction import searched_parameters, weight_gradients
from merger.scoring.gradients.sampling import DifferentiableGenerator, Differentiation
from merger.scoring.objective import Metric
from merger.search.space import Floats
from merger.search.trials import Score
from merger.weights import Weights

Gradient = dict[str, dict[str, float | Floats]]
"""`gradient[layer][donor]`: the derivative of the score in that weight; [C] in the weights of C channels."""

OBJECTIVES = ("log_probability", "probability")
"""The kinds of `Metric` that have a gradient."""

DEFAULT = Differentiation()


class Gradients(Protocol):
    """Weights and prompts to a score and its gradient; deterministic. `BlendGradients` is one."""

    def __call__(self, weights: Weights, prompts: Sequence[Prompt]) -> tuple[Score, Gradient]:
        """Scores one blend on these prompts."""


class DifferentiableTagger(Protocol):
    """A tagger with logits that can be differentiated. See `benchmark.taggers.tagger.Tagger`."""

    @property
    def name(self) -> str:
        """What tables call it."""

    @property
    def tags(self) -> tuple[str, ...]:
        """The T tags, in the order of the columns."""

    def logits(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in 0..1 -> [B, T], differentiable in the images."""


class Measured(NamedTuple):
    """A blend's score on some prompts, its gradient, and what the tagger found in every image."""

    score: Score
    gradients: Gradient
    evaluation: Evaluation


class BlendGradients:
    """Scores blends and computes the gradient. See `Gradients`.

    live: the denoiser of the generator's pipeline. micro_batch: number of images generated and differentiated together;
    None takes the generator's batch size. It is halved, for good, if a GPU's memory does not suffice; nothing but
    rounding depends on it. layers: those whose weights need gradients; None for all. widths: {layer of one tensor: its
    number of channels} where channels have weights of their own. floors: what a blend must keep;
    the score then loses what is below them, and the base's images are generated too, without gradients. Raises
    ConfigError for a tagger or an objective without gradients.
    """

    def __init__(
        self,
        live: LiveDenoiser,
        generator: DifferentiableGenerator,
        tagger: DifferentiableTagger,
        metric: Metric,
        how: Differentiation = DEFAULT,
        *,
        micro_batch: int | None = None,
        layers: Collection[str] | None = None,
        widths: Mapping[str, int] | None = None,
        floors: Floors | None = None,
    ) -> None:
        if not hasattr(tagger, "logits"):
            raise ConfigError(f"{tagger.name}: this tagger cannot be differentiated, so there is no gradient to follow")
        if metric.kind not in OBJECTIVES:
            raise ConfigError(f"objective '{metric.kind}' has no gradient. Use {' or '.join(OBJECTIVES)}.")
        self.live, self.generator, self.tagger, self.metric, self.how = live, generator, tagger, metric, how
        self.micro_batch = micro_batch or generator.batch_size
        self.floors = floors
        self.layers = tuple(layer for layer in live.layers if layers is None or layer in layers)
        self.widths = {layer: (widths or {}).get(layer, 1) for layer in self.layers}
        self._searched = tuple(searched_parameters(live, self.layers, self.widths))
        # Small gradients underflow in fp16, so the loss is scaled, and the gradients are scaled back.
        self._scale = 2.0**12 if self._searched and self._searched[0].parameter.dtype == torch.float16 else 1.0

    def __call__(self, weights: Weights, prompts: Sequence[Prompt]) -> tuple[Score, Gradient]:
        """See `Gradients`. Raises `BlendNotApplied`, and InputError for a tag that the tagger does not know."""
        score, gradients, _ = self.measure(weights, prompts)
        return score, gradients

    def measure(self, weights: Weights, prompts: Sequence[Prompt]) -> Measured:
        """The same, with what the tagger found in every image.

        `score.value` and its parts are exactly what the gradient is of; all else is the metric's. A prompt whose image
        is not finite has no gradient, and counts as one whose tags were not found.
        """
        findings = StepFindings(tuple(prompts))
        columns = columns_of(self.tagger, findings.tags)  # type: ignore[arg-type]
        self.generator.encode(prompts)
        if self.floors is not None:
            findings.base = self._base_logs(findings, columns)
        checksum = self.live.apply(weights)
        totals = torch.zeros(sum(self.widths.values()), len(self.live.donors), dtype=torch.float64)
        for found in self._by_micro_batch(len(prompts), lambda rows: self._differentiate(findings, columns, rows)):
            totals += found
        evaluation = findings.evaluation()
        return Measured(self._score(evaluation, findings, checksum), self._by_layer(totals.numpy()), evaluation)

    def rehearse(self, prompt: Prompt, steps: int) -> None:
        """Generates, scores and backpropagates one image of the blend that is live, as in a step; nothing is kept.

        steps: sampling steps, all of which carry gradients.
        """
        findings = StepFindings((prompt,))
        columns = columns_of(self.tagger, findings.tags)  # type: ignore[arg-type]
        findings.base = torch.zeros(findings.asked.shape)
        settings = replace(self.generator.settings, steps=steps)
        with (
            lent(self.generator, "settings", settings),
            lent(self, "how", replace(self.how, fraction=1.0)),
            self._weight_gradients(),
        ):
            part = self._score_batch(findings, columns, np.arange(1))
            if part.requires_grad:
                part.sum().backward()

    @property
    def parameters(self) -> list[Tensor]:
        """Those that are searched."""
        return [each.parameter for each in self._searched]

    def _by_layer(self, totals: Floats) -> Gradient:
        """[R, D] by layer and donor."""
        gradients: Gradient = {}
        at = 0
        for layer, width in self.widths.items():
            own, at = totals[at : at + width], at + width
            columns = own[0].tolist() if width == 1 else list(own.T)
            gradients[layer] = dict(zip(self.live.donors, columns, strict=True))
        return gradients

    def _base_logs(self, findings: StepFindings, columns: np.ndarray) -> Tensor:
        """[I, T]: the log probabilities of the tags in the base's images of the findings' prompts."""
        self.live.restore()
        how = Differentiation(recompute=False)  # no parameter asks for gradients, so there is no graph to save

        def logs(rows: np.ndarray) -> Tensor:
            images = self.generator.draw([findings.prompts[row] for row in rows], self.live.module, how)
            return logsigmoid(self._logits(images, columns)).detach().cpu()

        return torch.cat([*self._by_micro_batch(len(findings.prompts), logs)])

    def _logits(self, images: Tensor, columns: np.ndarray) -> Tensor:
        """[B, 3, H, W] -> [B, T]: the tagger's, of the tags in `columns`, in the type that taggers compute in."""
        images = images.to(torch.promote_types(images.dtype, torch.float32))
        return logits_of(self.tagger, images)[:, torch.from_numpy(columns).to(images.device)]

    def _by_micro_batch(self, prompts: int, compute: Callable[[np.ndarray], Tensor]) -> Iterator[Tensor]:
        """What `compute` gives for the rows of each micro-batch, in order; smaller ones where memory does not suffice.

        Raises torch.OutOfMemoryError if it does not suffice for a single prompt.
        """
        done = 0
        while done < prompts:
            rows = np.arange(done, min(done + self.micro_batch, prompts))
            try:
                found: Tensor | None = compute(rows)
            except torch.OutOfMemoryError:
                if len(rows) == 1:
                    raise
                found = None
            if found is None:  # after the `except`, when the error no longer holds what the attempt has allocated
                self.micro_batch = (self.micro_batch + 1) // 2
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                continue
            done += len(rows)
            yield found

    def _differentiate(self, findings: StepFindings, columns: np.ndarray, rows: np.ndarray) -> Tensor:
        """Generates, scores, backpropagates: [R, D]. If gradients overflow in fp16, repeats it at a smaller scale."""
        while True:
            with self._weight_gradients() as totals_so_far:
                batch = self._score_batch(findings, columns, rows)
                whole = torch.isfinite(batch.detach())
                if not bool(whole.all()):  # NaN would spread to every gradient, even when multiplied by 0
                    rows = rows[whole.cpu().numpy()]
                    if not len(rows):
                        return torch.zeros_like(totals_so_far())
                    continue
                if batch.requires_grad:
                    (batch.sum() * (self._scale / len(findings.prompts))).backward()
                gradients = totals_so_far() / self._scale
            if bool(torch.isfinite(gradients).all()):
                return gradients
            if self._scale <= 1:
                raise ConfigError("dtype: gradients are not finite numbers. Use fp32 or bf16.")
            self._scale /= 16

    @contextmanager
    def _weight_gradients(self) -> Iterator[Callable[[], Tensor]]:
        """What a forward and a backward pass lie within. See `weight_gradients`."""
        with (
            self.generator.decoder_type_kept(),
            checkpointed(self._checkpointed()),
            weight_gradients(self._searched, sum(self.widths.values()), len(self.live.donors)) as totals_so_far,
        ):
            yield totals_so_far

    def _checkpointed(self) -> list[torch.nn.Module]:
        """The networks whose blocks are computed again."""
        networks = {
            "denoiser": self.live.module,
            "decoder": self.generator.pipeline.vae,
            "tagger": getattr(self.tagger, "model", None),
        }
        return [network for name in self.how.checkpointed if isinstance(network := networks[name], torch.nn.Module)]

    def _score_batch(self, findings: StepFindings, columns: np.ndarray, rows: np.ndarray) -> Tensor:
        """Each prompt's part of the score, [B], with a graph. Notes what the tagger finds.

        columns: those of the findings' tags among the tagger's. rows: the prompts.
        """
        prompts = [findings.prompts[row] for row in rows]
        images = self.generator.draw(prompts, self.live.module, self.how)
        logits = self._logits(images, columns)
        asked = torch.from_numpy(findings.asked[rows]).to(images.device)
        values = logsigmoid(logits) if self.metric.kind == "log_probability" else torch.sigmoid(logits)
        parts = torch.where(asked, values, 0).sum(dim=1) / asked.sum(dim=1)
        if self.floors is not None:
            base = findings.base[torch.from_numpy(rows)].to(logits)
            parts = parts - self.floors.penalty(logsigmoid(logits), base, asked, findings.tags)
        probabilities = torch.sigmoid(logits.detach())
        findings.note(rows, to_bytes(images.detach()), probabilities, parts.detach(), self.metric.kind)
        return parts

    def _score(self, evaluation: Evaluation, findings: StepFindings, checksum: str) -> Score:
        """The metric's score, with the value that the gradient is of."""
        score = self.metric.score(evaluation, checksum)
        parts, count = findings.values, len(findings.values)
        return replace(
            score,
            value=float(parts.mean()),
            stderr=float(parts.std(ddof=1) / math.sqrt(count)) if count > 1 else math.inf,
            per_prompt=tuple(round(float(part), 6) for part in parts),
            attributes={**score.attributes, "duplicates": evaluation.duplicates},
        )
