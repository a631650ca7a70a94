"""The command line of the benchmark: `python -m benchmark MODEL...`, and the same as `merger benchmark`.

Tables go to standard output, progress and errors to standard error. Status 0 done, 2 bad input, 130 stopped by
Ctrl-C, 143 by SIGTERM, 129 by SIGHUP.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.app.interrupt import ending, exit_status
from benchmark.errors import InputError, files_said, memory_said
from benchmark.prompts.text import plain_text
from benchmark.taggers.registry import tagger_kinds

if TYPE_CHECKING:
    from benchmark.app.benchmark import Benchmark
    from benchmark.metrics.calibration import Effort

DESCRIPTION = (
    "Draws prompts made of tags, asks a tagger which tags it finds again, and compares models by their tag accuracy: "
    "the share of the tags asked for that is found, which is the recall of these tags."
)
EXAMPLE = """example:
  python -m benchmark a.safetensors b.safetensors --pipeline sd15/ --tagger wd-tagger/ --tags top:200 --prompts 100

The first model is the one the others are compared with. Interrupted, the same command goes on where it stopped; what
is drawn is kept in OUTPUT/rows and never drawn again for the same model, prompts, settings and taggers.
"""


STOPPED = "Stopped. The same command goes on from here."

GRID_PROMPTS = 4  # of the prompt set, where a grid is given none


def main(argv: Sequence[str] | None = None) -> int:
    """Run `python -m benchmark`. Returns the exit status."""
    parser = argparse.ArgumentParser(
        "python -m benchmark",
        allow_abbrev=False,
        description=DESCRIPTION,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    args = parser.parse_args(argv)
    try:
        with ending(), memory_said(), files_said():
            return run(args)
    except InputError as error:
        for line in error.lines:
            print(f"error: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(STOPPED, file=sys.stderr)
        return exit_status(stop)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a parser the benchmark's arguments; `run` takes what it parses."""
    parser.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="a .safetensors file, a diffusers folder or a hub id; NAME=MODEL names it in the tables",
    )
    judged = parser.add_argument_group("taggers and tags")
    judged.add_argument("--tagger", metavar="FOLDER", help="finds the tags again; a folder or a hub id")
    judged.add_argument("--tagger-kind", choices=tagger_kinds(), help="if it holds several")
    judged.add_argument("--judge", metavar="FOLDER", help="a second tagger, to check the first")
    judged.add_argument("--judge-kind", choices=tagger_kinds(), help="if it holds several")
    judged.add_argument(
        "--threshold", type=float, help="probability from which a tag is found (what suits a known tagger, else 0.5)"
    )
    judged.add_argument(
        "--judge-threshold", type=float, help="the same for the judge (as --threshold; else what suits it)"
    )
    judged.add_argument(
        "--tags",
        "--vocabulary",
        default="top:200",
        metavar="FILE|top:K",
        help="a CSV with the columns tag,category,group, or the tagger's K most common general tags (%(default)s)",
    )
    extracted = parser.add_argument_group("features: what else is measured of the images")
    extracted.add_argument(
        "--clip",
        metavar="FOLDER",
        help="a transformers CLIP model, for diversity, CLIP score and R-precision",
    )
    extracted.add_argument(
        "--encoder",
        metavar="FOLDER",
        help="any transformers image encoder (DINOv2, ViT, CLIP ...), for diversity and the Fréchet distance",
    )
    extracted.add_argument(
        "--inception-classifier", metavar="FOLDER", help="a transformers image classifier, for the Inception Score"
    )
    extracted.add_argument(
        "--frechet",
        type=Path,
        metavar="FOLDER",
        help="reference images, for the Fréchet distance to them by --encoder or --clip",
    )
    extracted.add_argument(
        "--style-vgg",
        type=Path,
        metavar="FILE",
        help="VGG-19's weights (features.N, safetensors), for the style loss; it often misjudges style",
    )
    extracted.add_argument("--style-reference", type=Path, metavar="FOLDER", help="images of the style wanted")
    extracted.add_argument("--lora", type=Path, metavar="FILE", help="draw every model with this LoRA too, and compare")
    extracted.add_argument("--lora-scale", type=float, default=1.0, help="how strongly it is added (%(default)s)")
    asked = parser.add_argument_group("prompts")
    asked.add_argument("--prompts", type=int, default=100, metavar="N", help="how many, of each size (%(default)s)")
    asked.add_argument("--images", type=int, default=1, metavar="N", help="images of each prompt (%(default)s)")
    asked.add_argument(
        "--tags-per-prompt",
        "--per-prompt",
        default="4",
        metavar="N",
        help="4, a range such as 3-6, or sizes to tell apart such as 2,4,8 (%(default)s)",
    )
    asked.add_argument("--template", default="{tags}", help="the prompt around the tags (%(default)s)")
    asked.add_argument("--negative", default="", metavar="TEXT", help="the negative prompt")
    asked.add_argument("--seed", type=int, default=0, help="of prompts and noise (%(default)s)")
    drawn = parser.add_argument_group("drawing")
    drawn.add_argument(
        "--pipeline", metavar="FOLDER", help="configuration of single files: a diffusers folder or hub id"
    )
    drawn.add_argument("--steps", type=int, default=20, help="(%(default)s)")
    drawn.add_argument("--sampler", default="dpm++2m-karras", help="default is the model's own (%(default)s)")
    drawn.add_argument("--guidance", type=float, default=7.0, help="(%(default)s)")
    drawn.add_argument("--size", default="512x512", metavar="WxH", help="(%(default)s)")
    drawn.add_argument("--clip-skip", type=int, default=1, metavar="N", help="as web UIs count it: 1 skips none (1)")
    drawn.add_argument("--batch-size", type=int, metavar="N", help="(found automatically)")
    drawn.add_argument("--device", help="cpu, cuda, cuda:1 ... (a GPU if there is one)")
    drawn.add_argument("--dtype", choices=("fp32", "fp16", "bf16"), help="(fp16 on a GPU, else fp32)")
    drawn.add_argument("--compile", action="store_true", help="compile the denoiser first: pays for many images")
    drawn.add_argument("--threads", type=int, help="processor threads of ONNX taggers (all)")
    drawn.add_argument(
        "--calibrate",
        metavar="STEPS",
        help="compare numbers of steps (8,12,20) instead of models: which is the cheapest that ranks the models alike?",
    )
    gridded = parser.add_argument_group("a grid instead of tables")
    gridded.add_argument(
        "--grid",
        metavar="ROWS,COLUMNS",
        help="one picture of the same prompts: two of models, seeds=4, steps=8:12:20, guidance=4:7:10, prompts",
    )
    gridded.add_argument(
        "--prompt",
        action="append",
        metavar="TEXT",
        help="what the grid draws; alternatives as a|b|c or {red|blue} hair; several times for several prompts "
        "(without it, the first four of the prompt set)",
    )
    drawn.add_argument(
        "--calibrate-sizes", metavar="SIZES", help="the same for sizes (384,512x512), each with every number of steps"
    )
    kept = parser.add_argument_group("results")
    kept.add_argument("--output", type=Path, default=Path("results"), metavar="DIR", help="(%(default)s)")
    kept.add_argument("--keep-images", action="store_true", help="keep every image, as WebP")
    kept.add_argument("--json", action="store_true", help="print the figures as JSON instead of tables")


def run(args: argparse.Namespace) -> int:
    """Score the models and print their tables. Returns 0. Raises InputError for bad arguments."""
    if args.grid or args.prompt:
        return _grid(args)
    from benchmark.app.benchmark import Benchmark, parse_efforts

    efforts = None
    if args.calibrate or args.calibrate_sizes:
        efforts = parse_efforts(args.calibrate or str(args.steps), args.calibrate_sizes or args.size)
    benchmark = Benchmark.from_arguments(args)
    if efforts is not None:
        return _calibrate(benchmark, efforts, args.json)
    models, samples, more = benchmark.compare()
    from benchmark.metrics.comparison import as_json, plain
    from benchmark.report.page import as_html
    from benchmark.report.scatter import save_png, scatter
    from benchmark.report.tables import as_markdown
    from benchmark.writing import write_text

    settings = benchmark.settings_for_json()
    text = json.dumps(
        {"settings": settings, "models": as_json(models), "tables": plain(more)}, indent=1, allow_nan=False
    )
    markdown = as_markdown(models, more)
    for name, content in (("result.json", text + "\n"), ("result.md", markdown)):
        write_text(args.output / name, content)
    if (chart := scatter(models)) is not None:
        save_png(chart, args.output / "scatter.png")
    write_text(args.output / "report.html", as_html(models, settings, samples, more))
    print(text if args.json else markdown, end="\n" if args.json else "")
    print(f"Pictures and tables: {args.output / 'report.html'}", file=sys.stderr)
    return 0


def _grid(args: argparse.Namespace) -> int:
    """Draw a grid and print where it is."""
    from benchmark.app.benchmark import Benchmark, make_output
    from benchmark.app.grids import alternatives, cells, draw_cells, parse_axes
    from benchmark.app.studio import Studio
    from benchmark.report.sheet import compose, save_grid

    if args.prompt:
        texts = [text for given in args.prompt for text in alternatives(given)]
        studio = Studio.from_arguments(args)
    else:
        benchmark = Benchmark.from_arguments(args)
        studio = benchmark.studio
        texts = list(dict.fromkeys(prompt.text for prompt in benchmark.prompts))[:GRID_PROMPTS]
    rows, columns = parse_axes(args.grid or "prompts,models", studio, texts, args.seed)
    wanted = cells(rows, columns, studio, texts, args.seed)
    make_output(args.output)
    drawn = draw_cells(wanted, studio, lambda done: print(f"{done}/{len(wanted)} images", file=sys.stderr))
    titles = [""] if "prompts" in (rows.kind, columns.kind) else [plain_text(text) for text in texts]
    path = save_grid(compose(drawn, rows.labels(), columns.labels(), titles), args.output)
    if args.json:
        print(json.dumps({"grid": str(path), "rows": rows.labels(), "columns": columns.labels(), "prompts": texts}))
    else:
        print(path)
    return 0


def _calibrate(benchmark: Benchmark, efforts: Sequence[Effort], as_json: bool) -> int:
    """Print how long an image takes with each number of steps and size, and how the figures change."""
    from benchmark.metrics.calibration import NEAR, cheapest
    from benchmark.metrics.comparison import plain
    from benchmark.report.calibration_table import calibration_table
    from benchmark.report.tables import table_as_markdown

    by_role = benchmark.calibrate(efforts)
    found = {role: cheapest(settings) for role, settings in by_role.items()}
    if as_json:
        figures = {
            role: {"settings": settings, "cheapest": (best := found[role]) and best.effort._asdict()}
            for role, settings in by_role.items()
        }
        print(json.dumps(plain(figures), indent=1, allow_nan=False))
        return 0
    for number, (role, settings) in enumerate(by_role.items()):
        print(("\n" if number else "") + table_as_markdown(calibration_table(settings, role)))
        best = found[role]
        if best is None:
            print("\nNo rank correlation is known: name two or more models that differ.")
        else:
            chosen = f"{best.effort.steps} steps at {best.effort.size}"
            print(f"\nThe cheapest that ranks the models alike (rank correlation {NEAR} or more), by {role}: {chosen}.")
    return 0
