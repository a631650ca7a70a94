"""What `measure_search` compares: strategies as changes to one search file, the published method, and noise for donors.

A strategy yields sightings: (images made so far, seconds so far, the trial) in the order of its trials. A step of the
gradient search, on prompts of its own, costs images and seconds and is no sighting.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from merger.app.identity import identity_of
from merger.app.memory_planner import plan_memory
from merger.app.method import choose_method, search_settings
from merger.app.runs import Run
from merger.app.runtime import Runtime
from merger.app.session import Session
from merger.config.config import Config
from merger.config.loading import load_config
from merger.search.artifacts import Artifacts
from merger.search.baselines import baselines_of
from merger.search.locks import study_lock
from merger.search.loop import search
from merger.search.study import open_study
from merger.search.trials import STEP, Score, TrialRecord


@dataclass(frozen=True)
class Strategy:
    """One way to search: `settings` replace those of the search file."""

    about: str
    settings: Mapping[str, Any]
    published: bool = False
    noise: bool = False


_UNLIMITED = {"patience": 10**6, "trials": 10**6, "time_limit": None, "baselines": ["uniform"]}
_FIXED = {**_UNLIMITED, "prompts": 64, "granularity": "stage"}
_GRADIENT = {
    **_UNLIMITED,
    "method": "gradient",
    "granularity": "tensor",
    "gradient.searches": 1,
    "gradient.steps": 48,
    "gradient.learning_rate": 0.06,
    "gradient.decay": 1.0,
    "gradient.eps": 1e-3,
    "gradient.backprop_fraction": 0.5,
    "gradient.backprop_steps": "last",
    "gradient.chain": 1.0,
}
_CHANNEL = {
    **_GRADIENT,
    "granularity": "channel",
    "gradient.steps": 68,
    "gradient.decay": 0.25,
    "gradient.eps": 0.3,
    "gradient.backprop_fraction": 0.25,
    "gradient.backprop_steps": "spread",
    "gradient.chain": 0.0,
}

WAYS: Mapping[str, Strategy] = {
    "reference": Strategy(
        "the published way: a Gaussian process (bayesian-optimization), base probed first, four random points, "
        "64 fixed prompts, hits counted, the best observed blend taken",
        {**_FIXED, "objective": "accuracy", "method": "random", "bounds": [0, 1]},
        published=True,
    ),
    "random": Strategy("draws within the bounds", {**_FIXED, "method": "random"}),
    "tpe": Strategy("multivariate TPE on hits", {**_FIXED, "method": "tpe", "objective": "accuracy"}),
    "black box": Strategy("CMA-ES on probabilities, opened by the uniform average", {**_FIXED, "method": "cmaes"}),
    "black box, hits": Strategy("the same on hits", {**_FIXED, "method": "cmaes", "objective": "accuracy"}),
    "black box, pruned": Strategy("the same, hopeless trials pruned", {**_FIXED, "method": "cmaes", "pruning": True}),
    "gradient search": Strategy("a weight per tensor, 48 steps, gradients through the last 4 of 8", _GRADIENT),
    "gradient search, five times as long": Strategy("240 steps", {**_GRADIENT, "gradient.steps": 240}),
    "gradient search, noise donors": Strategy(
        "control: donors replaced by noise of the same norm", _GRADIENT, noise=True
    ),
    "gradient search, channel": Strategy(
        "a weight per output channel, 68 steps, detached gradients through 2 of 8 sampling steps", _CHANNEL
    ),
    "gradient search, channel, falling": Strategy(
        "64 steps by channel, whose learning rate falls from the first one on",
        {**_CHANNEL, "gradient.steps": 64, "gradient.learning_rate": 0.09, "gradient.decay": 1.0},
    ),
    "gradient search, channel, three searches": Strategy(
        "the weights of three searches by channel of 100 steps averaged, and their strength tuned",
        {**_CHANNEL, "gradient.steps": 100, "gradient.searches": 3},
    ),
    "gradient search, channel, noise donors": Strategy(
        "control: the same 68 steps on donors replaced by noise of the same norm", _CHANNEL, noise=True
    ),
}

VARIANTS: Mapping[str, Strategy] = {
    "gradient search, stage": Strategy("a weight per stage and donor", {**_GRADIENT, "granularity": "stage"}),
    "gradient search, module": Strategy("a weight per module and donor", {**_GRADIENT, "granularity": "module"}),
    "gradient search, noise, module": Strategy("control by module", {**_GRADIENT, "granularity": "module"}, noise=True),
    "gradient search, noise, stage": Strategy("control by stage", {**_GRADIENT, "granularity": "stage"}, noise=True),
    "gradient search, narrow": Strategy("bounds 0 to 1", {**_GRADIENT, "bounds": [0, 1]}),
    "gradient search, last quarter": Strategy(
        "backpropagation through a quarter of the sampling steps", {**_GRADIENT, "gradient.backprop_fraction": 0.25}
    ),
    "gradient search, all steps": Strategy(
        "backpropagation through all sampling steps", {**_GRADIENT, "gradient.backprop_fraction": 1.0}
    ),
}
"""The gradient search with one thing changed, to be compared with `gradient search` seed by seed."""

STRATEGIES: Mapping[str, Strategy] = {**WAYS, **VARIANTS}


@dataclass(frozen=True)
class Sighting:
    """A blend that a strategy scored on its fixed prompts, and what everything had cost by then."""

    images: int
    seconds: float
    record: TrialRecord


def configuration(file: Path, strategy: Strategy, seed: int, threads: int, noise: Path, **more: Any) -> Config:
    """The search file with a strategy's settings; `noise` is where the noise donors of this seed are."""
    settings = {**strategy.settings, "seed": seed, "threads": threads, **more}
    changes = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    config = load_config(file, changes)
    if not strategy.noise:
        return config
    donors = make_noise_donors(config, seed, noise)
    return load_config(file, [*changes, *(f"donors.{place}={path}" for place, path in enumerate(donors))])


def make_noise_donors(config: Config, seed: int, folder: Path) -> list[Path]:
    """Checkpoints that differ from the base by noise of the norm that each tensor of each donor differs by."""
    import torch
    from safetensors.torch import load_file, save_file

    folder.mkdir(parents=True, exist_ok=True)
    base = load_file(config.base)
    written = []
    for place, donor in enumerate(config.donors):
        path = folder / f"noise-{donor.path.stem}.safetensors"
        written.append(path)
        if path.exists():
            continue
        draw = torch.Generator().manual_seed(seed * 1000 + place)
        tensors = {}
        for key, tensor in load_file(donor.path).items():
            difference = tensor.double() - base[key].double()
            noise = torch.randn(tensor.shape, generator=draw, dtype=torch.float64)
            scaled = noise * (difference.norm() / noise.norm().clamp(min=1e-30))
            tensors[key] = (base[key].double() + scaled).to(tensor.dtype)
        part = path.with_suffix(".part")
        save_file(tensors, part)
        part.replace(path)
    return written


def follow(session: Session, runtime: Runtime, folder: Path, strategy: Strategy, images: int) -> list[Sighting]:
    """Runs a strategy until it has made `images`, resuming what `folder` holds. A gradient search takes its steps."""
    folder.mkdir(parents=True, exist_ok=True)
    if strategy.published:
        return list(_published(session, runtime, folder / "trials.jsonl", images))
    config, sources = session.config, session.sources
    space, choice = sources.space, choose_method(session)
    run = Run(folder)
    storage = run.storage(config)
    identity = identity_of(config, sources, session.exam, choice)
    with study_lock(storage, "search"):
        study = open_study(
            storage,
            "search",
            space,
            identity=identity,
            baselines=baselines_of(space, sources.base.name),
            artifacts=Artifacts(run.artifacts),
        )

        def enough() -> bool:
            if choice.follows_gradients:
                return False
            return sum(record.score.images for record in study.records()) >= images

        steps = plan_memory(session, runtime, gradients=choice.follows_gradients).steps
        search(
            runtime.objective,
            study,
            search_settings(session, choice.method),
            take_step=steps,
            pruned=runtime.pruned_objective if config.pruning else None,
            interrupted=enough,
        )
        done = study.records()
    return [Sighting(*cost, record) for record, cost in zip(done, _cost(done), strict=True) if record.role != STEP]


def _cost(records: list[TrialRecord]) -> list[tuple[int, float]]:
    """(images, seconds) up to each trial. A step's images count as many times as it took longer than plain ones."""
    plain = [record.score.seconds / record.score.images for record in records if record.role != STEP]
    rate = float(np.median(plain)) if plain else math.inf
    images, seconds, costs = 0.0, 0.0, []
    for record in records:
        seconds += record.score.seconds
        images += max(record.score.images, record.score.seconds / rate) if record.role == STEP else record.score.images
        costs.append((round(images), seconds))
    return costs


def _published(session: Session, runtime: Runtime, file: Path, images: int) -> Iterator[Sighting]:
    """RimoChan's merging scripts: a Gaussian process proposes, hits on fixed prompts answer."""
    from bayes_opt import BayesianOptimization

    objective, space = runtime.objective, session.sources.space
    bounds = {parameter.name: (parameter.low, parameter.high) for parameter in space.parameters}
    optimizer = BayesianOptimization(None, bounds, random_state=session.config.seed, verbose=0)
    random = np.random.default_rng(session.config.seed)
    drawn, seconds, trial = 0, 0.0, 0
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    while drawn < images:
        if trial < len(rows):
            row = rows[trial]
        else:
            began = time.perf_counter()
            if trial == 0:
                point = dict.fromkeys(bounds, 0.0)
            elif trial <= 4:
                point = {name: float(random.uniform(low, high)) for name, (low, high) in bounds.items()}
            else:
                point = {name: float(value) for name, value in optimizer.suggest().items()}
            score = objective(space.to_weights(point))
            row = {"point": point, "score": asdict(score), "seconds": time.perf_counter() - began}
            with file.open("a") as lines:
                lines.write(json.dumps(row) + "\n")
        record = TrialRecord(trial, "search", "", space.to_weights(row["point"]), Score(**row["score"]))
        optimizer.register(params=row["point"], target=record.value)
        drawn, seconds, trial = drawn + record.score.images, seconds + row["seconds"], trial + 1
        yield Sighting(drawn, seconds, record)
