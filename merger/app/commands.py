"""What each command does: it calls other rooms and prints. Heavy modules are imported where they are needed."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from benchmark.errors import surroundings_said
from benchmark.writing import sweep, whole_or_nothing
from merger.app.runs import ROOT, Run, find_run, list_runs
from merger.config.config import Config
from merger.config.loading import load_config
from merger.errors import ConfigError, InputError, Stopped, StudyError
from merger.search.urls import located


def search(args: argparse.Namespace) -> int:
    """`merger search`: begins a run, or continues it."""
    overrides = _overrides(args)
    if args.storage:
        overrides.append(f"storage={json.dumps(located(args.storage, Path.cwd()))}")
    if args.name:
        overrides.append(f"name={json.dumps(args.name)}")
    config = load_config(args.config, overrides)
    name = config.name or args.config.stem
    run = Run(ROOT.absolute() / name)
    if run.exists():
        begun = run.config()
        kept = {"name": run.study_name(begun)}  # its folder may have been renamed since
        if "block_names" not in config.model_fields_set:
            kept["block_names"] = begun.block_names  # a run that began with an earlier version keeps its layers
        return _search(config.model_copy(update=kept), run, args, create=_lost(run))
    run.check_free()  # before anything is loaded
    return _search(config.model_copy(update={"name": name}), run, args, create=True)


def _lost(run: Run) -> bool:
    """Whether the study of a run is gone, so that it is begun again; that is printed.

    Raises `StudyError` if it is gone and results of it are there, or if it is damaged.
    """
    from merger.search.study import has_study

    config = run.config()
    storage, name = run.storage(config), run.study_name(config)
    if has_study(storage, name):
        return False
    if run.holds_results():
        raise StudyError(
            f"{_shown(run.folder)}: its study '{name}' is gone, but results of it are there; choose another --name, "
            "or remove the folder"
        )
    print(f"{_shown(run.folder)}: its study '{name}' is gone or was never made whole; it begins anew", file=sys.stderr)
    return True


def resume(args: argparse.Namespace) -> int:
    """`merger resume`: continues a run from its folder alone. It creates no study."""
    from merger.search.study import read_study

    run = find_run(args.target)
    config = run.config_to_continue(_overrides(args))
    read_study(run.storage(config), run.study_name(config)).records()  # before models are loaded
    return _search(config, run, args, create=False)


def _search(config: Config, run: Run, args: argparse.Namespace, *, create: bool) -> int:
    from benchmark.app.interrupt import exit_status
    from benchmark.taggers.asking import TaggerError
    from merger.app.interrupt import Interrupt
    from merger.app.run_search import run_search
    from merger.app.session import open_session

    with Interrupt().listening() as interrupt:
        try:
            session = open_session(config)
            result = run_search(session, run, interrupt, create=create)
        except KeyboardInterrupt as stop:
            where = _shown(run.folder)
            how = f"nothing finished is lost; continue with: merger resume {where}"
            if not run.exists():
                how = "stopped before the first trial; nothing was written"
            raise Stopped(how, exit_status(stop)) from None
        except TaggerError as error:
            if not run.exists():
                raise
            how = f"Nothing finished is lost; continue with: merger resume {_shown(run.folder)}"
            raise TaggerError(f"{error} {how}") from error
    _print_result(run, result, args.json)
    return 0


def status(args: argparse.Namespace) -> int:
    """`merger status`: where a run stands."""
    from merger.report.progress import duration

    run = find_run(args.target)
    found = describe(run)
    if args.json:
        print(json.dumps(found, ensure_ascii=False))
        return 0
    print(
        f"{found['name']}: {found['state']}, {found['trials']} of {found['limit']} trials, {found['images']:,} images, "
        f"{duration(found['seconds'])}"
    )
    if found["best"]:
        best = found["best"]
        print(f"best {best['value']:.4f} ± {best['stderr']:.4f} ({best['label']}), accuracy {best['accuracy']:.4f}")
        waited, patience = found["since_improvement"], found["patience"]
        print(f"{waited} trials since the last improvement larger than its noise (patience {patience})")
    if found["left"]:
        print(f"at most {found['left']} left")
    result = run.result()
    if result is not None:
        from merger.report.report import result_text

        with run.result_read():
            text = result_text(result)
        print(text)
    elif found["state"] == "stopped":
        print(f"continue with: merger resume {_shown(run.folder)}")
    return 0


def list_(args: argparse.Namespace) -> int:
    """`merger list`: the runs in a folder."""
    rows = []
    for run in list_runs(args.folder):
        try:
            with surroundings_said():
                rows.append(describe(run))
        except InputError as error:  # one damaged run must not hide the others
            rows.append(
                {"name": run.name, "folder": str(run.folder), "state": "damaged", "problem": "; ".join(error.lines)}
            )
    if args.json:
        print(json.dumps(rows, ensure_ascii=False))
        return 0
    if not rows:
        print(f"no runs in {args.folder or ROOT}/", file=sys.stderr)
    for row in rows:
        best = row.get("best")
        line = f"{row['name']:24} {row['state']:9}"
        line += f" {row['trials']:5} trials" if "trials" in row else f" {row['problem']}"
        print(line + (f"   best {best['value']:.4f} ± {best['stderr']:.4f} ({best['label']})" if best else ""))
    return 0


def export(args: argparse.Namespace) -> int:
    """`merger export`: writes the winner, the best so far, or a given trial. Opens no tagger and no vocabulary."""
    from merger.app.identity import check_sources
    from merger.app.scored_files import export_trial
    from merger.app.source_paths import local
    from merger.app.sources import open_sources
    from merger.export.forms import ExportOptions, is_folder
    from merger.search.artifacts import Artifacts
    from merger.search.study import incumbent, read_study
    from merger.search.trials import STEP

    run = find_run(args.target)
    config = local(run.config())
    sources = open_sources(config)
    study = read_study(run.storage(config), run.study_name(config), artifacts=Artifacts(run.artifacts))
    check_sources(study.identity, sources, run.name)
    result = run.result()
    if args.trial is not None:
        trial, name = study.record(args.trial), f"trial-{args.trial}"
    elif result is not None:
        with run.result_read():
            winner = int(result["winner"]["trial"])
        trial, name = study.record(winner), "best"
    else:
        trial, name = incumbent(study), "best"
    suffix = f"-{args.dtype}" if args.dtype else ""
    how = ExportOptions(
        args.dtype,
        args.denoiser_only,
        args.format,
        _configuration(args) or config.pipeline,
        args.mecha,
        replace_folder=args.output is None,  # a name of ours, in the run's own folder
        nonfinite=args.nonfinite,
    )
    ending = "" if is_folder(sources.base, how) else ".safetensors"
    output = args.output or run.folder / f"{name}{suffix}{'-denoiser' if args.denoiser_only else ''}{ending}"
    prompts = "the prompts of its step" if trial.role == STEP else "the search prompts"
    _sweep_output(output)
    written = export_trial(sources, trial, output, how, identity=study.identity)
    print(
        json.dumps({"file": str(written), "trial": trial.number, "accuracy": trial.score.accuracy})
        if args.json
        else f"{_shown(written)}: trial {trial.number}, {trial.score.accuracy:.4f} on {prompts}"
    )
    return 0


def merge(args: argparse.Namespace) -> int:
    """`merger merge`: a file from a recipe alone."""
    from merger.checkpoints.compatibility import check_compatible, mixed_prediction, remarks
    from merger.export.forms import ExportOptions, export_as
    from merger.export.recipe_files import open_recipe

    recipe, base, donors = open_recipe(args.recipe, allow_pickle=args.allow_pickle)
    for remark in (*remarks((base, *donors), check_compatible(base, donors)), *mixed_prediction(base, donors)):
        print(remark, file=sys.stderr)
    how = ExportOptions(
        args.dtype, args.denoiser_only, args.format, _configuration(args), args.mecha, nonfinite=args.nonfinite
    )
    _sweep_output(args.output)
    written = export_as(recipe, args.output, how, base=base, donors=donors)
    print(json.dumps({"file": str(written)}) if args.json else _shown(written))
    return 0


def _configuration(args: argparse.Namespace) -> Path | None:
    """The folder that `--pipeline` names, by path or hub id; None if it is not given."""
    from merger.checkpoints.hub import on_this_disk

    return None if args.pipeline is None else on_this_disk(args.pipeline, "configuration")


def convert(args: argparse.Namespace) -> int:
    """`merger convert`: a pickle as a `.safetensors` file."""
    from merger.checkpoints.convert import convert as rewrite

    sweep(args.output.parent, args.output.name)
    written = rewrite(args.file, args.output)
    print(json.dumps({"file": str(written)}) if args.json else _shown(written))
    return 0


def extract(args: argparse.Namespace) -> int:
    """`merger extract`: a checkpoint's difference as a LoRA."""
    from merger.checkpoints.adapter import open_donor
    from merger.checkpoints.checkpoint import open_checkpoint
    from merger.checkpoints.compatibility import check_compatible
    from merger.checkpoints.finite import check_finite
    from merger.export.extract import extract

    if args.rank < 1:
        raise ConfigError(f"--rank {args.rank}: use at least 1")
    sweep(args.output.parent, args.output.name)
    base = open_checkpoint(args.base, name="base", allow_pickle=args.allow_pickle)
    donor = open_donor(args.model, base, name="model", allow_pickle=args.allow_pickle)
    check_compatible(base, [donor])
    check_finite(base, [donor])
    found = extract(base, donor, args.rank, args.output, args.dtype, lambda line: print(line, file=sys.stderr))
    if args.json:
        print(json.dumps(found.to_json(), ensure_ascii=False))
        return 0
    ends = f", and {len(found.left_out)} biases and normalisations, which a LoRA cannot hold" if found.left_out else ""
    print(f"{found.error:.1%} of the whole difference is missing{ends}")
    print(_shown(found.file))
    return 0


def verify(args: argparse.Namespace) -> int:
    """`merger verify`: 0 if the file is what its recipe says, else 1."""
    from merger.export.write import verify as rebuild

    found = rebuild(args.file, args.search, allow_pickle=args.allow_pickle)
    report: dict[str, Any] = {
        "file": str(args.file),
        "ok": found.ok,
        "tensors_compared": found.tensors_compared,
        "differing": list(found.differing),
    }
    if args.score:
        report["score"] = _score_again(args.file, args.target)
        report["ok"] = report["ok"] and report["score"]["same"]
    if args.json:
        print(json.dumps(report, ensure_ascii=False))
    else:
        print(f"{args.file}: {found.tensors_compared} tensors compared with the recipe, {len(found.differing)} differ")
        for key in found.differing[:5]:
            print(f"  differs: {key}")
        if args.score:
            score = report["score"]
            print(
                f"accuracy {score['accuracy']:.4f}, recorded {score['recorded_accuracy']:.4f}; "
                f"mean probability {score['probability']:.4f}, recorded {score['recorded_probability']:.4f}"
            )
        print("verified" if report["ok"] else "NOT what it says it is")
    return 0 if report["ok"] else 1


def _score_again(file: Path, target: str | None) -> dict[str, Any]:
    from merger.app.scored_files import SCORE_KEY, read_score, score_file
    from merger.checkpoints.checkpoint import open_checkpoint

    recorded = open_checkpoint(file).metadata.get(SCORE_KEY)
    if recorded is None:
        raise StudyError(f"{file}: records no score; only blends that `merger` exported from a run do")
    run = find_run(target or str(file.resolve().parent))
    return score_file(file, run, read_score(file, recorded))


def inspect(args: argparse.Namespace) -> int:
    """`merger inspect`: what files are; 1 if they are not compatible."""
    from merger.checkpoints.inspect import format_inspection, inspect_files

    found = inspect_files(args.files, _configuration(args), allow_pickle=args.allow_pickle, hashes=args.hash)
    print(json.dumps(found, ensure_ascii=False) if args.json else format_inspection(found))
    return 0 if found["fit"]["ok"] else 1


def rank(args: argparse.Namespace) -> int:
    """`merger rank`: which donors a base would gain from."""
    from merger.app.rank import pool_config, rank
    from merger.report.ranking import ranking_page, ranking_text

    overrides = [*args.set, *(["allow_pickle=true"] if args.allow_pickle else [])]
    config = pool_config(args.config, args.paths, overrides, allow_pickle=args.allow_pickle)
    with whole_or_nothing(args.page) if args.page else nullcontext() as page:  # refused before the work, not after it
        ranking, said = rank(config, args.chunks)
        if page:
            page.write_text(ranking_page(ranking, said), encoding="utf-8")
    found = said | {"donors": ranking.to_json()}
    print(json.dumps(found, ensure_ascii=False) if args.json else ranking_text(ranking, said))
    return 0


def describe(run: Run) -> dict[str, Any]:
    """Where a run stands, as plain values; needs none of its sources."""
    from merger.report.progress import duration, time_left
    from merger.scoring.evaluation_cache import spent_on
    from merger.search.study import read_study
    from merger.search.trials import best_of, since_improvement

    config = run.config()
    records = read_study(run.storage(config), run.study_name(config)).records()
    best, result = best_of(records), run.result()
    with run.result_read():
        stopped_because = None if result is None else str(result["stopped_because"])
    state = "running" if run.busy() else "finished" if result is not None else "stopped"
    spent = spent_on(records, run.scores)
    left = time_left(records, config.trials, config.time_limit)
    return {
        "name": run.name,
        "folder": str(run.folder),
        "state": state,
        "trials": len(records),
        "limit": config.trials,
        "images": spent["images_drawn"],
        "seconds": spent["seconds"],
        "since_improvement": since_improvement(records),
        "patience": config.patience,
        "left": duration(left) if left is not None and state != "finished" else None,
        "best": None
        if best is None
        else {
            "trial": best.number,
            "label": best.label,
            "value": best.value,
            "stderr": best.score.stderr,
            "accuracy": best.score.accuracy,
        },
        "stopped_because": stopped_because,
    }


def _overrides(args: argparse.Namespace) -> list[str]:
    pickles = ["allow_pickle=true"] if args.allow_pickle else []
    return [*args.set, *([f"trials={args.trials}"] if args.trials is not None else []), *pickles]


def _print_result(run: Run, result: dict[str, Any], as_json: bool) -> None:
    from merger.report.report import result_text

    if as_json:
        print(json.dumps(result, ensure_ascii=False))
        return
    print(result_text(result))
    print()
    if run.best.exists():
        print(f"checkpoint  {_shown(run.best)}")
    print(f"report      {_shown(run.report)}")


def _sweep_output(output: Path) -> None:
    """Removes what a killed export left of this file, and of the weights beside it."""
    from merger.export.recipe_weights import beside

    for path in (output, beside(output)):
        sweep(output.parent, path.name)


def _shown(path: Path) -> str:
    """A path, relative to the current folder if it lies in it."""
    try:
        here = Path.cwd()
    except FileNotFoundError:  # it was removed since the command began
        return str(path)
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
