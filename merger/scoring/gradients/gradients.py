"""Weights -> live blend -> images -> score, and the gradient of the score in every weight, from one backward pass.

    w[l, d]   weight of donor d in layer l; L layers, D donors
    p         a parameter of layer l, blended from b (base) and d_1 .. d_D (donors)
    S         score: mean over prompts of the mean over the tags asked for of log sigmoid(logit)

    dS / dw[l, d] = sum over the parameters p of layer l of  <dS / dp, d_d - b>

as a blend is linear in its weights; no graph goes through the blend. Each dot product is taken as the backward pass
delivers a parameter's gradient, which is then let go: of the denoiser, one copy of gradients is held at most (none, if
streamed). See `merger.scoring.gradients.sampling` for how images are drawn with gradients.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from benchmark.evaluate.runner import Evaluation, asked_matrix, tags_asked
from benchmark.evaluate.scores import PROBABILITY_FLOOR, Floats
from benchmark.images import Images, image_digests, is_broken, to_bytes
from benchmark.prompts.prompt_set import Prompt
from benchmark.taggers.tagger import columns_of
from merger.blend.live import LiveDenoiser, Read
from merger.errors import ConfigError
from merger.scoring.gradients.sampling import DifferentiableGenerator, Differentiation
from merger.scoring.objective import TAGGER, Metric
from merger.search.space import Weights
from merger.search.trials import Score

Gradient = dict[str, dict[str, float]]
"""`gradients[layer][donor]`: how fast the score rises with that weight."""

OBJECTIVES = ("log_probability", "probability")  # those of `Metric` that have gradients
DEFAULT = Differentiation()


class Gradients(Protocol):
    """Weights and prompts to a score and its gradients; deterministic. `BlendGradients` is one."""

    def __call__(self, weights: Weights, prompts: Sequence[Prompt]) -> tuple[Score, Gradient]:
        """Scores one blend on these prompts."""


class DifferentiableTagger(Protocol):
    """What gradients ask of a tagger beyond its name for it."""

    @property
    def name(self) -> str:
        """What tables call it."""

    @property
    def tags(self) -> tuple[str, ...]:
        """The T tags, in the order of the columns."""

    def logits(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in 0..1 -> [B, T], differentiable in the images."""


class Measured(NamedTuple):
    """A blend's score on some prompts, its gradients, and what the tagger said of every image."""

    score: Score
    gradients: Gradient
    evaluation: Evaluation


@dataclass
class _Piece:
    """One parameter of layer number `row`; `read` gives its values in the base [P] and in every donor D x [P]."""

    row: int
    parameter: Tensor
    read: Read


class BlendGradients:
    """Scores blends and finds the gradients. See `Gradients`.

    live: the denoiser of the generator's pipeline. micro_batch: images drawn and differentiated together; None takes
    the generator's batch size. It is halved, for good, where a GPU has no room, and nothing but rounding depends on it.
    layers: those that gradients are wanted of; None for all. Raises ConfigError for a tagger or an objective without
    gradients.
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
    ) -> None:
        if not hasattr(tagger, "logits"):
            raise ConfigError(
                f"{tagger.name}: this tagger cannot be differentiated, so there are no gradients to follow"
            )
        if metric.kind not in OBJECTIVES:
            raise ConfigError(f"objective '{metric.kind}' has no gradients. Use {' or '.join(OBJECTIVES)}.")
        self.live, self.generator, self.tagger, self.metric, self.how = live, generator, tagger, metric, how
        self.micro_batch = micro_batch or generator.batch_size
        self.layers = tuple(layer for layer in live.layers if layers is None or layer in layers)
        self._pieces = tuple(_pieces(live, self.layers))
        # gradients of fp16 would be lost below its smallest number: they are carried larger
        self._scale = 2.0**12 if self._pieces and self._pieces[0].parameter.dtype == torch.float16 else 1.0

    def __call__(self, weights: Weights, prompts: Sequence[Prompt]) -> tuple[Score, Gradient]:
        """See `Gradients`. Raises `BlendNotApplied`, and InputError for a tag that the tagger does not know."""
        score, gradients, _ = self.measure(weights, prompts)
        return score, gradients

    def measure(self, weights: Weights, prompts: Sequence[Prompt]) -> Measured:
        """The same, with what the tagger said of every image.

        `score.value` and its parts are exactly what the gradients are of; the rest is the metric's. A prompt whose
        image is not finite has no gradients, and counts as one that asks in vain.
        """
        began = time.perf_counter()
        checksum = self.live.apply(weights)
        tags = tags_asked(prompts)
        pass_ = _Pass(tuple(prompts), asked_matrix(prompts, tags), columns_of(self.tagger, tags))  # type: ignore[arg-type]
        totals = torch.zeros(len(self.layers), len(self.live.donors), dtype=torch.float64)
        done = 0
        while done < len(prompts):
            rows = np.arange(done, min(done + self.micro_batch, len(prompts)))
            found = self._try(pass_, rows)
            if found is None:
                self.micro_batch = (self.micro_batch + 1) // 2
                continue
            totals += found
            done += len(rows)
        evaluation = Evaluation(
            pass_.prompts,
            tags,
            {TAGGER: pass_.probabilities},
            pass_.broken,
            pass_.digests,
            time.perf_counter() - began,
        )
        values = totals.tolist()
        gradients = {
            layer: dict(zip(self.live.donors, row, strict=True)) for layer, row in zip(self.layers, values, strict=True)
        }
        return Measured(self._score(evaluation, pass_, checksum), gradients, evaluation)

    def _try(self, pass_: _Pass, rows: np.ndarray) -> Tensor | None:
        """One micro-batch's share of the gradients, [L, D] float64; None where memory did not suffice for it."""
        try:
            return self._differentiate(pass_, rows)
        except torch.OutOfMemoryError:
            if len(rows) == 1:
                raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None

    def _differentiate(self, pass_: _Pass, rows: np.ndarray) -> Tensor:
        """Draw, score, go back: [L, D]. Overflown gradients of fp16 are sought again at a smaller scale."""
        while True:
            with _reduced(self._pieces, len(self.layers), len(self.live.donors)) as totals:
                batch = self._score_batch(pass_, rows)
                whole = torch.isfinite(batch.detach())
                if not bool(whole.all()):  # NaN would spread to every gradient, even when multiplied by 0
                    rows = rows[whole.cpu().numpy()]
                    if not len(rows):
                        return torch.zeros_like(totals.cpu())
                    continue
                if batch.requires_grad:
                    (batch.sum() * (self._scale / len(pass_.prompts))).backward()
                gradients = totals.cpu() / self._scale
            if bool(torch.isfinite(gradients).all()):
                return gradients
            if self._scale <= 1:
                raise ConfigError("dtype: gradients are not finite numbers. Use fp32 or bf16.")
            self._scale /= 16

    def _score_batch(self, pass_: _Pass, rows: np.ndarray) -> Tensor:
        """The parts [B] of the score of these prompts, with a graph; what was seen is noted in `pass_`."""
        prompts = [pass_.prompts[row] for row in rows]
        images = self.generator.draw(prompts, self.live.module, self.how)
        images = images.to(torch.promote_types(images.dtype, torch.float32))  # what taggers compute in
        columns = torch.from_numpy(pass_.columns).to(images.device)
        logits = self.tagger.logits(images)[:, columns]
        asked = torch.from_numpy(pass_.asked[rows]).to(images.device)
        heard = logsigmoid(logits) if self.metric.kind == "log_probability" else torch.sigmoid(logits)
        parts = torch.where(asked, heard, 0).sum(dim=1) / asked.sum(dim=1)
        pass_.note(rows, to_bytes(images.detach()), torch.sigmoid(logits.detach()), parts.detach(), self.metric.kind)
        return parts

    def _score(self, evaluation: Evaluation, pass_: _Pass, checksum: str) -> Score:
        """The metric's score, with the value that the gradients are of."""
        score = self.metric.score(evaluation, checksum)
        parts, count = pass_.values, len(pass_.values)
        return replace(
            score,
            value=float(parts.mean()),
            stderr=float(parts.std(ddof=1) / math.sqrt(count)) if count > 1 else math.inf,
            per_prompt=tuple(round(float(part), 6) for part in parts),
            attributes={**score.attributes, "duplicates": evaluation.duplicates},
        )


class _Pass:
    """What is found out about I prompts, micro-batch by micro-batch; T tags are asked for by any of them."""

    def __init__(self, prompts: tuple[Prompt, ...], asked: np.ndarray, columns: np.ndarray) -> None:
        self.prompts, self.asked, self.columns = prompts, asked, columns
        self.probabilities = np.zeros(asked.shape, dtype=np.float32)  # [I, T]
        self.values: Floats = np.zeros(len(prompts), dtype=np.float64)  # [I]
        self.broken = np.zeros(len(prompts), dtype=np.bool_)
        self.digests = np.zeros(len(prompts), dtype=np.int64)

    def note(self, rows: np.ndarray, images: Images, said: Tensor, values: Tensor, kind: str) -> None:
        """Keep what was found for the prompts `rows`; a broken image is given nothing, as in the benchmark."""
        self.broken[rows] = is_broken(images)
        self.digests[rows] = image_digests(images)
        said = torch.nan_to_num(said, nan=0.0).float().cpu()
        self.probabilities[rows] = np.where(self.broken[rows][:, None], np.float32(0), said.numpy())
        in_vain = math.log(PROBABILITY_FLOOR) if kind == "log_probability" else 0.0
        self.values[rows] = torch.nan_to_num(values.double(), in_vain, in_vain, in_vain).cpu().numpy()


def _pieces(live: LiveDenoiser, layers: Sequence[str]) -> Iterator[_Piece]:
    """The parameters of `layers`, with the values they are blended from."""
    for row, layer in enumerate(layers):
        for parameter, read in live.sources(layer):
            yield _Piece(row, parameter, read)


@contextmanager
def _reduced(pieces: Sequence[_Piece], layers: int, donors: int) -> Iterator[Tensor]:
    """While it lasts, the parameters ask for gradients, and whatever they get is reduced to gradients, [L, D] float64."""
    device = pieces[0].parameter.device if pieces else None
    totals = torch.zeros(layers, donors, dtype=torch.float64, device=device)
    hooks = [piece.parameter.register_post_accumulate_grad_hook(_reducer(piece, totals)) for piece in _ready(pieces)]
    try:
        yield totals
    finally:
        for hook in hooks:
            hook.remove()
        for piece in pieces:
            piece.parameter.requires_grad_(False)
            piece.parameter.grad = None


def _ready(pieces: Sequence[_Piece]) -> Iterator[_Piece]:
    for piece in pieces:
        piece.parameter.requires_grad_(True)
        yield piece


def _reducer(piece: _Piece, totals: Tensor) -> Any:
    """What is done with a parameter's gradient: its dot product with every difference, and away with it."""

    def reduce(parameter: Tensor) -> None:
        gradient, parameter.grad = parameter.grad, None
        if gradient is None:
            return
        wide = torch.promote_types(gradient.dtype, torch.float32)
        flat, (held, donors) = gradient.reshape(-1).to(wide), piece.read()
        base = held.to(wide)
        for column, donor in enumerate(donors):
            totals[piece.row, column] += (donor.to(wide) - base).mul_(flat).sum(dtype=torch.float64)

    return reduce
