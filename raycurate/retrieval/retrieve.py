"""A model's answers to the questions of a test set: embed both sides, search exactly, keep the best documents' ids.

    found = retrieve(DenseModel("runs/tuned"), data, 101, cache="runs/cache", work="runs/eval/_staging/tuned")
    evaluate_hits(data.qrels, found.query_ids, found.document_ids_QK, found.scores_QK)

Checkpoints on their dev questions (stages/finetune/dev_eval.py) and `raycurate eval` go this one way. A model is run
under the contract of its own files and what `encoder` says of it (encoders/declared.py). Scores are cosines, or inner
products where the files say `dot`, as those of a checkpoint that was trained by them do; multi-vector models score by
MaxSim.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raycurate.core import storage
from raycurate.core.config import fingerprint
from raycurate.core.errors import ConfigError, InputError
from raycurate.data.corpora.beir import BeirData
from raycurate.encoders.base import is_url
from raycurate.encoders.cache import Texts, config_for, embed_texts

if TYPE_CHECKING:
    from raycurate.models.contract import EmbeddingContract
    from raycurate.search.hits import Hits

ROLES = ("query", "document")


@dataclass(frozen=True)
class DenseModel:
    """A model and how it is run.

    model: a folder or URI, or anything else that `raycurate embed` takes for one; a folder with separate encoders too.
    encoder: as encoders/declared.py has it: options of `raycurate embed` and what differs by role. dimensions: only the
    first so many (Matryoshka).
    quantization, rescore: what documents are searched in, and times k candidates scored anew (search/quantised.py).
    similarity: cosine or dot where its contract says nothing.
    """

    model: str
    encoder: dict[str, Any] = field(default_factory=dict)
    dimensions: int | None = None
    quantization: Literal["none", "int8", "binary"] = "none"
    rescore: int = 4
    similarity: str | None = None

    @property
    def by_role(self) -> dict[str, str]:
        """The model of each role: two where the encoders are separate."""
        apart = {role: storage.join(self.model, role) for role in ROLES}
        named = is_url(self.model) or self.model.startswith(("python:", "hf://"))  # no folder to look into
        if not named and all(storage.exists(storage.join(folder, "config.json")) for folder in apart.values()):
            return apart
        return dict.fromkeys(ROLES, self.model)

    def contracts(self) -> dict[str, EmbeddingContract]:
        """The contract of each role, what `encoder` says of it included.

        Raises:
            ConfigError, ContractError, InputError: options that embed does not have, or a model that cannot be used.
        """
        from raycurate.encoders.inspect import read_contract

        found = {}
        for role, model in self.by_role.items():
            contract = read_contract(config_for(model, self.encoder, role))
            found[role] = contract.model_copy(update={"similarity": contract.similarity or self.similarity})
        return found


@dataclass(frozen=True, eq=False)
class Retrieved:
    """What a system answers.

    query_ids: [Q]. document_ids_QK: object array, best first, None where there are fewer than K. scores_QK: float32,
    there -inf. about: what is known of how it was done (dimension, seconds, ...), plain values.
    """

    query_ids: list[str]
    document_ids_QK: np.ndarray
    scores_QK: np.ndarray
    about: dict[str, Any] = field(default_factory=dict)


def depth_of(data: BeirData, k: int) -> int:
    """Hits a question for metrics up to k: one more where a question's own id may be among them, which is passed over
    as BEIR does."""
    own = pc.any(pc.is_in(data.queries["_id"], value_set=data.corpus["_id"].combine_chunks())).as_py()
    return k + bool(own)


def retrieve(model: DenseModel, data: BeirData, depth: int, *, cache: str | None, work: str) -> Retrieved:
    """The `depth` best documents of each question of `data`; needs a running Ray.

    Args:
        cache: a folder of vectors that is kept from run to run (encoders/cache.py); None: they go with `work`.
        work: a folder that every node can write to; deleted at the end, found again by a second try of the same.

    Raises:
        ConfigError, ContractError: an option that embed does not have, or a model that cannot be used.
        InputError: texts that get no vector.
    """
    contracts = model.contracts()
    ids, texts = searchable(data.corpus, contracts["document"].document_template)
    # By falling id, since of equal scores the search keeps the first and trec_eval ranks the larger id first.
    order = pc.array_sort_indices(ids, order="descending").to_numpy().astype(np.int64)
    query_ids = data.queries["_id"].to_pylist()
    asked = [[contract.identity() for contract in contracts.values()], asdict(model), query_ids]
    folder = storage.join(work, fingerprint(asked))
    given = {
        "document": Texts("documents", texts, "document", order),
        "query": Texts("queries", data.queries["text"], "query"),
    }
    kept = cache or storage.join(folder, "cache")
    way = _several_vectors if contracts["document"].pooling == "multi_vector" else _one_vector
    rows_QK, scores_QK, about = way(model, contracts, given, kept, (folder, min(depth, len(ids))))
    storage.delete(folder)
    return Retrieved(query_ids, names_of(ids.take(pa.array(order)), rows_QK), scores_QK, about)


_Found = tuple[np.ndarray, np.ndarray, dict[str, Any]]
"""int64 and float32 [Q, depth]: numbers of the documents, -1 where there are fewer, and scores; and what is known."""


def _one_vector(
    model: DenseModel, contracts: dict[str, EmbeddingContract], given: dict[str, Texts], cache: str, to: tuple[str, int]
) -> _Found:
    """By inner products, of whole or quantised vectors; `to`: where vectors are laid out, and the depth."""
    from raycurate.search import search
    from raycurate.search.quantised import Quantised

    (folder, depth), clock = to, _Laps()
    contract = contracts["document"]
    # What has length one as the model gives it is scaled only where it is cut.
    unit = contract.by_cosine and (model.dimensions is not None or not contract.normalize)
    embedded = _embedded(
        model, given, folder, partial(embed_texts, cache=cache, unit=unit, dimensions=model.dimensions)
    )
    embed_seconds = clock.lap()
    queries, documents = embedded["query"].vectors, embedded["document"].vectors
    engine = None
    bytes_each = 4 * documents.dimension
    if model.quantization != "none":
        engine = Quantised.calibrated(model.quantization, documents, rescore=model.rescore)
        bytes_each = engine.bytes_per_document(documents.dimension)
    blocks = (
        hits
        for piece in queries.pieces(0, len(queries))
        for _, hits in search(queries.read(piece), documents, depth, device=_device(model), engine=engine)
    )
    rows_QK, scores_QK = _joined(blocks)
    return (
        rows_QK,
        scores_QK,
        {
            "dimension": documents.dimension,
            "bytes_per_document": bytes_each,
            "embedded_now": sum(one.fresh for one in embedded.values()),
            "embed_seconds": embed_seconds,
            "search_seconds": clock.lap(),
        },
    )


def _several_vectors(
    model: DenseModel, contracts: dict[str, EmbeddingContract], given: dict[str, Texts], cache: str, to: tuple[str, int]
) -> _Found:
    """By MaxSim; see `_one_vector`."""
    from raycurate.encoders.token_vectors import embed_token_texts
    from raycurate.search.maxsim import search_maxsim

    if model.dimensions is not None or model.quantization != "none":
        raise ConfigError(
            "a multi-vector model is searched with whole vectors only",
            where=model.model,
            fix="Leave out dimensions and quantization",
        )
    (folder, depth), clock = to, _Laps()
    both = _embedded(model, given, folder, partial(embed_token_texts, cache=cache))
    embed_seconds = clock.lap()
    documents = both["document"]
    rows_QK, scores_QK = _joined(
        hits for _, hits in search_maxsim(both["query"], documents, depth, device=_device(model))
    )
    return (
        rows_QK,
        scores_QK,
        {
            "kind": "multi_vector",
            "dimension": documents.dimension,
            "bytes_per_document": round(
                sum(storage.list_files(path)[0].size for path in documents.paths) / len(documents)
            ),
            "embed_seconds": embed_seconds,
            "search_seconds": clock.lap(),
        },
    )


class _Laps:
    """Seconds since it was asked last."""

    def __init__(self) -> None:
        self.last = time.monotonic()

    def lap(self) -> float:
        now = time.monotonic()
        passed, self.last = now - self.last, now
        return round(passed, 2)


def _embedded(
    model: DenseModel, given: dict[str, Texts], folder: str, embed: Callable[..., list[Any]]
) -> dict[str, Any]:
    """What `embed` makes of both roles: in one stream, unless the encoders are two."""
    models, vectors = model.by_role, storage.join(folder, "vectors")
    if models["query"] == models["document"]:
        both = embed(list(given.values()), models["query"], model.encoder, folder=vectors)
        return dict(zip(given, both, strict=True))
    return {
        role: embed([texts], models[role], model.encoder, folder=storage.join(vectors, role))[0]
        for role, texts in given.items()
    }


def _joined(blocks: Iterable[Hits]) -> tuple[np.ndarray, np.ndarray]:
    found = list(blocks)
    return np.concatenate([hits.rows_QK for hits in found]), np.concatenate([hits.scores_QK for hits in found])


def _device(model: DenseModel) -> str:
    return "cpu" if model.encoder.get("device") == "cpu" else "auto"


def searchable(corpus: pa.Table, template: str) -> tuple[pa.Array, pa.ChunkedArray]:
    """Ids and texts of the documents that have a text; one without can never be found.

    Raises:
        InputError: no document has one.
    """
    from raycurate.encoders.operators import fill_template

    pairs = zip(corpus["title"].to_pylist(), corpus["text"].to_pylist(), strict=True)
    texts = pa.array([fill_template(template, title, text) for title, text in pairs], pa.large_string())
    there = pc.not_equal(pc.utf8_trim_whitespace(texts), "")
    if not pc.any(there).as_py():
        raise InputError("there is no document with a text to search", where="corpus.jsonl")
    return pc.filter(corpus["_id"].combine_chunks(), there), pa.chunked_array([texts.filter(there)])


def names_of(ids: pa.Array, rows_QK: np.ndarray) -> np.ndarray:
    """Object array [Q, K]: ids of document rows, None where the row is -1."""
    names = np.array([*ids.to_pylist(), None], object)  # -1 is the last
    return names[rows_QK]
