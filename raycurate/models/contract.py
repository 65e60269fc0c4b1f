"""EmbeddingContract: how a model turns text into a vector, in full.

Engines that disagree silently are the most common fault of embedding systems, so all that decides a
vector is written down once, stored beside every set of vectors, and compared wherever two meet. The fields
fall in two: identity (another value gives another vector) and provenance (which engine, in which
precision: the same vector up to rounding). `similarity` is neither: it says how vectors are compared.

models/checkpoint.py reads it from a model's own files.
"""

from __future__ import annotations

import json
from typing import Any, Literal, Self, get_args

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from raycurate.core.config import fingerprint
from raycurate.core.errors import ContractError, nearest

Pooling = Literal["mean", "cls", "last", "weighted_mean", "max", "mean_sqrt_len", "multi_vector"]
Attention = Literal["bidirectional", "causal"]

POOLINGS: tuple[str, ...] = get_args(Pooling)
# Names other tools use: NeMo AutoModel (`weighted_avg` is a plain sum there; here it means what it says, the mean
# weighted by position, Muennighoff 2022, SGPT), NeMo Curator and sentence-transformers.
POOLING_ALIASES = {
    "avg": "mean", "average": "mean", "mean_pooling": "mean", "mean_tokens": "mean",
    "cls_token": "cls", "cls_pooling": "cls", "first": "cls",
    "last_token": "last", "lasttoken": "last", "last_token_pooling": "last",
    "weighted_avg": "weighted_mean", "weightedmean": "weighted_mean",
    "max_pooling": "max", "max_tokens": "max", "mean_sqrt_len_tokens": "mean_sqrt_len",
    "colbert": "multi_vector",
}  # fmt: skip
PROVENANCE = ("engine", "dtype", "padding_side", "versions")
SCHEMA_KEY = b"raycurate.contract"
# sentence-transformers looks for a document's prompt under these names, in this order.
_ROLE_NAMES = {"document": ("document", "passage", "corpus"), "query": ("query",)}


def pooling_name(name: str) -> str:
    """The house's name of a pooling, from its own or another tool's.

    Raises:
        ValueError: nobody's name; the message gives the nearest one.
    """
    found = POOLING_ALIASES.get(name, name)
    if found not in POOLINGS:
        close = nearest(name, [*POOLINGS, *POOLING_ALIASES])
        hint = f"; did you mean '{close}'?" if close else ""
        raise ValueError(f"'{name}' is no pooling{hint}. Known: {', '.join(POOLINGS)}")
    return found


class DenseSpec(BaseModel):
    """A linear layer after pooling, as sentence-transformers' `Dense`; its weights count in `weights`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    in_features: int
    out_features: int
    activation: str
    bias: bool


class EmbeddingContract(BaseModel):
    """What decides a vector (identity), and what merely computed it (provenance)."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    weights: str = Field(description="sha256 of the weight files, adapter and Dense heads included")
    tokenizer: str = Field(description="sha256 of the tokenizer's files")
    pooling: Pooling
    modules: tuple[DenseSpec, ...] = ()
    normalize: bool
    attention: Attention
    prompts: dict[str, str] = Field(default_factory=dict, description="literal text put before the input, by role")
    document_template: str = "{title} {text}"
    max_length: int = Field(
        gt=0, description="tokens, special ones included; what is longer is cut where the tokenizer says, at the end"
    )
    dimension: int = Field(gt=0)
    matryoshka_dims: tuple[int, ...] = ()
    similarity: str | None = Field(default=None, description="how its vectors are compared, where its files say so")

    engine: str = ""
    dtype: str = ""
    padding_side: str = ""
    versions: dict[str, str] = Field(default_factory=dict)

    @field_validator("prompts")
    @classmethod
    def _without_empty(cls, prompts: dict[str, str]) -> dict[str, str]:
        return {role: text for role, text in sorted(prompts.items()) if text}  # '' is the same as none

    def identity(self) -> dict[str, Any]:
        """The fields that decide the vector, as plain JSON values."""
        return self.model_dump(mode="json", exclude={*PROVENANCE, "similarity"})

    def provenance(self) -> dict[str, Any]:
        """The fields that say what computed it."""
        return self.model_dump(mode="json", include=set(PROVENANCE))

    def fingerprint(self) -> str:
        """16 hex digits over the identity."""
        return fingerprint(self.identity())

    def differences(self, other: EmbeddingContract) -> dict[str, tuple[Any, Any]]:
        """Identity fields in which `other` differs: field -> (value here, value there)."""
        mine, theirs = self.identity(), other.identity()
        return {name: (mine[name], theirs[name]) for name in mine if mine[name] != theirs[name]}

    def require_same(self, other: EmbeddingContract, *, here: str, there: str) -> None:
        """Refuse to mix vectors of two identities.

        Args:
            here: what carries this contract, for the message ("the index at ...").
            there: what carries `other`.

        Raises:
            ContractError: they differ; the message names each field and both values.
        """
        found = self.differences(other)
        if not found:
            return
        lines = "; ".join(
            f"{name} is {mine!r} in {here} and {theirs!r} in {there}" for name, (mine, theirs) in found.items()
        )
        raise ContractError(
            f"vectors made in different ways would be mixed: {lines}",
            where=f"{here} and {there}",
            fix="Embed both with the same model and the same options",
        )

    @property
    def by_cosine(self) -> bool:
        """Whether vectors are compared by their directions: where the model's files say so or nothing, as
        sentence-transformers has it, and where all have length one, for which cosine and inner product are the same.

        Raises:
            ContractError: they say something else, such as euclidean.
        """
        if self.normalize or self.similarity in (None, "cosine"):
            return True
        if self.similarity == "dot":
            return False
        raise ContractError(
            f"its vectors are compared by '{self.similarity}'; a search here is by cosine or dot",
            where="similarity_fn_name in config_sentence_transformers.json",
            fix="Write cosine or dot there, or run it with normalize=true, which makes them agree",
        )

    def prompt_for(self, role: str) -> str:
        """The literal text put before an input in `role` ("query", "document" or a name of the model's); '' if none."""
        for name in _ROLE_NAMES.get(role, (role,)):
            if name in self.prompts:
                return self.prompts[name]
        return ""

    def with_provenance(self, *, engine: str, dtype: str, padding_side: str, versions: dict[str, str]) -> Self:
        """The same identity, computed by something else."""
        update = {"engine": engine, "dtype": dtype, "padding_side": padding_side, "versions": versions}
        return self.model_copy(update=update)

    def to_json(self) -> str:
        return json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False, sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes, *, where: str = "contract.json") -> Self:
        """Read what `to_json` wrote.

        Raises:
            ContractError: it is not a contract.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            problems = "; ".join(f"{'.'.join(map(str, p['loc']))}: {p['msg']}" for p in error.errors(include_url=False))
            raise ContractError(f"this is not an embedding contract ({problems})", where=where) from None

    @classmethod
    def from_checkpoint(
        cls,
        path: str,
        *,
        pooling: str | None = None,
        normalize: bool | None = None,
        max_length: int | None = None,
        document_template: str | None = None,
        prompts: dict[str, str] | None = None,
    ) -> Self:
        """The contract of a model folder, from its own files; explicit arguments win.

        With modules.json (sentence-transformers) pooling, Dense heads, normalisation, prompts and length are
        what it says, as version 6.2 reads it. Without, there are no prompts, the length is the tokenizer's or the
        position table's, vectors are not normalised, and pooling is config.json's `pooling` if it has one, else
        `mean` for encoders and bidirectional models, `last` for causal decoders. In any case a text is cut to the
        positions that the model has.

        Args:
            path: a local folder.
            pooling: a name of POOLINGS or an alias.
            prompts: replaces the model's own prompts as a whole.

        Raises:
            ContractError: a module, a pooling or a length that this project cannot reproduce.
            InputError: the folder is no checkpoint, or a file of it is broken or does not fit the others.
        """
        from raycurate.models.checkpoint import read_checkpoint

        values = read_checkpoint(path, pooling=pooling, max_length=max_length)
        if normalize is not None:
            values["normalize"] = normalize
        if document_template is not None:
            values["document_template"] = document_template
        if prompts is not None:
            values["prompts"] = prompts
        return cls(**values)


def contract_from_schema(schema: pa.Schema) -> EmbeddingContract | None:
    """The contract in a schema's metadata; None when there is none.

    Raises:
        ContractError: there is one that cannot be read.
    """
    found = (schema.metadata or {}).get(SCHEMA_KEY)
    return None if found is None else EmbeddingContract.from_json(found, where="Parquet schema metadata")
