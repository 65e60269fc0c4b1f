"""How well a checkpoint searches: nDCG@10 and recall over the whole corpus of a test set, on its dev questions.

Checkpoints are chosen by this, so the test questions are never read here. It embeds, searches and counts by what mining
and evaluation use (embed/cache.py, search/, evaluate/metrics.py), under the contract of the checkpoint's own files;
scores are inner products of the vectors as the model gives them, which is what it was trained by.

    evaluate_dev("s3://bucket/run/checkpoints/epoch_0_step_100/model/consolidated", DevOptions(eval_beir, work))

It runs alone, or in the task in which Ray Train validates one checkpoint at a time while the training goes on
(`ValidationConfig`: give that task num_cpus=0, as it only waits). It asks for encoders and search workers like any
other program: they need CPUs or GPUs that the training does not hold, or wait until it ends. What fails there reaches
Ray Train's log only, and its checkpoint has no metrics: whoever chooses by them must look.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raycurate.core import storage
from raycurate.core.config import fingerprint
from raycurate.core.errors import ConfigError, InputError
from raycurate.core.observe import get_logger
from raycurate.data.beir import BeirData, read_beir
from raycurate.embed.cache import Embedded, Texts, embed_texts
from raycurate.encoders.base import is_url
from raycurate.evaluate.metrics import Metrics, evaluate_hits

if TYPE_CHECKING:
    from ray.train import Checkpoint

    from raycurate.core.contract import EmbeddingContract

log = get_logger(__name__)

SPLIT = "dev"
METRICS = {"dev_ndcg10": "NDCG@10", "dev_recall10": "Recall@10", "dev_recall100": "Recall@100", "dev_mrr10": "MRR@10"}
"""What `evaluate_dev` returns, and the names of the same in BEIR."""

_CUTS = (10, 100)
_ROLES = ("query", "document")


@dataclass(frozen=True)
class DevOptions:
    """Plain values throughout: Ray Train hands them to its validation task as JSON (`dataclasses.asdict`).

    eval_beir: a folder in BEIR's layout with qrels/dev.tsv. work: a folder that every node of the cluster can write to;
    what is put there is deleted at the end, and found again by a second try if the first was killed. encoder: how the
    model is run, options of `raycurate embed` (dtype, max_length, device, concurrency, num_gpus, ...). query_prefix,
    document_prefix: literal text instead of the checkpoint's own prompts. cache: a folder of vectors that is kept
    (embed/cache.py); by default they are deleted with the rest.
    """

    eval_beir: str
    work: str
    encoder: dict[str, Any] = field(default_factory=dict)
    query_prefix: str | None = None
    document_prefix: str | None = None
    cache: str | None = None


def read_dev(eval_beir: str) -> BeirData:
    """The dev questions of a test set and its whole corpus.

    Raises:
        InputError: there is no dev split, no question in it, or something is wrong with the files.
    """
    data = read_beir(eval_beir, SPLIT)
    if not any(data.qrels.values()):
        raise InputError("there is no judged question", where=storage.join(eval_beir, "qrels", f"{SPLIT}.tsv"))
    return data


def evaluate_dev(model: str, options: DevOptions) -> dict[str, float]:
    """The metrics of `METRICS` and `dev_questions`, over all dev questions; needs a running Ray.

    Args:
        model: the exported model, a folder or URI (`model/consolidated` of a checkpoint), or anything that
            `raycurate embed` takes for one.

    Raises:
        ConfigError: an option that embed does not have, or a multi-vector model.
        ContractError, InputError: a model or a test set that cannot be used, texts that get no vector.
    """
    started = time.monotonic()
    found = judge(model, read_dev(options.eval_beir), options)
    log.info(
        "dev: %s: nDCG@10 %.4f, recall@100 %.4f of %s questions in %.1f s",
        model,
        found["NDCG@10"],
        found["Recall@100"],
        f"{found.queries:,}",
        time.monotonic() - started,
    )
    return {**{name: found[beir] for name, beir in METRICS.items()}, "dev_questions": float(found.queries)}


def judge(model: str, data: BeirData, options: DevOptions) -> Metrics:
    """Search the corpus of `data` for its questions with a model, and judge what comes; see `evaluate_dev`."""
    models = _models(model)
    contracts = {role: _contract(models[role], options.encoder) for role in _ROLES}
    ids, texts = _documents(data.corpus, contracts["document"].document_template)
    # By falling id, since of equal scores the search keeps the first and trec_eval ranks the larger id first.
    order = pc.array_sort_indices(ids, order="descending").to_numpy().astype(np.int64)
    asked = [contract.identity() for contract in contracts.values()]
    work = storage.join(options.work, fingerprint([asked, asdict(options), data.queries["_id"].to_pylist()]))
    given = {
        "document": Texts("documents", texts, "document", order, options.document_prefix),
        "query": Texts("queries", data.queries["text"], "query", None, options.query_prefix),
    }
    embedded = _embed(given, models, options, work)
    rows_QK, scores_QK = _search(embedded, _depth(data, ids), options.encoder)
    storage.delete(work)
    names_QK = np.asarray(ids.to_pylist(), object)[order][rows_QK]
    names_QK[rows_QK < 0] = None
    return evaluate_hits(data.qrels, data.queries["_id"].to_pylist(), names_QK, scores_QK, k_values=_CUTS)


def checkpoint_uri(checkpoint: Checkpoint) -> str:
    """The folder of a Ray Train checkpoint, as raycurate.core.storage takes it.

    Raises:
        ConfigError: a filesystem that has no URI.
    """
    from pyarrow import fs

    found: Any = checkpoint.filesystem
    path = checkpoint.path
    if isinstance(found, fs.LocalFileSystem):
        return str(path)
    if isinstance(found, fs.S3FileSystem):
        return f"s3://{path}"
    if isinstance(found, fs.GcsFileSystem):
        return f"gs://{path}"
    if isinstance(found, fs.PyFileSystem) and isinstance(found.handler, fs.FSSpecHandler):
        return str(found.handler.fs.unstrip_protocol(path))
    raise ConfigError(
        f"a checkpoint on a filesystem of type {found.type_name} cannot be read by the encoders",
        where=str(path),
        fix="Store the run in a folder, or on S3, GCS or another store that fsspec knows",
    )


def _models(model: str) -> dict[str, str]:
    """The model of each role: two where the encoders are separate."""
    apart = {role: storage.join(model, role) for role in _ROLES}
    named = is_url(model) or model.startswith(("python:", "hf://"))  # no folder to look into
    if not named and all(storage.exists(storage.join(folder, "config.json")) for folder in apart.values()):
        return apart
    return dict.fromkeys(_ROLES, model)


def _contract(model: str, encoder: dict[str, Any]) -> EmbeddingContract:
    from raycurate.embed.config import EmbedConfig
    from raycurate.embed.model import read_contract

    values = {**encoder, "model": model, "input": "(texts)", "output": "(cache)"}
    return read_contract(EmbedConfig.parse(values, where=f"options of the encoder {model}"))


def _documents(corpus: pa.Table, template: str) -> tuple[pa.Array, pa.ChunkedArray]:
    """Ids and texts of the documents that have a text; one without can never be found."""
    from raycurate.embed.operators import fill_template

    pairs = zip(corpus["title"].to_pylist(), corpus["text"].to_pylist(), strict=True)
    texts = pa.array([fill_template(template, title, text) for title, text in pairs], pa.large_string())
    there = pc.not_equal(pc.utf8_trim_whitespace(texts), "")
    if not pc.any(there).as_py():
        raise InputError("there is no document with a text to search", where="corpus.jsonl")
    return pc.filter(corpus["_id"].combine_chunks(), there), pa.chunked_array([texts.filter(there)])


def _depth(data: BeirData, ids: pa.Array) -> int:
    """Hits a question: one more where a question's own id may be among them, which is passed over as BEIR does."""
    own = pc.any(pc.is_in(data.queries["_id"], value_set=ids)).as_py()
    return min(max(_CUTS) + bool(own), len(ids))


def _embed(given: dict[str, Texts], models: dict[str, str], options: DevOptions, work: str) -> dict[str, Embedded]:
    """Vectors of both roles: in one stream, unless the encoders are two."""
    encoder, folder = options.encoder, storage.join(work, "vectors")
    cache = options.cache or storage.join(work, "cache")
    if models["query"] == models["document"]:
        both = embed_texts(list(given.values()), models["query"], encoder, cache=cache, folder=folder, unit=False)
        return dict(zip(given, both, strict=True))
    return {
        role: embed_texts([texts], models[role], encoder, cache=cache, folder=storage.join(folder, role), unit=False)[0]
        for role, texts in given.items()
    }


def _search(embedded: dict[str, Embedded], depth: int, encoder: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """int64 and float32 [Q, depth]: numbers of the documents, -1 where there are fewer, and scores."""
    from raycurate.search import search

    device = "cpu" if encoder.get("device") == "cpu" else "auto"
    queries, documents = embedded["query"].vectors, embedded["document"].vectors
    rows, scores = [], []
    for piece in queries.pieces(0, len(queries)):
        for _, hits in search(queries.read(piece), documents, depth, device=device):
            rows.append(hits.rows_QK)
            scores.append(hits.scores_QK)
    return np.concatenate(rows), np.concatenate(scores)
