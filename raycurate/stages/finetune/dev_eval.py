"""How well a checkpoint searches: nDCG@10 and recall over the whole corpus of a test set, on its dev questions.

Checkpoints are chosen by this, so the test questions are never read here. It embeds, searches and counts as
`raycurate eval` does (retrieval/retrieve.py, retrieval/metrics.py), under the contract of the checkpoint's own files.

    evaluate_dev("s3://bucket/run/checkpoints/epoch_0_step_100/model/consolidated", DevOptions(eval_beir, work))

It runs alone, or in the task in which Ray Train validates one checkpoint at a time while the training goes on
(`ValidationConfig`: give that task num_cpus=0, as it only waits). It asks for encoders and search workers like any
other program: they need CPUs or GPUs that the training does not hold, or wait until it ends. What fails there reaches
Ray Train's log only, and its checkpoint has no metrics: whoever chooses by them must look.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from raycurate.core.errors import ConfigError
from raycurate.core.observe import get_logger
from raycurate.data.corpora.beir import BeirData, read_beir, require_judgements
from raycurate.retrieval.metrics import Metrics, evaluate_hits
from raycurate.retrieval.retrieve import DenseModel, depth_of, retrieve

if TYPE_CHECKING:
    from ray.train import Checkpoint

log = get_logger(__name__)

SPLIT = "dev"
METRICS = {"dev_ndcg10": "NDCG@10", "dev_recall10": "Recall@10", "dev_recall100": "Recall@100", "dev_mrr10": "MRR@10"}
"""What `evaluate_dev` returns, and the names of the same in BEIR."""

_CUTS = (10, 100)


@dataclass(frozen=True)
class DevOptions:
    """Plain values throughout: Ray Train hands them to its validation task as JSON (`dataclasses.asdict`).

    eval_beir: a folder in BEIR's layout with qrels/dev.tsv. work: a folder that every node of the cluster can write to;
    what is put there is deleted at the end, and found again by a second try if the first was killed. encoder: how the
    model is run (encoders/declared.py). cache: a folder of vectors that is kept (encoders/cache.py); by default they
    are deleted with the rest.
    """

    eval_beir: str
    work: str
    encoder: dict[str, Any] = field(default_factory=dict)
    cache: str | None = None


def read_dev(eval_beir: str) -> BeirData:
    """The dev questions of a test set and its whole corpus.

    Raises:
        InputError: there is no dev split, no question in it, or something is wrong with the files.
    """
    return require_judgements(read_beir(eval_beir, SPLIT), eval_beir, SPLIT)


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
    found = retrieve(
        DenseModel(model, options.encoder), data, depth_of(data, max(_CUTS)), cache=options.cache, work=options.work
    )
    return evaluate_hits(data.qrels, found.query_ids, found.document_ids_QK, found.scores_QK, k_values=_CUTS)


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
