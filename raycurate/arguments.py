"""What can be typed after `raycurate`: commands, flags, and options as key=value.

Nothing heavy is imported: `raycurate --help` answers at once.
"""

from __future__ import annotations

import argparse
import re
import textwrap
from types import UnionType
from typing import Annotated, Any, Literal, NoReturn, Union, get_args, get_origin

from raycurate.core.errors import ConfigError, nearest
from raycurate.core.terminal import say


def parse(arguments: list[str]) -> argparse.Namespace:
    """The arguments, with key=value accepted before and after flags.

    Raises:
        ConfigError: a flag that does not exist, with how to write an option.
    """
    if not arguments:
        return argparse.Namespace(command="list_commands")
    options, rest = _parser(arguments[0]).parse_known_args(arguments)
    flags = [word for word in rest if word.startswith("-")]
    if flags or (rest and not hasattr(options, "overrides")):
        word = (flags or rest)[0]
        raise ConfigError(f"unknown argument {word}", where="command line", fix=_how_to_write(word, options))
    if rest:
        options.overrides += rest
    return options


def help_text() -> str:
    """The commands, each with a line."""
    return _parser().format_help().rstrip()


def _how_to_write(word: str, options: argparse.Namespace) -> str:
    """What to do about a flag that is none: an option is written another way, a name that begins with - as well."""
    from raycurate.pipeline import STAGES, options_of

    flag, equals, value = word.partition("=")
    name = flag.lstrip("-").replace("-", "_")
    stage = getattr(options, "stage", None)
    known = list(options_of(str(stage)).model_fields) if stage in STAGES else []
    close = name if name in known else nearest(name, known)
    if close:
        return f"Options are written key=value: {close}={value if equals else '...'}"
    command = f"raycurate {stage} --help" if known else "raycurate --help"
    return f"Options are written key=value; `{command}` lists what there is"


class _Parser(argparse.ArgumentParser):
    """One that raises, so that a slip on the command line is one sentence as any other."""

    def error(self, message: str) -> NoReturn:
        from raycurate.pipeline import STAGES

        wrong = re.match(r"argument COMMAND: invalid choice: '([^']*)'", message)
        if wrong is None:
            raise ConfigError(message, where="command line", fix=f"`{self.prog} --help` shows how")
        others = ["run", "info", "verify", "rethreshold", "report", "submit", "import-config"]
        close = nearest(wrong[1], [*STAGES, *others])
        fix = f"Did you mean `raycurate {close}`?" if close else "`raycurate --help` lists them"
        raise ConfigError(f"there is no command '{wrong[1]}'", where="command line", fix=fix)


def _parser(asked: str | None = None) -> argparse.ArgumentParser:
    from raycurate import __version__
    from raycurate.pipeline import STAGES

    parser = _Parser(
        prog="raycurate",
        description="From an organisation's documents to a curated corpus and a search-grade embedding model, on Ray.",
        epilog="Options are key=value, lists [a, b], mappings {a: b}; text is taken as it is typed. "
        "`raycurate STAGE --help` lists those of a stage.",
    )
    parser.add_argument("--version", action="version", version=f"raycurate {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, said in STAGES.helps.items():
        command = commands.add_parser(name, help=said, add_help=False)
        command.add_argument("-h", "--help", action=_StageHelp, nargs=0, stage=name)
        _common(command)
        command.add_argument(
            "--dry-run", action="store_true", help="print the resolved options and the plan, run nothing"
        )
        if name == asked:  # a stage is imported when it is asked for
            STAGES[name].add_flags(command)
        command.set_defaults(command="run_stage", stage=name)
    run = commands.add_parser("run", help="run the stages of a recipe in order, skipping what is done")
    _common(run, recipe_required=True)
    run.add_argument("--from", dest="first", metavar="STAGE", help="first stage to run")
    run.add_argument("--to", dest="last", metavar="STAGE", help="last stage to run")
    run.add_argument("--force", metavar="STAGE", help="run this stage, and those after it, although they are done")
    run.add_argument("--dry-run", action="store_true", help="print the resolved options of every stage, run nothing")
    run.set_defaults(command="run_pipeline")
    info = commands.add_parser("info", help="show the stages of a recipe and their state, or what a FOLDER is")
    _common(info)
    info.set_defaults(command="info")
    verify = commands.add_parser("verify", help="check that an output folder holds what its manifest lists")
    verify.add_argument("folder")
    verify.set_defaults(command="verify")
    again = commands.add_parser("rethreshold", help="show what other values of eps would remove, from stored pairs")
    again.add_argument("folder", help="output of a deduplication")
    again.add_argument("eps", nargs="+", type=float)
    again.add_argument("--decision", choices=["survivor", "earlier"], help="default: as it was decided")
    again.add_argument("--address", help="address of a Ray cluster (default: RAY_ADDRESS, else a local Ray)")
    again.set_defaults(command="rethreshold")
    _add_report(commands)
    _add_submit(commands)
    _add_import_config(commands)
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
    report.set_defaults(command="report")


def _add_submit(commands: Any) -> None:
    submit = commands.add_parser("submit", help="run a stage, or the whole recipe, as a Ray job")
    submit.add_argument("stage", help="a stage's name, or `run` for the whole recipe")
    submit.add_argument("-c", "--recipe", help="a shipped recipe's name, a path or a URI")
    submit.add_argument("overrides", nargs="*", metavar="key=value")
    submit.add_argument("--address", help="the dashboard, http://HOST:8265 (default: RAY_API_SERVER_ADDRESS)")
    submit.add_argument("--no-wait", action="store_true", help="return once the job is submitted")
    submit.add_argument("--python", help="interpreter of the job's entrypoint on the cluster")
    submit.add_argument("--shared-path", action="append", default=[], metavar="PREFIX", help="a mount every node has")
    submit.set_defaults(command="submit")


def _add_import_config(commands: Any) -> None:
    purpose = "make a recipe from files of NeMo AutoModel, the nemotron embed recipe or NeMo Curator"
    importing = commands.add_parser("import-config", help=purpose, description=purpose)
    importing.add_argument("files", nargs="+", metavar="FILE", help="YAML, JSON, or Python that calls Curator")
    importing.add_argument("--out", metavar="RECIPE", help="where to write the recipe (default: it is printed)")
    importing.set_defaults(command="import_config")


class _StageHelp(argparse.Action):
    """`raycurate STAGE --help`: every option with type, default and description, from the stage's model."""

    def __init__(self, *args: Any, stage: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stage = stage

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from raycurate.pipeline import STAGES

        stage = STAGES[self.stage]
        say(f"usage: raycurate {stage.name} [-c RECIPE] [--dry-run] [--address ADDRESS] [-v] [key=value ...]\n")
        say(f"{STAGES.helps[self.stage]}\n")
        for action in parser._actions:
            if action.option_strings and action is not self:
                say(f"  {_flag(action)}")
        say("")
        say("options (key=value; lists [a, b], mappings {a: b}; text as it is typed, null for none):")
        for line in option_lines(stage.Config):
            say(line)
        parser.exit(0)


def _flag(action: argparse.Action) -> str:
    """One flag as a line of help."""
    value = "" if action.nargs == 0 else f" {action.metavar or action.dest.upper()}"
    return f"{', '.join(action.option_strings)}{value}".ljust(30) + (action.help or "")


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
    """A type as a person writes it: `int|auto`, `list[str]|None`."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_name(inner[0])
    if origin in (Union, UnionType):
        return "|".join(_type_name(part) for part in inner)
    if origin is Literal:
        return "|".join(str(value) for value in inner)
    if origin is not None:
        return f"{origin.__name__}[{', '.join(_type_name(part) for part in inner)}]"
    if annotation is type(None):
        return "None"
    if hasattr(annotation, "model_fields"):
        return "mapping"
    return {"SecretStr": "secret"}.get(
        getattr(annotation, "__name__", ""), getattr(annotation, "__name__", str(annotation))
    )
