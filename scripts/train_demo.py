"""Rebuild the demo family from seeds: pictures, autoencoder, base model, donors, tagger and judge.

    python -m scripts.train_demo                  # everything, resuming where the last call stopped
    python -m scripts.train_demo --only vae,base  # some stages
    python -m scripts.train_demo --work DIR       # where the half-done state is kept (default .work/demo)

Each stage leaves one file in the work folder and is skipped when it is there; a stage that was interrupted goes on from
its last saved step. On two cores the whole takes about three hours. The finished family is written to demo/.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

from scripts.demo_autoencoder import latents, vae
from scripts.demo_denoisers import DONORS, base, checkpoints, donors, words
from scripts.demo_taggers import classifiers, judge, tagger
from scripts.demo_training import SEED, Context, pictures

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Run the stages asked for, in order."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help="stages to run, separated by commas; default: all")
    parser.add_argument("--work", type=Path, default=ROOT / ".work" / "demo")
    parser.add_argument("--demo", type=Path, default=ROOT / "demo")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--donors", help="which donors to train, separated by commas; default: all")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; default: torch's own choice")
    parser.add_argument("--seed", type=int, default=SEED, help="another one makes another family")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    stages = {
        "pictures": pictures, "vae": vae, "latents": latents, "base": base, "words": words,
        "tagger": tagger, "judge": judge, "donors": donors, "checkpoints": checkpoints, "classifiers": classifiers,
    }  # fmt: skip
    chosen = options.only.split(",") if options.only else list(stages)
    if unknown := [name for name in chosen if name not in stages]:
        print(f"error: no stage is called {unknown[0]!r}; there are: {', '.join(stages)}", file=sys.stderr)
        return 2
    donors_chosen = options.donors.split(",") if options.donors else [donor.name for donor in DONORS]
    if unknown := [name for name in donors_chosen if name not in [donor.name for donor in DONORS]]:
        print(f"error: no donor is called {unknown[0]!r}", file=sys.stderr)
        return 2
    context = Context(options.work, options.demo, torch.device(options.device), tuple(donors_chosen), options.seed)
    context.work.mkdir(parents=True, exist_ok=True)
    for name in chosen:
        started = time.time()
        print(f"== {name}", flush=True)
        stages[name](context)
        print(f"== {name}: {time.time() - started:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
