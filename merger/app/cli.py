"""The command line: parses arguments, calls the command, and turns errors into exit statuses.

Results go to standard output, everything else to standard error. Status: 0 done, 1 failed, 2 wrong use or bad input,
130 stopped by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP. Importing this module loads nothing heavy; each command imports
what it needs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmark.app import cli as benchmark_cli
from benchmark.app.interrupt import ending, exit_status
from benchmark.app.output import printing
from benchmark.errors import InputError, check_working_directory, memory_said, surroundings_said
from merger.errors import BlendNotApplied, Stopped
from merger.version import __version__

EXAMPLES = """examples:
  merger search demo/search.yaml             search, choose the winner, write the checkpoint and the report
  merger status demo                         say how far it is
  merger export demo --dtype fp16            write the winner again, in another precision
  merger verify runs/demo/best.safetensors   rebuild it from its recipe and compare
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command. Returns the exit status."""
    return printing(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int:
    args = make_parser().parse_args(argv)

    try:
        with ending(), memory_said(), surroundings_said():
            if args.command not in ("list", "status"):  # which need no torch
                check_working_directory()
            return int(args.run(args))
    except InputError as error:
        for line in error.lines:
            print(f"error: {line}", file=sys.stderr)
        return 2
    except BlendNotApplied as error:
        print(f"failed: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except Stopped as stopped:
        print(f"\n{stopped}", file=sys.stderr)
        return stopped.status
    except KeyboardInterrupt as stop:
        goes_on = args.run is benchmark_cli.run
        print(benchmark_cli.STOPPED if goes_on else "stopped; nothing was left half-written", file=sys.stderr)
        return exit_status(stop)


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands. Each sets `run`, the function that does the work."""
    parser = argparse.ArgumentParser(
        "merger",
        allow_abbrev=False,  # `--dtyp fp16` must not write a file
        description="Finds the per-layer blend of checkpoints that best draws what its prompts ask for.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"layermerge {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    search = _command(commands, "search", "begin a search, or continue it", "merger search search.yaml --set steps=12")
    search.add_argument("config", type=Path, metavar="CONFIG.yaml", help="the search's configuration")
    search.add_argument(
        "--name", help="name of the run, in runs/NAME (default: the configuration's `name`, or its file's)"
    )
    search.add_argument("--storage", metavar="URL", help="database of the study (default: runs/NAME/study.db)")
    _search_options(search)

    resume = _command(commands, "resume", "continue a search from its run folder", "merger resume runs/demo")
    resume.add_argument("target", metavar="RUN", help="a run folder, or a name under runs/")
    _search_options(resume)

    status = _command(commands, "status", "say how far a search is", "merger status demo")
    status.add_argument("target", metavar="RUN", help="a run folder, or a name under runs/")
    _json(status)

    runs = _command(commands, "list", "list the runs", "merger list --json")
    runs.add_argument("folder", nargs="?", type=Path, help="the folder of the runs (default: runs/)")
    _json(runs)

    export = _command(commands, "export", "write a blend as a checkpoint", "merger export demo --trial 12")
    export.add_argument("target", metavar="RUN", help="a run folder, or a name under runs/")
    export.add_argument(
        "--trial", type=int, metavar="N", help="which trial's blend (default: the winner, or the best so far)"
    )
    export.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="the file to write (default: RUN/best.safetensors or RUN/trial-N.safetensors)",
    )
    _export_options(export)

    merge = _command(
        commands,
        "merge",
        "write a blend from a recipe, without a search",
        "merger merge recipe.json --output blend.safetensors",
    )
    merge.add_argument(
        "recipe",
        type=Path,
        metavar="RECIPE.json",
        help="a JSON file with base, donors and weights by layer, or a blend's .recipe.safetensors",
    )
    merge.add_argument("--output", type=Path, required=True, metavar="FILE", help="the file to write")
    _pickles(merge)
    _export_options(merge)

    convert = _command(
        commands,
        "convert",
        "write the plain tensors of a pickle as a .safetensors file",
        "merger convert old.ckpt --output new.safetensors",
    )
    convert.add_argument("file", type=Path, metavar="FILE", help="a .ckpt, .pt, .pth or .bin file")
    convert.add_argument("--output", type=Path, required=True, metavar="FILE", help="the file to write")
    _json(convert)

    verify = _command(
        commands, "verify", "rebuild a blend from its recipe and compare", "merger verify best.safetensors --score"
    )
    verify.add_argument("file", type=Path, metavar="FILE", help="a checkpoint that `merger` wrote")
    verify.add_argument(
        "--run", dest="target", metavar="RUN", help="the run it came from (default: the folder it lies in)"
    )
    verify.add_argument("--score", action="store_true", help="load it from disk and score it again")
    verify.add_argument(
        "--search",
        action="append",
        default=[],
        type=Path,
        metavar="FOLDER",
        help="a folder to look for its sources in; may be given several times",
    )
    _pickles(verify)
    _json(verify)

    inspect = _command(
        commands,
        "inspect",
        "say what checkpoints are and whether they are compatible",
        "merger inspect a.safetensors b.safetensors",
    )
    inspect.add_argument("files", nargs="+", type=Path, metavar="FILE", help="checkpoints; the first is the base")
    inspect.add_argument(
        "--pipeline", type=Path, metavar="FOLDER", help="a pipeline configuration that the base must match"
    )
    inspect.add_argument(
        "--hash", action="store_true", help="also read the files: SHA-256, and values that are not finite"
    )
    _pickles(inspect)
    _json(inspect)

    extract = _command(
        commands,
        "extract",
        "write a checkpoint's difference from a base as a LoRA",
        "merger extract runs/portraits/best.safetensors --base base.safetensors --output lora.safetensors",
    )
    extract.add_argument("model", type=Path, metavar="MODEL", help="the checkpoint, or an adapter of the base")
    extract.add_argument("--base", type=Path, required=True, metavar="FILE", help="what its difference is taken from")
    extract.add_argument("--rank", type=int, default=32, metavar="N", help="the LoRA's rank (default: 32)")
    extract.add_argument("--output", type=Path, required=True, metavar="FILE", help="the file to write")
    extract.add_argument("--dtype", choices=("fp16", "bf16", "fp32"), default="fp16", help="its type (default: fp16)")
    _pickles(extract)
    _json(extract)

    rank = _command(
        commands,
        "rank",
        "say which checkpoints and LoRAs of a folder a base would gain from",
        "merger rank search.yaml loras/ models/ --page ranking.html",
    )
    rank.add_argument("config", type=Path, metavar="CONFIG.yaml", help="a search's configuration")
    rank.add_argument(
        "paths",
        nargs="*",
        type=Path,
        metavar="PATH",
        help="files, and folders of files, to rank instead of the configuration's donors",
    )
    rank.add_argument(
        "--chunks",
        type=int,
        default=8,
        metavar="N",
        help="how many times the configuration's `prompts` to score the base on, each time new ones (default: 8)",
    )
    rank.add_argument("--page", type=Path, metavar="FILE.html", help="also write a page with a heat map")
    rank.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the file")
    _pickles(rank)
    _json(rank)

    benchmark = _command(
        commands,
        "benchmark",
        "score checkpoints without a search",
        "merger benchmark a.safetensors b.safetensors --pipeline sd15/ --tagger wd-tagger/",
    )
    benchmark_cli.add_arguments(benchmark)
    benchmark.set_defaults(run=benchmark_cli.run)
    return parser


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, summary: str, example: str
) -> argparse.ArgumentParser:
    """A command's parser. Its `run` calls the function of the same name in `merger.app.commands`, imported then."""
    parser = commands.add_parser(
        name,
        allow_abbrev=False,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def run(args: argparse.Namespace) -> int:
        from merger.app import commands as functions

        return int(getattr(functions, name if name != "list" else "list_")(args))

    parser.set_defaults(run=run)
    return parser


def _export_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dtype", choices=("fp16", "bf16", "fp32"), help="number format of all weights (default: the base's)"
    )
    parser.add_argument(
        "--denoiser-only", action="store_true", help="leave out text encoders and VAE, as ComfyUI wants it"
    )
    parser.add_argument(
        "--format",
        choices=("base", "diffusers"),
        default="base",
        help="diffusers: write a folder (default: the base's form)",
    )
    parser.add_argument("--pipeline", type=Path, metavar="FOLDER", help="pipeline configuration of a single file")
    parser.add_argument(
        "--nonfinite",
        choices=("refuse", "clamp", "keep"),
        default="refuse",
        help="NaN and infinite values: refuse; clamp values beyond a type's range; keep them (default: refuse)",
    )
    parser.add_argument("--mecha", type=Path, metavar="FILE", help="also write the recipe in sd-mecha's form")
    _json(parser)


def _pickles(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow-pickle", action="store_true", help="also read .ckpt, .pt and .bin files, but only plain tensors"
    )


def _search_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--trials", type=int, metavar="N", help="the most trials, including those already done")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a key of the file; may be given several times",
    )
    _pickles(parser)
    _json(parser)


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
