"""A draft as the text of a recipe: each line with where it came from, then what was left out, first what to mind."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

import yaml

from raycurate.import_config.rules import Draft

_COMMENT_AT = 44
_WIDTH = 112


def recipe_text(draft: Draft, *, source: str) -> str:
    """The recipe as YAML with comments."""
    lines = [f"# A recipe of raycurate, from {source}.", f"#   {command(draft.values)}"]
    if draft.traps:
        lines += ["# Mind:", *_listed(draft.traps)]
    lines += ["", *_mapping(draft.values, "", "", draft)]
    if draft.left:
        lines += ["", "# Left out:"]
        lines += _listed([f"{key}: {_shown(value)} - {reason}" for key, value, reason in draft.left])
    return "\n".join(lines) + "\n"


def command(values: dict[str, Any], file: str = "FILE") -> str:
    """The command that runs what the recipe has sections for."""
    from raycurate.pipeline import STAGES

    sections = [name for name in STAGES if name in values]
    if len(sections) == 1:
        return f"raycurate {sections[0]} -c {file}"
    return f"raycurate run -c {file}" + (f" --from {sections[0]} --to {sections[-1]}" if sections else "")


def _listed(sentences: list[str]) -> Iterator[str]:
    for sentence in sentences:
        yield from textwrap.wrap(sentence, _WIDTH, initial_indent="#  * ", subsequent_indent="#    ")


def _mapping(values: dict[str, Any], path: str, indent: str, draft: Draft) -> Iterator[str]:
    for key, value in values.items():
        option = f"{path}{key}"
        if isinstance(value, dict) and value:
            if not path:
                yield ""
            yield f"{indent}{key}:"
            yield from _mapping(value, f"{option}.", f"{indent}  ", draft)
        elif isinstance(value, list) and len(value) > 1:
            yield _with_comment(f"{indent}{key}:", draft.origins.get(option))
            yield from (f"{indent}  - {_flow(one)}" for one in value)
        else:
            yield _with_comment(f"{indent}{key}: {_flow(value)}", draft.origins.get(option))


def _with_comment(line: str, origin: str | None) -> str:
    return f"{line.ljust(_COMMENT_AT)}  # {' '.join(origin.split())}" if origin else line


def _flow(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10**9, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def _shown(value: Any) -> str:
    text = " ".join(_flow(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
