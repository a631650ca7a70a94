"""The command line: parses, calls, and turns what goes wrong into an exit status.

Results go to standard output, everything else to standard error. Status: 0 done, 1 failed, 2 wrong use or bad input,
130 stopped by Ctrl-C. Importing this loads nothing heavy; each command imports what it needs.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmark.app import cli as benchmark_cli
from benchmark.errors import InputError, memory_said
from merger import __version__

EXAMPLES = """examples:
  merger search demo/search.yaml             search, choose the winner, write the checkpoint and the report
  merger status demo                         where it stands
  merger export demo --dtype fp16            the winner again, under another precision
  merger verify runs/demo/best.safetensors   rebuild it from its own recipe and compare
"""


class Stopped(Exception):
    """Ctrl-C was heard and everything finished is kept. Its text says how to go on."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit status."""
    args = make_parser().parse_args(argv)
    from merger.errors import BlendNotApplied

    try:
        with memory_said():
            return int(args.run(args))
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BlendNotApplied as error:
        print(f"failed: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except Stopped as stopped:
        print(f"\n{stopped}", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away (`merger list | head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands; each sets `run`, the function that does it."""
    parser = argparse.ArgumentParser(
        "merger",
        description="Finds the per-layer blend of checkpoints that draws what its prompts ask for.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"layermerge {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    search = _command(commands, "search", "begin a search, or continue it", "merger search search.yaml --set steps=12")
    search.add_argument("config", type=Path, metavar="CONFIG.yaml", help="what to blend, and how to search")
    search.add_argument("--name", help="name of the run: runs/NAME (the configuration's `name`, or its file's)")
    search.add_argument("--storage", metavar="URL", help="database of the study (runs/NAME/study.db)")
    _search_options(search)

    resume = _command(commands, "resume", "continue a search from its run folder", "merger resume runs/demo")
    resume.add_argument("target", metavar="RUN", help="a run folder, or a name under runs/")
    _search_options(resume)

    status = _command(commands, "status", "say where a search stands", "merger status demo")
    status.add_argument("target", metavar="RUN", help="a run folder, or a name under runs/")
    _json(status)

    runs = _command(commands, "list", "list the runs", "merger list --json")
    runs.add_argument("folder", nargs="?", type=Path, help="where the runs lie (runs/)")
    _json(runs)

    export = _command(commands, "export", "write a blend as a checkpoint", "merger export demo --trial 12")
    export.add_argument("target", metavar="RUN", help="a run folder, or a name under runs/")
    export.add_argument("--trial", type=int, metavar="N", help="which blend (the winner, else the best so far)")
    export.add_argument("--output", type=Path, metavar="FILE", help="where to (RUN/best or RUN/trial-N.safetensors)")
    _export_options(export)

    merge = _command(
        commands,
        "merge",
        "write a blend from a recipe, without a search",
        "merger merge recipe.json --output blend.safetensors",
    )
    merge.add_argument("recipe", type=Path, metavar="RECIPE.json", help="base, donors, weights by layer")
    merge.add_argument("--output", type=Path, required=True, metavar="FILE", help="where to")
    _pickles(merge)
    _export_options(merge)

    convert = _command(
        commands,
        "convert",
        "make a .safetensors file of a pickle's plain tensors",
        "merger convert old.ckpt --output new.safetensors",
    )
    convert.add_argument("file", type=Path, metavar="FILE", help="a .ckpt, .pt, .pth or .bin file")
    convert.add_argument("--output", type=Path, required=True, metavar="FILE", help="where to")
    _json(convert)

    verify = _command(
        commands, "verify", "rebuild a blend from its own recipe and compare", "merger verify best.safetensors --score"
    )
    verify.add_argument("file", type=Path, metavar="FILE", help="a checkpoint that `merger` wrote")
    verify.add_argument("--run", dest="target", metavar="RUN", help="the run it came from (the folder it lies in)")
    verify.add_argument("--score", action="store_true", help="score it again, as loaded from disk")
    verify.add_argument(
        "--search", action="append", default=[], type=Path, metavar="FOLDER", help="where its sources may have gone"
    )
    _pickles(verify)
    _json(verify)

    inspect = _command(
        commands,
        "inspect",
        "say what checkpoints are and whether they fit",
        "merger inspect a.safetensors b.safetensors",
    )
    inspect.add_argument("files", nargs="+", type=Path, metavar="FILE", help="checkpoints; the first is the base")
    inspect.add_argument("--pipeline", type=Path, metavar="FOLDER", help="configuration the base must agree with")
    _pickles(inspect)
    _json(inspect)

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
    """A command's parser; `run` is the function of its name in `merger.app.commands`, imported when it is called."""
    parser = commands.add_parser(
        name,
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
    parser.add_argument("--dtype", choices=("fp16", "bf16", "fp32"), help="of all weights (as the base has them)")
    parser.add_argument(
        "--denoiser-only", action="store_true", help="without text encoders and VAE, as ComfyUI takes it"
    )
    parser.add_argument("--format", choices=("base", "diffusers"), default="base", help="diffusers: a folder")
    parser.add_argument("--pipeline", type=Path, metavar="FOLDER", help="configuration of a single file's pipeline")
    parser.add_argument("--mecha", type=Path, metavar="FILE", help="also write the recipe for sd-mecha")
    _json(parser)


def _pickles(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow-pickle", action="store_true", help="read .ckpt, .pt and .bin files, their plain tensors only"
    )


def _search_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--trials", type=int, metavar="N", help="the limit of trials, those already done included")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="over the file; may be given often"
    )
    _pickles(parser)
    _json(parser)


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
