"""The command line: one sub-command a stage, and run, info, report, submit, verify.

Options are `key=value`, the same names as in recipes; `raycurate STAGE --help` lists them from the stage's
own model. Nothing heavy is imported before it is known what to do.
"""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from raycurate.core.errors import RaycurateError

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code (0 fine, 2 something the user can put right, 130 Ctrl-C)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        options = _parse(arguments)
        return options.handler(options)
    except Exception as error:
        found = _user_error(error)
        if found is None:
            raise
        print(f"raycurate: error: {found}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("raycurate: stopped; give the same command again to go on from here", file=sys.stderr)
        return EXIT_INTERRUPTED
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _parse(arguments: list[str]) -> argparse.Namespace:
    """The arguments, with key=value accepted before and after flags.

    Raises:
        ConfigError: a flag that does not exist, with how to write an option.
    """
    from raycurate.core.errors import ConfigError

    options, rest = _parser().parse_known_args(arguments)
    flags = [word for word in rest if word.startswith("-")]
    if flags or (rest and not hasattr(options, "overrides")):
        name = (flags or rest)[0].lstrip("-").partition("=")[0]
        raise ConfigError(
            f"unknown argument {(flags or rest)[0]}",
            where="command line",
            fix=f"Options are written key=value: {name.replace('-', '_')}=...",
        )
    if rest:
        options.overrides += rest
    return options


def _user_error(error: Exception) -> RaycurateError | None:
    """The error to show without a traceback; one raised in a Ray worker is unwrapped."""
    if "ray" in sys.modules:
        from raycurate.core.cluster import user_error

        return user_error(error)
    return error if isinstance(error, RaycurateError) else None


def entry() -> None:
    """The console script."""
    sys.exit(main())


def _parser() -> argparse.ArgumentParser:
    from raycurate import __version__
    from raycurate.pipeline import STAGES

    parser = argparse.ArgumentParser(
        prog="raycurate",
        description="From an organisation's documents to a curated corpus and a search-grade embedding model, on Ray.",
        epilog="Options are key=value. `raycurate STAGE --help` lists those of a stage.",
    )
    parser.add_argument("--version", action="version", version=f"raycurate {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, stage in STAGES.items():
        command = commands.add_parser(name, help=stage.help, add_help=False)
        command.add_argument("-h", "--help", action=_StageHelp, nargs=0, stage=name)
        _common(command)
        command.add_argument(
            "--dry-run", action="store_true", help="print the resolved options and the plan, run nothing"
        )
        if name in ("mine", "prep"):
            command.add_argument("--show", metavar="Q", help="print what was mined for this question (id or beginning)")
        if name == "prep":
            command.add_argument("--dataset", help="prepare this training data set of the hub, and do nothing else")
            command.add_argument("--download-path", metavar="DIR", help="where --dataset is put")
        command.set_defaults(handler=_run_stage, stage=name)
    run = commands.add_parser("run", help="run the stages of a recipe in order, skipping what is done")
    _common(run, recipe_required=True)
    run.add_argument("--from", dest="first", metavar="STAGE", help="first stage to run")
    run.add_argument("--to", dest="last", metavar="STAGE", help="last stage to run")
    run.add_argument("--force", metavar="STAGE", help="run this stage, and those after it, although they are done")
    run.add_argument("--dry-run", action="store_true", help="print the resolved options of every stage, run nothing")
    run.set_defaults(handler=_run_pipeline)
    info = commands.add_parser("info", help="show the stages of a recipe, their inputs, outputs and state")
    _common(info)
    info.set_defaults(handler=_info)
    verify = commands.add_parser("verify", help="check that an output folder holds what its manifest lists")
    verify.add_argument("folder")
    verify.set_defaults(handler=_verify)
    again = commands.add_parser("rethreshold", help="show what other values of eps would remove, from stored pairs")
    again.add_argument("folder", help="output of a deduplication")
    again.add_argument("eps", nargs="+", type=float)
    again.add_argument("--decision", choices=["survivor", "earlier"], help="default: as it was decided")
    again.add_argument("--address", help="address of a Ray cluster (default: RAY_ADDRESS, else a local Ray)")
    again.set_defaults(handler=_rethreshold)
    _add_report(commands)
    _add_submit(commands)
    return parser


def _common(command: argparse.ArgumentParser, *, recipe_required: bool = False) -> None:
    command.add_argument("-c", "--recipe", required=recipe_required, help="a shipped recipe's name, a path or a URI")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="options, laid over the recipe")
    command.add_argument("--address", help="address of a Ray cluster (default: RAY_ADDRESS, else a local Ray)")
    command.add_argument("-v", "--verbose", action="store_true", help="debug messages")


def _add_report(commands: Any) -> None:
    report = commands.add_parser("report", help="write one HTML page about the stages that have run")
    report.add_argument("workdir", help="the recipe's workdir, or the output folder of a stage")
    report.add_argument("--out", metavar="FILE", help="where to write it (default: WORKDIR/report.html)")
    report.add_argument("--title", help="of the page (default: the folder's name)")
    report.set_defaults(handler=_report)


def _add_submit(commands: Any) -> None:
    submit = commands.add_parser("submit", help="run a stage, or the whole recipe, as a Ray job")
    submit.add_argument("stage", help="a stage's name, or `run` for the whole recipe")
    submit.add_argument("-c", "--recipe", help="a shipped recipe's name, a path or a URI")
    submit.add_argument("overrides", nargs="*", metavar="key=value")
    submit.add_argument("--address", help="the dashboard, http://HOST:8265 (default: RAY_API_SERVER_ADDRESS)")
    submit.add_argument("--no-wait", action="store_true", help="return once the job is submitted")
    submit.add_argument("--python", help="interpreter of the job's entrypoint on the cluster")
    submit.add_argument("--shared-path", action="append", default=[], metavar="PREFIX", help="a mount every node has")
    submit.set_defaults(handler=_submit)


class _StageHelp(argparse.Action):
    """`raycurate STAGE --help`: every option with type, default and description, from the stage's model."""

    def __init__(self, *args: Any, stage: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stage = stage

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from raycurate.pipeline import STAGES

        stage = STAGES[self.stage]
        print(f"usage: raycurate {stage.name} [-c RECIPE] [--dry-run] [--address ADDRESS] [-v] [key=value ...]\n")
        print(f"{stage.help}\n\noptions (key=value):")
        for line in option_lines(stage.config_class):
            print(line)
        parser.exit(0)


def option_lines(model: Any) -> list[str]:
    """The options of a stage's model, one paragraph each: name, type, default, description."""
    lines = []
    for name, info in model.model_fields.items():
        value = {} if hasattr(info.default, "model_fields") else info.default
        default = "required" if info.is_required() else f"default {value!r}"
        lines.append(f"  {name} ({_type_name(info.annotation)}; {default})")
        lines += textwrap.wrap(info.description or "", 100, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return lines


def _type_name(annotation: Any) -> str:
    import re

    text = (
        annotation.__name__ if isinstance(annotation, type) and not hasattr(annotation, "__args__") else str(annotation)
    )
    text = re.sub(r"typing\.|pydantic\.\w+\.|raycurate(\.\w+)+\.", "", text)
    text = re.sub(r"Literal\[([^]]*)\]", lambda m: m.group(1).replace("'", "").replace(", ", "|"), text)
    return (
        text.replace(" | ", "|")
        .replace("NoneType", "None")
        .replace("SecretStr", "secret")
        .replace("ActorGroupOptions", "mapping")
    )


def _recipe(options: argparse.Namespace, stage: str | None = None) -> Any:
    from raycurate.core.config import load_recipe
    from raycurate.pipeline import STAGES

    return load_recipe(options.recipe, options.overrides, stages=STAGES, stage=stage)


def _connect(options: argparse.Namespace) -> Any:
    from raycurate.core.cluster import connect

    # As with `python -m`, modules of the current folder can be named (engine=my_module:MyEncoder), here and
    # in the workers of a local Ray, which inherit the environment.
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([here, *filter(None, [os.environ.get("PYTHONPATH")])]))
    return connect(options.address)


def _run_stage(options: argparse.Namespace) -> int:
    from raycurate.core.observe import setup_logging
    from raycurate.pipeline import STAGES

    stage = STAGES[options.stage]
    if getattr(options, "dataset", None):
        return _prepare_dataset(options)
    if getattr(options, "show", None):
        return _show_mined(options, stage)
    config = stage.config(_recipe(options, stage.name))
    setup_logging(verbose=options.verbose)
    if options.dry_run:
        _print_options(stage.name, config)
        if stage.needs_ray:
            _connect(options)
            print(stage.plan(config))
        return 0
    if stage.needs_ray:
        _connect(options)
    print(stage.run(config).summary())
    return 0


def _prepare_dataset(options: argparse.Namespace) -> int:
    from raycurate.core.errors import ConfigError
    from raycurate.core.observe import setup_logging
    from raycurate.data.nemotron import prepare_nemotron

    if not options.download_path:
        raise ConfigError("--dataset needs a folder", where="command line", fix="Add --download-path DIR")
    setup_logging(verbose=options.verbose)
    print(prepare_nemotron(options.dataset, options.download_path).summary())
    return 0


def _show_mined(options: argparse.Namespace, stage: Any) -> int:
    from raycurate.core.errors import ConfigError
    from raycurate.core.observe import setup_logging
    from raycurate.prep.show import show

    output = stage.values(_recipe(options, stage.name)).get("output")
    if not output:
        raise ConfigError("--show needs the folder of what was mined", where="command line", fix="Add output=FOLDER")
    setup_logging(verbose=options.verbose)
    _connect(options)
    print(show(output, options.show))
    return 0


def _run_pipeline(options: argparse.Namespace) -> int:
    from raycurate import pipeline
    from raycurate.core.observe import setup_logging

    recipe = _recipe(options)
    setup_logging(verbose=options.verbose)
    if options.dry_run:
        for stage in pipeline.selected(recipe, options.first, options.last):
            _print_options(stage.name, stage.config(recipe))
        return 0
    for stage, result in pipeline.run(
        recipe, first=options.first, last=options.last, force=options.force, start_ray=lambda: _connect(options)
    ):
        print(f"\n== {stage.name}{' (done before)' if result.skipped else ''}\n{result.summary()}", flush=True)
    if "workdir" in recipe.values:
        from raycurate.report.terminal import closing

        print(f"\n== all\n{closing(recipe.shared()['workdir'])}")
    return 0


def _print_options(stage: str, config: Any) -> None:
    import yaml

    print(yaml.safe_dump({stage: config.redacted()}, sort_keys=False, allow_unicode=True).rstrip())


def _info(options: argparse.Namespace) -> int:
    from raycurate import pipeline
    from raycurate.core.config import shipped_recipes

    if options.recipe is None:
        print("stages: " + ", ".join(f"{s.name} ({s.help})" for s in pipeline.STAGES.values()))
        print("shipped recipes: " + ", ".join(shipped_recipes()))
        print("state of a recipe: raycurate info -c RECIPE")
        return 0
    print(pipeline.info(_recipe(options)))
    return 0


def _verify(options: argparse.Namespace) -> int:
    from raycurate.core.manifest import require_whole

    manifest = require_whole(options.folder)
    rows = sum(f.rows or 0 for f in manifest.files)
    print(f"{options.folder}: whole; stage {manifest.key.stage}, {len(manifest.files)} files, {rows:,} rows")
    return 0


def _report(options: argparse.Namespace) -> int:
    from raycurate.report import write_report

    print(write_report(options.workdir, options.out, options.title).summary())
    return 0


def _rethreshold(options: argparse.Namespace) -> int:
    from raycurate.dedup.result import DedupResult

    result = DedupResult.open(options.folder)
    _connect(options)
    decided = result.rethreshold(*options.eps, decision=options.decision)
    for found in decided:
        print(f"eps {found.eps:g}  removed {found.removed:,} of {found.rows:,} ({found.duplicate_ratio:.2%})")
    if len(decided) == 1 and decided[0].eps != result.eps:
        print(f"to remove them: the dedup command again with eps={decided[0].eps:g} overwrite=true")
    return 0


def _submit(options: argparse.Namespace) -> int:
    from raycurate.core.config import UnsetVariableError
    from raycurate.core.jobs import submit
    from raycurate.pipeline import selected, stage_named

    stage = options.stage if options.stage == "run" else stage_named(options.stage).name
    recipe = _recipe(options, None if stage == "run" else stage)
    for part in selected(recipe) if stage == "run" else [stage_named(stage)]:
        with suppress(UnsetVariableError):  # set on the cluster, perhaps; the job will see
            part.config(recipe)
    result = submit(
        stage,
        recipe,
        address=options.address,
        wait=not options.no_wait,
        python=options.python,
        shared_paths=options.shared_path,
    )
    print(result.summary())
    return 0 if result.ok else 1


if __name__ == "__main__":
    entry()
