"""The evaluation of blends after the search, on validation and test prompts; each is made once and kept on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from benchmark.evaluate.runner import Evaluation
from benchmark.taggers.tagger import Tagger
from merger.app.interrupt import Interrupt
from merger.app.runs import Run
from merger.app.runtime import Runtime
from merger.report.progress import SearchProgress
from merger.scoring.evaluation_cache import EvaluationCache
from merger.scoring.objective import TAGGER, evaluate_blend
from merger.scoring.reward_hacking import THUMBNAILS, Thumbnails, changed_taggers
from merger.scoring.selection import SHOWN
from merger.weights import Weights, key_of


class FinalEvaluation:
    """Evaluates blends on the prompt sets `validation` and `test`. See `merger.scoring.selection.Evaluate`.

    On validation prompts, where the winner is chosen, the tagger also sees every image slightly changed. A Ctrl-C ends
    an evaluation after the current batch of images, with `KeyboardInterrupt`. check: raises an error if the sources of
    the blends have changed; asked before an evaluation is kept.
    """

    def __init__(
        self,
        runtime: Runtime,
        run: Run,
        progress: SearchProgress,
        interrupt: Interrupt,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.check = check
        self.names: dict[str, str] = {}
        self.done = 0
        self.runtime, self.progress, self.interrupt = runtime, progress, interrupt
        exam = runtime.exam
        self.taggers: Mapping[str, Mapping[str, Tagger]] = {
            "test": exam.taggers,
            "validation": {**exam.taggers, **changed_taggers(exam.taggers[TAGGER])},
        }
        self.caches = {
            which: EvaluationCache(
                run.scores, exam.prompts, {name: tagger.fingerprint for name, tagger in taggers.items()}
            )
            for which, taggers in self.taggers.items()
        }

    def expect(self, which: str, models: Sequence[tuple[str, Weights]]) -> None:
        """The blends that will be evaluated on the prompts `which`, by name. One of several names has the first."""
        self.names = {}
        for name, weights in models:
            self.names.setdefault(key_of(weights), name)
        self.done = 0

    def __call__(self, which: str, weights: Weights) -> Evaluation:
        """The evaluation of a blend on the prompts `which`; read from the run's folder if it was made before."""
        self.done += 1
        exam = self.runtime.exam
        title = f"{which} {self.done} of {len(self.names)}: {self.names.get(key_of(weights), 'a blend')}"
        kept = self.caches[which].get(which, weights)
        if kept is not None:
            self._say(title, kept, " (made before)")
            return kept
        self.progress.start(title)
        evaluation = evaluate_blend(
            self.runtime.live,
            self.runtime.generator,
            self.taggers[which],
            exam.prompts[which],
            weights,
            report=self._report,
            keep_images=SHOWN if which == "test" else 0,
            extractors={THUMBNAILS: Thumbnails()} if which == "validation" else None,
        )
        self.check()
        self.caches[which].put(which, weights, evaluation)
        self._say(title, evaluation)
        return evaluation

    def _say(self, title: str, evaluation: Evaluation, remark: str = "") -> None:
        """The line of a model that is evaluated: `validation 3 of 10: trial 104 0.8953 ± 0.0105`."""
        accuracy = evaluation.accuracy(TAGGER, self.runtime.exam.thresholds[TAGGER])
        self.progress.say(f"{title} {accuracy.value:.4f} ± {accuracy.stderr:.4f}{remark}")

    def _report(self, images: int, value: float) -> None:
        self.interrupt.stop_if_asked()
        self.progress.drawn(images, value)
