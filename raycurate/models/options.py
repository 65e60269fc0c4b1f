"""What a user can say about a model and how it is run: one set of options for every engine."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import SecretStr, field_validator, model_validator

from raycurate.core.config import StageConfig, option
from raycurate.core.errors import nearest
from raycurate.models.contract import pooling_name

ENGINES = {
    "transformers": "raycurate.encoders.transformers:TransformersEncoder",
    "sentence-transformers": "raycurate.encoders.sentence_transformers:SentenceTransformersEncoder",
    "vllm": "raycurate.encoders.vllm:VllmEncoder",
    "endpoint": "raycurate.encoders.endpoint:EndpointEncoder",
}
"""What runs a model, and its class; a new engine is its module in `encoders/` and a line here."""
_MODULE_AND_CLASS = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


def is_own_engine(engine: str) -> bool:
    """Whether an engine is named as a class of the user's own, `module:Class`."""
    return bool(_MODULE_AND_CLASS.fullmatch(engine))


class EncoderOptions(StageConfig):
    """A model and how to run it. None and "auto" leave the choice to the model's files and the machine."""

    model: str = option(
        ...,
        "The model: a folder, a Hugging Face id, `python:MODULE` (a model in a Python package), or an endpoint's URL.",
        min_length=1,
        place="model",
    )
    revision: str | None = option(None, "Branch, tag or commit of a Hugging Face model.")
    tokenizer: str | None = option(
        None,
        "A model (folder, id or python:MODULE) whose tokenizer is taken in place of the model's own.",
        place="model",
    )
    add_bos: bool | None = option(
        None, "Whether a text begins with the tokenizer's token for that; by default as it does."
    )
    add_eos: bool | None = option(
        None, "Whether a text ends with the tokenizer's token for that; by default as it does."
    )
    engine: str = option(
        "auto", "What runs the model: auto, transformers, sentence-transformers, vllm, endpoint or module:Class."
    )
    pooling: str | None = option(
        None,
        "How token vectors become one: mean, cls, last, weighted_mean or multi_vector; the model's own by default.",
    )
    normalize: bool | None = option(None, "Scale vectors to length one; the model's own habit by default.")
    max_length: int | None = option(
        None, "Tokens kept of a text, special ones included; the model's own by default.", gt=0
    )
    padding_side: Literal["auto", "left", "right"] = option(
        "auto", "Where padding goes when rows are padded at all.", operational=True
    )
    role: str = option(
        "document", "Which of the model's prompts is put before a text: document or query.", min_length=1
    )
    prefix: str | None = option(None, "Literal text put before every input instead of the role's prompt; '' for none.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "Precision of the weights: auto is bfloat16 where the hardware has it, else float32."
    )
    batch_tokens: Literal["auto"] | int = option("auto", "Tokens a micro-batch holds at most.", operational=True)
    batch_size: int = option(512, "Rows a micro-batch holds at most.", operational=True, gt=0)
    sort_by_length: bool = option(True, "Put texts of like length in one micro-batch.", operational=True)
    engine_kwargs: dict[str, Any] = option({}, "Options of the one engine, by its own names; see the engine's module.")
    cache_dir: str | None = option(
        None, "Where downloaded models are kept; the Hugging Face cache by default.", operational=True, place="cache"
    )
    hf_token: SecretStr | None = option(
        None, "Token for gated models; the hub's own environment by default.", operational=True
    )
    trust_remote_code: bool = option(False, "Run Python code that comes with the model.")
    local_files_only: bool = option(False, "Never ask the network for a model.", operational=True)
    device: Literal["auto", "cpu", "cuda"] = option(
        "auto", "Where the model runs: auto is CUDA where there is one.", operational=True
    )

    @model_validator(mode="before")
    @classmethod
    def _no_pretokenize(cls, values: Any) -> Any:
        if isinstance(values, dict) and "pretokenize" in values:
            raise ValueError(
                "pretokenize is no option any more: engines that take tokens always get them from tasks of their own, "
                "the others never; leave it out"
            )
        return values

    @field_validator("pooling")
    @classmethod
    def _known_pooling(cls, value: str | None) -> str | None:
        return None if value is None else pooling_name(value)

    @field_validator("engine")
    @classmethod
    def _known_engine(cls, value: str) -> str:
        if value == "auto" or value in ENGINES or is_own_engine(value):
            return value
        close = nearest(value, ENGINES)
        hint = f"; did you mean '{close}'?" if close else ""
        raise ValueError(f"there is no such engine{hint}. Known: auto, {', '.join(ENGINES)}, module:Class")

    @field_validator("batch_tokens")
    @classmethod
    def _some_tokens(cls, value: str | int) -> str | int:
        if isinstance(value, int) and value < 1:
            raise ValueError("a micro-batch holds at least one token")
        return value

    def token(self) -> str | None:
        """The hub token in the clear, for the hub's client only."""
        return self.hf_token.get_secret_value() if self.hf_token else None
