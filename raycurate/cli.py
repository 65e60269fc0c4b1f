"""The command line: one sub-command a stage, and run, info, report, submit, verify.

Options are `key=value`, the same names as in recipes; `raycurate STAGE --help` lists them from the stage's
own model. Nothing heavy is imported before it is known what to do.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any

from raycurate.arguments import help_text, parse
from raycurate.core.errors import ConfigError, RaycurateError
from raycurate.core.terminal import ReaderLeft, make_usable, reader_left, say
from raycurate.core.termination import SigtermIsCtrlC

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143
EXIT_READER_LEFT = 141  # as a program that SIGPIPE ended
_MACHINE_ERRORS = (
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR,
    errno.ENAMETOOLONG, errno.ELOOP, errno.EMFILE,
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code (0 fine, 2 something the user can put right, 130 Ctrl-C, 143 SIGTERM)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    make_usable()
    sigterm = SigtermIsCtrlC()
    try:
        options = parse(arguments)
        with sigterm, ExitStack() as options.until_the_end:
            options.sigterm = sigterm
            code = _COMMANDS[options.command](options)
        return EXIT_READER_LEFT if reader_left() else code
    except ReaderLeft:
        return EXIT_READER_LEFT
    except Exception as error:
        found = _user_error(error)
        if found is None:
            raise
        print(f"raycurate: error: {found}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("raycurate: stopped; give the same command again to go on from here", file=sys.stderr)
        return EXIT_TERMINATED if sigterm.came else EXIT_INTERRUPTED
    finally:
        reader_left()


def _user_error(error: Exception) -> RaycurateError | None:
    """The error to show without a traceback; one raised in a Ray worker is unwrapped."""
    found = error if isinstance(error, RaycurateError) else None
    if "ray" in sys.modules:
        from raycurate.ray_runtime.cluster import user_error

        found = user_error(error)
    return found or _of_the_machine(error)


def _of_the_machine(error: Exception) -> RaycurateError | None:
    """What a file system refuses is for the user to put right, wherever it happened."""
    if not isinstance(error, OSError) or error.errno not in _MACHINE_ERRORS:
        return None
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return RaycurateError(
        f"{error.strerror or error}",
        where=os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else None,
        fix="Free some space; the same command goes on from here" if full else None,
    )


def entry() -> None:
    """The console script."""
    sys.exit(main())


def _recipe(options: argparse.Namespace, stage: str | None = None) -> Any:
    from raycurate.core.config import load_recipe
    from raycurate.pipeline import STAGES, options_of

    return load_recipe(options.recipe, options.overrides, stages=STAGES, stage=stage, types=options_of)


def _connect(options: argparse.Namespace, environment: Mapping[str, str] | None = None) -> Any:
    """Connect to Ray, which from then on speaks to a log file; `environment` is for its workers."""
    from raycurate.core.observe import get_logger
    from raycurate.core.quiet import quiet
    from raycurate.ray_runtime.connect import connect, disconnect, in_job

    if not in_job():  # a job's log is where everything belongs
        path = options.until_the_end.enter_context(quiet(verbose=getattr(options, "verbose", False)))
        if path is not None:
            get_logger("raycurate").info("what Ray and other libraries say goes to %s", path)
    connected = connect(options.address, environment=dict(environment or {}))
    options.until_the_end.callback(disconnect, connected)  # while what it says on its way out still goes to the log
    options.sigterm.take()
    return connected


def _own_modules(configs: Iterable[Any]) -> dict[str, str]:
    """Look for the engines of the user's own that `configs` name, in the current folder too, last; the environment in
    which workers do the same."""
    engines = [name for config in configs for name in _own_engines(config.redacted())]
    if not engines:
        return {}
    from raycurate.encoders.base import MODULES_FROM, custom_engine

    environment = {MODULES_FROM: os.getcwd()}
    os.environ.update(environment)
    for name in engines:
        custom_engine(name)  # before Ray is started, which takes seconds
    return environment


def _own_engines(values: Any, name: str = "") -> list[str]:
    """All `engine: module:Class` in a stage's options."""
    from raycurate.models.options import is_own_engine

    if isinstance(values, dict):
        return [found for key, value in values.items() for found in _own_engines(value, str(key))]
    if isinstance(values, list):
        return [found for value in values for found in _own_engines(value, name)]
    return [values] if name == "engine" and isinstance(values, str) and is_own_engine(values) else []


def _run_stage(options: argparse.Namespace) -> int:
    from raycurate.core.observe import setup_logging
    from raycurate.pipeline import STAGES, config_of, values_of
    from raycurate.ray_runtime.cluster import start_on_demand
    from raycurate.stage import Asked

    stage = STAGES[options.stage]
    setup_logging(verbose=options.verbose)
    said = stage.instead(
        Asked(options, lambda: values_of(stage.name, _recipe(options, stage.name)), lambda: _connect(options))
    )
    if said is not None:
        say(said)
        return 0
    config = config_of(stage.name, _recipe(options, stage.name))
    if options.dry_run:
        _print_options(stage.name, config)
        if stage.needs_ray:
            _connect(options, _own_modules([config]))
            say(stage.plan(config))
        return 0
    if stage.needs_ray:
        stage.check(config)
        environment = _own_modules([config])
        start_on_demand(lambda: _connect(options, environment))
    say(stage.run(config).summary())
    return 0


def _run_pipeline(options: argparse.Namespace) -> int:
    from raycurate import pipeline
    from raycurate.core.observe import setup_logging

    recipe = _recipe(options)
    setup_logging(verbose=options.verbose)
    if options.dry_run:
        for stage in pipeline.selected(recipe, options.first, options.last):
            _print_options(stage.name, pipeline.config_of(stage.name, recipe))
        return 0
    stages = pipeline.selected(recipe, options.first, options.last)
    environment = _own_modules([pipeline.config_of(stage.name, recipe) for stage in stages])
    for stage, result in pipeline.run(
        recipe,
        first=options.first,
        last=options.last,
        force=options.force,
        start_ray=lambda: _connect(options, environment),
    ):
        say(f"\n== {stage.name}{' (done before)' if result.skipped else ''}\n{result.summary()}")
    if "workdir" in recipe.values:
        from raycurate.report.terminal import closing

        say(f"\n== all\n{closing(recipe.shared()['workdir'])}")
    return 0


def _print_options(stage: str, config: Any) -> None:
    import yaml

    say(yaml.safe_dump({stage: config.redacted()}, sort_keys=False, allow_unicode=True).rstrip())


def _info(options: argparse.Namespace) -> int:
    from raycurate import pipeline
    from raycurate.core.config import shipped_recipes

    words = options.overrides
    folders = [word for word in words if os.path.lexists(word) or "=" not in word.partition("://")[0]]
    if folders:
        from raycurate.report.folder import describe

        if options.recipe is not None or len(folders) < len(words):
            message = f"'{folders[0]}' is a folder; give folders, or a recipe and key=value"
            raise ConfigError(message, where="command line", fix=f"`raycurate info {folders[0]}` says what it is")
        say("\n\n".join(describe(folder) for folder in folders))
    elif options.recipe is None:
        say("stages: " + ", ".join(f"{name} ({said})" for name, said in pipeline.STAGES.helps.items()))
        say("shipped recipes: " + ", ".join(shipped_recipes()))
        say("state of a recipe: raycurate info -c RECIPE; what a folder is: raycurate info FOLDER")
    else:
        say(pipeline.info(_recipe(options)))
    return 0


def _verify(options: argparse.Namespace) -> int:
    from raycurate.core.manifest import verify

    manifest = verify(options.folder)
    rows = sum(f.rows or 0 for f in manifest.files)
    compared = sum(f.checksum is not None for f in manifest.files)
    how = "checksums compared" if compared == len(manifest.files) else f"{compared} checksums compared, else sizes"
    say(f"{options.folder}: whole; stage {manifest.key.stage}, {len(manifest.files)} files, {rows:,} rows, {how}")
    return 0


def _report(options: argparse.Namespace) -> int:
    from raycurate.report import write_report

    say(write_report(options.workdir, options.out, options.title).summary())
    return 0


def _rethreshold(options: argparse.Namespace) -> int:
    from raycurate.stages.dedup.result import DedupResult

    result = DedupResult.open(options.folder)
    _connect(options)
    decided = result.rethreshold(*options.eps, decision=options.decision)
    for found in decided:
        say(f"eps {found.eps:g}  removed {found.removed:,} of {found.rows:,} ({found.duplicate_ratio:.2%})")
    if len(decided) == 1 and decided[0].eps != result.eps:
        say(f"to remove them: the dedup command again with eps={decided[0].eps:g} overwrite=true")
    return 0


def _submit(options: argparse.Namespace) -> int:
    from raycurate.core.config import UnsetVariableError
    from raycurate.pipeline import config_of, options_of, selected, stage_named
    from raycurate.ray_runtime.jobs import submit

    stage = options.stage if options.stage == "run" else stage_named(options.stage).name
    recipe = _recipe(options, None if stage == "run" else stage)
    for part in selected(recipe) if stage == "run" else [stage_named(stage)]:
        with suppress(UnsetVariableError):  # set on the cluster, perhaps; the job will see
            config_of(part.name, recipe)
    result = submit(
        stage,
        recipe,
        types=options_of,
        address=options.address,
        wait=not options.no_wait,
        python=options.python,
        shared_paths=options.shared_path,
    )
    say(result.summary())
    return 0 if result.ok else 1


def _import_config(options: argparse.Namespace) -> int:
    from raycurate.import_config import import_config

    recipe = import_config(options.files)
    if options.out is None:
        say(recipe.text.rstrip("\n"))
    else:
        recipe.write(options.out)
        say(f"{options.out}: {recipe.summary()}; see its comments")
    if recipe.problem:
        raise ConfigError(f"it cannot be used as it stands: {recipe.problem}", where=options.out or "the recipe above")
    return 0


def _list_commands(_: argparse.Namespace) -> int:
    say(help_text())
    return 0


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "list_commands": _list_commands,
    "run_stage": _run_stage,
    "run_pipeline": _run_pipeline,
    "info": _info,
    "verify": _verify,
    "report": _report,
    "rethreshold": _rethreshold,
    "submit": _submit,
    "import_config": _import_config,
}


if __name__ == "__main__":
    entry()
