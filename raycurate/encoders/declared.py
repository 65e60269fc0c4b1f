"""How a model is run, said once: the mapping `encoder` of recipes and of the stages that run models.

    encoder: {query_prefix: "query: ", passage_prefix: "passage: ", pooling: mean, max_length: 512, dtype: bfloat16}

Its keys are the options of `raycurate embed` that are about the model, and four that differ by role. What decides the
vectors of a model (prefixes, pooling, lengths, ...) goes with the model that it was said of; a tuned checkpoint says it
in its own files. Where and in which precision models run (device, dtype, num_gpus, ...) goes with all of them.

A recipe says it of its shared `model`, under the shared key `encoder` or in any section that runs that model, and it
holds in all of them. Two sections that say it differently would be two models of one name, and are refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import field_validator, model_validator

from raycurate.core.config import StageConfig, option, resolve, unknown_key
from raycurate.core.errors import ConfigError
from raycurate.models.contract import pooling_name

BY_ROLE = ("query_prefix", "passage_prefix", "query_max_length", "passage_max_length")
OF_THE_MODEL = (*BY_ROLE, "revision", "tokenizer", "add_bos", "add_eos", "pooling", "normalize", "max_length")
"""What goes with the one model that it was said of."""
ALIASES = {
    "document_prefix": "passage_prefix",
    "document_max_length": "passage_max_length",
    "doc_max_length": "passage_max_length",
    "q_max_len": "query_max_length",
    "p_max_len": "passage_max_length",
    "max_seq_length": "max_length",
    "l2_normalize": "normalize",
    "add_bos_token": "add_bos",
    "add_eos_token": "add_eos",
}
"""Other tools' names -> ours."""
_SAID_OTHERWISE = {
    "model": "'model' is an option beside it",
    "role": "the role follows from what is embedded",
    "prefix": "write query_prefix and passage_prefix",
}
_OF_FINETUNE = (
    "query_prefix", "passage_prefix", "pooling", "normalize", "revision", "tokenizer", "add_bos", "add_eos",
)  # fmt: skip
"""What finetune says in options of its own; its lengths are those of the training."""

Said = Mapping[str, Any]


class RoleOptions(StageConfig):
    """How texts of the two roles are read where these differ, and `encoder`, which may say the same and all else."""

    encoder: dict[str, Any] = option(
        {},
        "How models are run: options of `raycurate embed` (engine, dtype, device, num_gpus, ...), and of `model` "
        "pooling, normalize, max_length, revision and the prefixes and lengths beside this.",
    )
    query_prefix: str | None = option(None, "Literal text before every question instead of the model's own prompt.")
    passage_prefix: str | None = option(None, "Literal text before every document instead of the model's own prompt.")
    query_max_length: int | None = option(
        None, "Tokens kept of a question, its prefix and special tokens included; the model's own by default.", gt=0
    )
    passage_max_length: int | None = option(None, "Tokens kept of a document, likewise.", gt=0)

    @model_validator(mode="before")
    @classmethod
    def _other_names(cls, values: Any) -> Any:
        taken = {name for name in ALIASES if ALIASES[name] in BY_ROLE}
        return renamed(values, taken) if isinstance(values, dict) else values

    @field_validator("encoder")
    @classmethod
    def _an_encoder(cls, value: dict[str, Any]) -> dict[str, Any]:
        return checked(value)

    @model_validator(mode="after")
    def _said_once(self) -> RoleOptions:
        merged(self.encoder, {name: getattr(self, name) for name in BY_ROLE})
        return self

    @property
    def run_as(self) -> dict[str, Any]:
        """All that is said of how `model` is run."""
        return merged(self.encoder, {name: getattr(self, name) for name in BY_ROLE})


def checked(encoder: Said) -> dict[str, Any]:
    """The mapping with our names, without what it leaves open (null).

    Raises:
        ValueError: a key that nobody knows, one that is said otherwise, or a value that cannot be.
    """
    from raycurate.encoders.embed_options import EmbedConfig

    known = [*BY_ROLE, *(EmbedConfig.model_fields.keys() - {*_SAID_OTHERWISE, "input", "output"})]
    found = renamed(dict(encoder), ALIASES)
    for name in found:
        if name in _SAID_OTHERWISE:
            raise ValueError(f"'{name}' is not said here: {_SAID_OTHERWISE[name]}")
        if name not in known:
            raise ValueError(unknown_key(str(name), known))
    found = {name: value for name, value in found.items() if value is not None}
    texts = {"model": "(model)", "input": "(texts)", "output": "(cache)"}
    for side, role in (("query", "query"), ("passage", "document")):
        try:
            EmbedConfig.parse({**for_role(found, role), **texts}, where="encoder")
        except ConfigError as error:
            said = {"prefix": f"{side}_prefix", "max_length": f"{side}_max_length"}
            raise ValueError("; ".join(_renamed_key(part, said, found) for part in error.what.split("; "))) from None
    return found | {name: pooling_name(str(value)) for name, value in found.items() if name == "pooling"}


def _renamed_key(problem: str, names: Mapping[str, str], found: Said) -> str:
    """A problem with an option of embed's under the name that it was given by."""
    name, equals, rest = problem.partition("=")
    return f"{names.get(name, name) if names.get(name) in found else name}{equals}{rest}"


def renamed(values: dict[str, Any], names: Any) -> dict[str, Any]:
    """`values` with the other tools' names among `names` replaced by ours.

    Raises:
        ValueError: both names of one option are given.
    """
    found = dict(values)
    for name in names:
        if name in found:
            if ALIASES[name] in found:
                raise ValueError(f"{name} and {ALIASES[name]} are two names of one option; give one")
            found[ALIASES[name]] = found.pop(name)
    return found


def merged(encoder: Said, beside: Said) -> dict[str, Any]:
    """Both; what is null is not said.

    Raises:
        ValueError: they say a thing differently.
    """
    said = {name: value for name, value in beside.items() if value is not None}
    for name in encoder.keys() & said.keys():
        if encoder[name] != said[name]:
            raise ValueError(f"{name}={said[name]!r} and encoder.{name}={encoder[name]!r}: say it once")
    return {**encoder, **said}


def for_role(encoder: Said, role: str) -> dict[str, Any]:
    """The options of `raycurate embed` for texts in one role ("query" or "document")."""
    options = {name: value for name, value in encoder.items() if name not in BY_ROLE}
    side = "query" if role == "query" else "passage"
    for name, given in (("prefix", f"{side}_prefix"), ("max_length", f"{side}_max_length")):
        if encoder.get(given) is not None:
            options[name] = encoder[given]
    return options


def of_the_model(encoder: Said) -> dict[str, Any]:
    """What of it goes with the one model only."""
    return {name: value for name, value in encoder.items() if name in OF_THE_MODEL}


def of_any_model(encoder: Said) -> dict[str, Any]:
    """What of it goes with every model: where it runs, and in which precision."""
    return {name: value for name, value in encoder.items() if name not in OF_THE_MODEL}


def decisive(encoder: Said) -> dict[str, Any]:
    """What of it has a part in the numbers that come out."""
    from raycurate.encoders.embed_options import EmbedConfig

    operational = EmbedConfig.operational_keys()
    return {name: value for name, value in encoder.items() if name not in operational}


def agreed(said: Mapping[str, Said], *, model: str) -> dict[str, Any]:
    """What several places say of one model, together.

    Args:
        said: place -> what is said there.

    Raises:
        ConfigError: two of them say a thing differently; each field is named with both places.
    """
    first: dict[str, str] = {}
    found: dict[str, Any] = {}
    problems = []
    for place, values in said.items():
        for name, value in values.items():
            if name in found and found[name] != value:
                problems.append(f"{name} is {found[name]!r} in {first[name]} and {value!r} in {place}")
            elif name not in found:
                first[name], found[name] = place, value
    if problems:
        raise ConfigError(
            f"{model} would be run in two ways, with two results under one name: {'; '.join(problems)}",
            fix="Say it once, in the recipe's `encoder`; to judge a model in another way too, add it to eval's systems",
        )
    return found


def said_in(values: Said, source: str, stages: Iterable[str]) -> dict[str, Any]:
    """What a recipe says of how its shared `model` is run, wherever it says it.

    Args:
        values: the recipe's, references not filled in; no more of them is looked up than is needed.
        stages: the stages that run models.

    Raises:
        ConfigError: an `encoder` that is no mapping of an encoder's options, or two places differ.
    """
    said = {"encoder": _named(resolve(values.get("encoder") or {}, values, f"{source}: encoder"), f"{source}: encoder")}
    for stage in stages:
        section = values.get(stage)
        if stage != "embed" and isinstance(section, Mapping) and runs_the_model(values, source, stage):
            said[stage] = of_the_model(_said_by(section, stage, values, source))
    return agreed(said, model=str(resolve(values.get("model"), values, source)))


def runs_the_model(values: Said, source: str, stage: str) -> bool:
    """Whether a stage's model is the recipe's shared one."""
    section = values.get(stage)
    own = section.get("model") if isinstance(section, Mapping) else None
    return own is None or resolve(own, values, source) == resolve(values.get("model"), values, source)


def _said_by(section: Said, stage: str, values: Said, source: str) -> dict[str, Any]:
    """What a section says as options of its own and in its `encoder`."""
    where = f"{source}: {stage}"
    flat = _OF_FINETUNE if stage == "finetune" else BY_ROLE
    own = {name: value for name, value in section.items() if ALIASES.get(name, name) in flat}
    encoder = _named(resolve(section.get("encoder") or {}, values, where), f"{where}.encoder")
    try:
        return merged(encoder, _named(resolve(own, values, where), where))
    except ValueError as error:
        raise ConfigError(str(error), where=where) from None


def _named(encoder: Any, where: str) -> dict[str, Any]:
    if not isinstance(encoder, Mapping):
        raise ConfigError(f"it must be a mapping of options, not {encoder!r}", where=where)
    try:
        return checked(encoder)
    except ValueError as error:
        raise ConfigError(str(error), where=where) from None


def laid_under(options: Said, said: Said, stage: str) -> dict[str, Any]:
    """The options of a stage with what is said elsewhere under them."""
    found = dict(options)
    own = found.get("encoder") or {}
    if not isinstance(own, Mapping):  # the stage's own check says what is wrong with it
        return found
    if stage == "embed":
        found.pop("encoder", None)
        role = str(found.get("role") or "document")
        return {**for_role({**said, **_named(own, "embed.encoder")}, role), **found}
    if said or own:
        found["encoder"] = {**said, **_named(own, f"{stage}.encoder")}
    return found
