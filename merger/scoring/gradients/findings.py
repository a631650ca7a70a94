"""What a gradient step finds out about its prompts, collected micro-batch by micro-batch."""

from __future__ import annotations

import math
import time

import numpy as np
import torch
from torch import Tensor

from benchmark.evaluate.runner import Evaluation, asked_matrix, tags_asked
from benchmark.evaluate.scores import PROBABILITY_FLOOR, Floats
from benchmark.images import Images, image_digests, is_broken
from benchmark.prompts.prompt_set import Prompt
from merger.scoring.objective import TAGGER


class StepFindings:
    """The findings on I prompts that ask for T tags in all; `tags` are these, in the order of the columns."""

    def __init__(self, prompts: tuple[Prompt, ...]) -> None:
        self.prompts, self.tags = prompts, tags_asked(prompts)
        self.asked = asked_matrix(prompts, self.tags)  # [I, T]
        self.probabilities = np.zeros(self.asked.shape, dtype=np.float32)  # [I, T]
        self.values: Floats = np.zeros(len(prompts), dtype=np.float64)  # [I], each prompt's part of the score
        self.broken = np.zeros(len(prompts), dtype=np.bool_)
        self.digests = np.zeros(len(prompts), dtype=np.int64)
        self.base = torch.zeros(0)  # [I, T], log probabilities of the base's images; empty without floors
        self._began = time.perf_counter()

    def note(self, rows: np.ndarray, images: Images, probabilities: Tensor, values: Tensor, kind: str) -> None:
        """Notes the findings on the prompts `rows`. A broken image has found nothing, as in the benchmark.

        images: uint8 [B, H, W, 3]. probabilities: [B, T]. values: [B]. kind: the metric's.
        """
        self.broken[rows] = is_broken(images)
        self.digests[rows] = image_digests(images)
        found = torch.nan_to_num(probabilities, nan=0.0).float().cpu()
        self.probabilities[rows] = np.where(self.broken[rows][:, None], np.float32(0), found.numpy())
        least = math.log(PROBABILITY_FLOOR) if kind == "log_probability" else 0.0
        self.values[rows] = torch.nan_to_num(values.double(), least, least, least).cpu().numpy()

    def evaluation(self) -> Evaluation:
        """The findings as an evaluation by the search's tagger."""
        seconds = time.perf_counter() - self._began
        return Evaluation(self.prompts, self.tags, {TAGGER: self.probabilities}, self.broken, self.digests, seconds)
