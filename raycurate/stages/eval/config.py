"""The options of the eval stage."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import field_validator, model_validator

from raycurate.core.config import option
from raycurate.encoders.base import is_url
from raycurate.encoders.declared import BY_ROLE, RoleOptions, decisive, of_any_model
from raycurate.retrieval.metrics import K_VALUES
from raycurate.retrieval.results import BASE, BM25, FINETUNED, SERVED

ALGORITHM_VERSION = 2  # 2: BM25 stems words
FUSED = "bm25+{}"


class SystemOptions(RoleOptions):
    """One system beside the base and the fine-tuned model."""

    model: str = option(
        ...,
        "A folder, a Hugging Face id, `python:MODULE`, an endpoint's URL, or the output of `raycurate finetune`.",
        place="model",
    )
    dimensions: int | None = option(None, "Only the first so many dimensions (Matryoshka).", ge=1)
    quantization: Literal["none", "int8", "binary"] = option("none", "What a dimension of a document is stored in.")
    rescore: int = option(4, "Times k candidates scored anew with the whole vectors; 0: none.", ge=0)
    same_as: str | None = option(
        None, "The system whose metrics it must reproduce, as an export or a server must: the drift gate."
    )


class EvalConfig(RoleOptions):
    """A test set and systems in; metrics, intervals and comparisons out."""

    input: str = option(
        ...,
        "Test set: a folder in BEIR's layout, beir:NAME, or mteb:REPOSITORY (or mteb:FOLDER).",
        min_length=1,
        place="input",
    )
    split: str = option("test", "Which judgements: qrels/SPLIT.tsv.", min_length=1)
    output: str = option(..., "Folder or URI the results are written to.", operational=True, place="output")
    model: str | None = option(
        None, "The base model: a folder, a Hugging Face id, `python:MODULE` or a URL.", place="model"
    )
    finetuned: str | None = option(
        None,
        "The fine-tuned model: the output of `raycurate finetune` (its best checkpoint is taken), or a model.",
        place="input",
    )
    eval_base: bool | None = option(None, "Whether to judge the base model; by default where `model` is given.")
    eval_finetuned: bool | None = option(
        None, "Whether to judge the fine-tuned model; by default where `finetuned` is given."
    )
    eval_nim: bool | None = option(None, "Whether to judge the served model; by default where `nim_url` is given.")
    nim_url: str | None = option(None, "URL of an OpenAI- or NIM-compatible server; it must reproduce the tuned model.")
    nim_model: str | None = option(None, "The model's name there; the first that the server lists by default.")
    nim_api_key_env: str | None = option(
        None, "NAME of the environment variable with the server's API key.", operational=True
    )
    systems: dict[str, SystemOptions] = option(
        {},
        "Further systems by name: a model, or {model, encoder, dimensions, quantization, rescore, same_as}.",
    )
    bm25: bool = option(True, "Whether BM25 is judged too, as the floor.")
    fusion: list[str] | None = option(
        None,
        "Systems that are also fused with BM25 by reciprocal rank; by default the fine-tuned one, else the base.",
    )
    k_values: list[int] = option(list(K_VALUES), "Cuts of the metrics.", min_length=1)
    ignore_identical_ids: bool = option(True, "Pass over a hit that has the question's own id, as BEIR does.")
    skip_missing: bool = option(False, "Leave out systems that are not there instead of stopping.")
    fail_on_drift: bool = option(
        True, "Fail, once all is written, where a system differs from the one it is `same_as`.", operational=True
    )
    cache: str | None = option(
        None,
        "Folder or URI where vectors are kept from run to run; the output's staging by default.",
        operational=True,
        place="cache",
    )
    cache_dir: str | None = option(
        None,
        "Where downloaded test sets are put; $RAYCURATE_CACHE or the user's cache by default.",
        operational=True,
        place="cache",
    )
    changes: int = option(20, "Questions shown that changed most, as many that rose as that fell.", ge=0)
    seed: int = option(0, "Seed of the bootstrap and of the randomisation test.", ge=0)
    overwrite: bool = option(False, "Replace an output that is there already.", operational=True)

    @field_validator("systems", mode="before")
    @classmethod
    def _a_model_alone(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {name: {"model": one} if isinstance(one, str) else one for name, one in value.items()}

    @field_validator("k_values")
    @classmethod
    def _cuts(cls, value: list[int]) -> list[int]:
        if min(value) < 1:
            raise ValueError("cuts are whole numbers from 1")
        return sorted(set(value))

    @model_validator(mode="after")
    def _together(self) -> EvalConfig:
        for flag, given in (("eval_base", "model"), ("eval_finetuned", "finetuned"), ("eval_nim", "nim_url")):
            if getattr(self, flag) and getattr(self, given) is None:
                raise ValueError(f"{flag}=true needs {given}")
        names = self.dense_names
        if not names and not self.bm25:
            raise ValueError("there is nothing to evaluate: give model, finetuned, nim_url or systems, or bm25=true")
        taken = {BASE, FINETUNED, SERVED, BM25} & self.systems.keys()
        if taken:
            raise ValueError(f"systems: the name {min(taken)} is taken; give it another")
        for name in self.systems:
            if not name or not all(mark.isalnum() or mark in "._-" for mark in name) or name.startswith((".", "_")):
                raise ValueError(f"systems: {name!r} names a file, so it has letters, digits, '.', '_' and '-' only")
        if self.fusion and not self.bm25:
            raise ValueError("fusion needs bm25=true")
        for name in self.fusion or []:
            if name not in names:
                raise ValueError(f"fusion: there is no dense system '{name}'; there are {', '.join(names) or 'none'}")
        for name, one in self.systems.items():
            if one.same_as is not None and (one.same_as == name or one.same_as not in names):
                raise ValueError(f"systems.{name}.same_as={one.same_as}: it is not another of {', '.join(names)}")
        return self

    @property
    def dense_names(self) -> list[str]:
        """The systems that are models, in the order of the tables."""
        flags = ((BASE, self.eval_base, self.model), (FINETUNED, self.eval_finetuned, self.finetuned))
        nim = (SERVED, self.eval_nim, self.nim_url)
        chosen = [name for name, flag, given in (*flags, nim) if (given is not None if flag is None else flag)]
        return [*chosen, *self.systems]

    def options_of(self, name: str) -> SystemOptions:
        """What a dense system is and how it is run.

        What the stage says of `model` goes with that model alone, in whichever system it is: a fine-tuned one says it
        in its own files. Where and in which precision is for all but servers, which see to it themselves.
        """
        if name == BASE:
            found = SystemOptions(model=str(self.model))
        elif name == FINETUNED:
            found = SystemOptions(model=str(self.finetuned))
        elif name == SERVED:
            reference = next((n for n in (FINETUNED, BASE) if n in self.dense_names), None)
            named = {"model": self.nim_model, "api_key_env": self.nim_api_key_env}
            kwargs = {option: value for option, value in named.items() if value is not None}
            found = SystemOptions(model=str(self.nim_url), encoder={"engine_kwargs": kwargs}, same_as=reference)
        else:
            found = self.systems[name]
        under = {} if is_url(found.model) else self.run_as if found.model == self.model else of_any_model(self.run_as)
        one_way = dict.fromkeys(BY_ROLE)  # they are all in `encoder` now
        return found.model_copy(update={**one_way, "encoder": {**under, **found.run_as}})

    @property
    def fused_names(self) -> list[str]:
        """The dense systems that are fused with BM25."""
        if not self.bm25:
            return []
        if self.fusion is not None:
            return self.fusion
        return [name for name in (FINETUNED, BASE, *self.dense_names) if name in self.dense_names][:1]

    def result_keys(self) -> dict[str, Any]:
        """Where models run decides nothing; how they are run does."""
        kept = super().result_keys()
        kept.pop("model"), kept.pop("finetuned")  # their contents are in the input's fingerprint
        return {**kept, "encoder": decisive(self.encoder)}
