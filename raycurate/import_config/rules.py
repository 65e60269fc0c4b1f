"""What a table of another tool's keys is made of, and the recipe that grows from it.

A table says of each key, dotted as in its file, what becomes of it: another option (`Becomes`), nothing, for a
reason (`Left`), or whatever a function does (`Rule` is then that function). Keys that no table knows are kept as
left out too, so that nothing of a file is passed over in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Becomes:
    """The option a key becomes.

    Args:
        to: `section.option` or a shared key; several where several stages ask for it.
        convert: the value there -> the value here.
        note: what a reader should know of it, written beside it.
    """

    to: str | tuple[str, ...]
    convert: Callable[[Any], Any] | None = None
    note: str = ""


@dataclass(frozen=True)
class Left:
    """A key without a counterpart, and why."""

    reason: str


Rule = Becomes | Left | Callable[["Draft", str, Any], None]
Table = Mapping[str, Rule]


@dataclass
class Draft:
    """A recipe in the making.

    Attributes:
        values: the recipe.
        origins: dotted option -> where it came from, and a note.
        left: (key, value, reason) of what has no counterpart.
        traps: sentences about what is easily taken for the same and is not.
    """

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    left: list[tuple[str, Any, str]] = field(default_factory=list)
    traps: list[str] = field(default_factory=list)

    def put(self, option: str, value: Any, origin: str) -> None:
        """Set a dotted option. Where it has another value already that one stays, and this one is left out."""
        *path, name = option.split(".")
        target = self.values
        for part in path:
            target = target.setdefault(part, {})
        if name in target and target[name] != value:
            self.leave(origin, value, f"{option} is {target[name]!r} already, from {self.origins[option]}")
            return
        target[name] = value
        self.origins.setdefault(option, origin)

    def get(self, option: str) -> Any:
        """The value of a dotted option, None where it is not set."""
        value: Any = self.values
        for part in option.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value

    def leave(self, key: str, value: Any, reason: str) -> None:
        """Keep a key as left out."""
        self.left.append((key, value, reason))

    def trap(self, sentence: str) -> None:
        """Warn of something, once."""
        if sentence not in self.traps:
            self.traps.append(sentence)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value that is no mapping (an empty mapping is one value)."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def apply(draft: Draft, flat: Mapping[str, Any], table: Table, *, unknown: str) -> None:
    """Take every key of a file by its rule; a rule `a.*` is for all keys below `a` that have none of their own,
    a rule `*` for all others."""
    for key, value in flat.items():
        rule = _rule_of(key, table)
        if rule is None:
            draft.leave(key, value, unknown)
        elif isinstance(rule, Left):
            draft.leave(key, value, rule.reason)
        elif isinstance(rule, Becomes):
            converted = rule.convert(value) if rule.convert else value
            for option in (rule.to,) if isinstance(rule.to, str) else rule.to:
                draft.put(option, converted, f"{key}; {rule.note}" if rule.note else key)
        else:
            rule(draft, key, value)


def _rule_of(key: str, table: Table) -> Rule | None:
    if key in table:
        return table[key]
    parts = key.split(".")
    for length in range(len(parts) - 1, 0, -1):
        pattern = ".".join(parts[:length]) + ".*"
        if pattern in table:
            return table[pattern]
    return table.get("*")


def number(value: Any) -> Any:
    """YAML reads 1e-5 as text; as a number where it is one."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def inverted(value: Any) -> Any:
    """The other truth value."""
    return not value


def training_output(value: Any) -> Any:
    """The output of a training here, of a path of its checkpoints there: the folder above `checkpoints`."""
    folder = str(value).rstrip("/").removesuffix("/model/consolidated")
    parts = folder.split("/")
    if "checkpoints" in parts[1:]:
        return "/".join(parts[: parts.index("checkpoints", 1)])
    return folder


POOLING = {"avg": "mean", "mean": "mean", "cls": "cls", "last": "last", "colbert": "multi_vector"}


def pooling(option: str) -> Callable[[Draft, str, Any], None]:
    """The rule of a pooling's name, which becomes `option`."""

    def rule(draft: Draft, key: str, value: Any) -> None:
        if value == "weighted_avg":
            draft.put(option, "mean", f"{key}: weighted_avg")
            draft.trap(
                "pooling `weighted_avg` of AutoModel is a plain sum over the tokens, which is `mean` once vectors are "
                "normalised; the mean weighted by position is `weighted_mean` here"
            )
            return
        draft.put(option, POOLING.get(value, value), f"{key}: {value}" if value in POOLING else key)

    return rule


def schedule(draft: Draft, key: str, value: Any) -> None:
    """The rule of the learning rate's decay."""
    names = {"linear": "linear", "cosine": "cosine", "constant": "constant"}
    if value in names:
        draft.put("finetune.schedule", value, key)
    else:
        draft.leave(key, value, "a decay that raycurate does not have: linear, cosine or constant")


def finish_schedule(draft: Draft) -> None:
    """AutoModel's own ends of the learning rate, where a file leaves them open."""
    rate = draft.get("finetune.learning_rate")
    if draft.get("finetune.schedule") is None:
        draft.put("finetune.schedule", "cosine", "AutoModel's default")
    if draft.get("finetune.min_learning_rate") is None and isinstance(rate, int | float):
        draft.put("finetune.min_learning_rate", float(f"{rate / 100:.12g}"), "AutoModel decays to 1% of the rate")
    if draft.get("finetune.warmup_steps") is None and draft.get("finetune.warmup_ratio") is None:
        draft.put("finetune.warmup_ratio", 0.1, "AutoModel's default, at most 1,000 steps there")
    draft.trap("AutoModel's warm-up begins at a tenth of the learning rate, raycurate's at nothing")
