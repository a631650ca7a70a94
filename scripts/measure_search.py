"""How far each way of searching comes, for its images and seconds: strategies x seeds on the demo family.

    python -m scripts.measure_search --strategies "reference; gradient search" --seeds 101,102,103,104,105
    python -m scripts.measure_search --table measured            # the table, the plot and the JSON from what is there

Each pair of strategy and seed is a job with a folder of its own and goes on where it was broken off; two calls with
other seeds can work side by side. A finished job is one line of `--results`. The last line printed is JSON.

What is measured: the tag accuracy, on test prompts that nothing was chosen on, of the blend that the strategy would
have chosen after so many images, by the tagger that it follows and by the judge. The published way takes the best
observed blend; ours takes the best of five on validation prompts at its end, before it the best observed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmark.evaluate.runner import Evaluation
from merger.app.method import choose_method
from merger.app.runtime import Runtime, load_runtime
from merger.app.session import open_session
from merger.scoring.evaluation_cache import EvaluationCache
from merger.scoring.objective import JUDGE, TAGGER, evaluate_blend
from merger.scoring.selection import finalists_of
from merger.search.baselines import baselines_of
from merger.search.trials import TrialRecord, distinct_best
from merger.weights import Weights
from scripts.search_table import complete, write_table
from scripts.strategies import STRATEGIES, configuration, follow

ROOT = Path(__file__).resolve().parent.parent
BUDGETS = (1000, 2500, 5000, 10_000)


class Tester:
    """Scores blends on the validation and test prompts of one seed; each blend once, whatever strategy found it."""

    def __init__(self, runtime: Runtime, folder: Path) -> None:
        self.runtime, self.exam = runtime, runtime.exam
        folder.mkdir(parents=True, exist_ok=True)
        fingerprints = {name: tagger.fingerprint for name, tagger in self.exam.taggers.items()}
        self.cache = EvaluationCache(folder, self.exam.prompts, fingerprints)

    def __call__(self, which: str, weights: Weights) -> Evaluation:
        """A blend on the `validation` or `test` prompts."""
        kept = self.cache.get(which, weights)
        if kept is None:
            runtime, exam = self.runtime, self.exam
            kept = evaluate_blend(runtime.live, runtime.generator, exam.taggers, exam.prompts[which], weights)
            self.cache.put(which, weights, kept)
        return kept

    def accuracies(self, weights: Weights) -> dict[str, float]:
        """{tagger: tag accuracy on test prompts}."""
        test = self("test", weights)
        return {name: test.accuracy(name, self.exam.thresholds[name]).value for name in (TAGGER, JUDGE)}


def measure(search: Path, name: str, seed: int, work: Path, images: int, threads: int) -> dict[str, Any]:
    """One job: the curve, the end, and the parents of this seed."""
    strategy = STRATEGIES[name]
    config = configuration(search, strategy, seed, threads, work / f"noise-{seed}", test_prompts=256)
    session = open_session(config)
    runtime = load_runtime(session, gradients=choose_method(session).follows_gradients)
    tester = Tester(runtime, work / f"tests-{seed}{'-noise' if strategy.noise else ''}")
    sightings = follow(session, runtime, work / f"{name.replace(' ', '-').replace(',', '')}-{seed}", strategy, images)
    curve = []
    for budget in BUDGETS:
        seen = [sighting for sighting in sightings if sighting.images <= budget]
        if seen and budget <= sightings[-1].images:
            best = distinct_best([sighting.record for sighting in seen], 1)[0]
            curve.append({"images": budget, "seconds": seen[-1].seconds, **tester.accuracies(best.weights)})
    records, sources = [sighting.record for sighting in sightings], session.sources
    chosen, images_more, seconds_more = choose(records, tester, published=strategy.published)
    parents = {each.name: tester.accuracies(each.weights) for each in baselines_of(sources.space, sources.base.name)}
    return {
        "strategy": name,
        "seed": seed,
        "images": sightings[-1].images + images_more,
        "seconds": round(sightings[-1].seconds + seconds_more, 1),
        "observed": max(record.value for record in records),
        "final": tester.accuracies(chosen.weights),
        "curve": curve,
        "parents": parents,
        "settings": asdict(strategy)["settings"],
    }


def choose(records: Sequence[TrialRecord], tester: Tester, *, published: bool) -> tuple[TrialRecord, int, float]:
    """The trial taken at the end, and the images and seconds that choosing took."""
    if published:
        return distinct_best(records, 1)[0], 0, 0.0
    scored = [(tester("validation", record.weights), record) for record in finalists_of(records)]
    threshold = tester.exam.thresholds[TAGGER]
    _, best = max(scored, key=lambda pair: pair[0].accuracy(TAGGER, threshold).value)
    return best, sum(len(e.prompts) for e, _ in scored), sum(e.seconds for e, _ in scored)


def main() -> int:
    """Run the jobs that are missing, then write what there is."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--search", type=Path, default=ROOT / "demo" / "search.yaml")
    parser.add_argument("--strategies", default="", help=f"separated by ';', of: {'; '.join(STRATEGIES)}")
    parser.add_argument("--seeds", default="101,102,103,104,105")
    parser.add_argument(
        "--images", type=int, default=5000, help="what a search may make (a gradient search ends by itself)"
    )
    parser.add_argument("--reference-images", type=int, default=10_000, help="the same of the published way")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=ROOT / ".work" / "search")
    parser.add_argument("--results", type=Path, default=ROOT / ".work" / "search" / "results.jsonl")
    parser.add_argument("--table", type=Path, help="folder that gets tables and plots of what all these seeds have")
    given = parser.parse_args()
    names = [name.strip() for name in given.strategies.split(";") if name.strip()]
    if unknown := [name for name in names if name not in STRATEGIES]:
        print(f"error: no strategy is called {unknown[0]!r}; there are: {'; '.join(STRATEGIES)}", file=sys.stderr)
        return 2
    given.results.parent.mkdir(parents=True, exist_ok=True)
    seeds = [int(seed) for seed in given.seeds.split(",")]
    for seed in seeds:
        for name in names:
            if any((row["strategy"], row["seed"]) == (name, seed) for row in read_rows(given.results)):
                continue
            began = time.time()
            images = given.reference_images if STRATEGIES[name].published else given.images
            row = measure(given.search, name, seed, given.work, images, given.threads)
            with given.results.open("a") as lines:
                lines.write(json.dumps(row) + "\n")
            final = row["final"]
            print(
                f"{name}, seed {seed}: {final[TAGGER]:.4f} (judge {final[JUDGE]:.4f}) after {row['images']} images, "
                f"{row['seconds']:.0f} s; {time.time() - began:.0f} s in all",
                file=sys.stderr,
            )
    print(json.dumps(write_table(complete(read_rows(given.results), seeds), given.table)))
    return 0


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The finished jobs."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


if __name__ == "__main__":
    raise SystemExit(main())
