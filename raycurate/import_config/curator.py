"""NeMo Curator: the arguments of its semantic deduplication, as a mapping or as the call in a Python file.

`decision: earlier` is what Curator does, and is written so that the same documents go.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raycurate.import_config.rules import Becomes, Draft, Left, Table, apply, number

CALLS = (
    "SemanticDeduplicationWorkflow", "TextSemanticDeduplicationWorkflow", "KMeansStage", "PairwiseStage",
    "IdentifyDuplicatesStage", "SemDedup", "ClusteringModel", "SemanticClusterLevelDedup",
)  # fmt: skip
"""The classes whose arguments are read."""
UNKNOWN = "raycurate knows no such argument of Curator"


def is_arguments(values: Mapping[str, Any]) -> bool:
    """Whether a mapping holds the arguments of Curator's clustering or deduplication."""
    return "n_clusters" in values or ("eps" in values and "input_path" in values) or "pairwise_batch_size" in values


def read(values: Mapping[str, Any], draft: Draft) -> None:
    """Lay the arguments into the draft."""
    texts = "model_identifier" in values or "text_field" in values
    draft.put("dedup.decision", "earlier", "what Curator does")
    apply(draft, values, {**_TABLE, **(_TEXTS if texts else _VECTORS)}, unknown=UNKNOWN)
    if draft.get("workdir") is None and isinstance(values.get("output_path"), str):
        draft.put("workdir", values["output_path"], "output_path")
    if "eps" not in values:
        draft.put("dedup.eps", None, "no eps: pairs only, nothing is removed")
    draft.trap(
        "decision: earlier removes every document that is close to an earlier one, also where that one goes too; "
        "raycurate's own default, survivor, removes only what is close to a document that stays"
    )


def _metric(draft: Draft, key: str, value: Any) -> None:
    draft.leave(key, value, "vectors have length one, where cosine and l2 rank alike")


def _ranking(draft: Draft, key: str, value: Any) -> None:
    draft.leave(key, value, "name the columns in dedup.which_to_keep, e.g. [-quality, id]")


def _clear(draft: Draft, key: str, value: Any) -> None:
    draft.leave(key, value, "an output that is there is replaced only where overwrite=true is said")


_TABLE: Table = {
    "output_path": lambda *_: None,
    "cache_path": Becomes("kmeans.output", lambda value: f"{str(value).rstrip('/')}/kmeans_results", "Curator's place"),
    "n_clusters": Becomes("kmeans.n_clusters"),
    "id_field": Becomes(("kmeans.id_field", "dedup.id_field")),
    "embedding_field": Becomes(("kmeans.embedding_field", "dedup.embedding_field")),
    "eps": Becomes("dedup.eps", number),
    "which_to_keep": Becomes("dedup.which_to_keep"),
    "distance_metric": _metric,
    "sim_metric": _metric,
    "ranking_strategy": _ranking,
    "clear_output": _clear,
    "random_seed": Becomes("dedup.random_state"),
    "random_state": Becomes(("kmeans.random_state", "dedup.random_state")),
    "read_kwargs": Becomes("kmeans.read_kwargs"),
    "write_kwargs": Becomes("kmeans.write_kwargs"),
    "cache_kwargs": Left("kmeans.write_kwargs is for all that k-means writes"),
    "pairwise_batch_size": Left("how fast, not what; dedup.tile_rows bounds the memory"),
    "input_file_extensions": Left("extensions are known in any case, with .gz and .zst"),
    "verbose": Left("-v shows more"),
    **{
        name: Becomes(f"kmeans.{name}")
        for name in (
            "embedding_dim", "metadata_fields", "input_filetype", "max_iter", "tol", "init", "n_init",
            "oversampling_factor", "max_samples_per_batch", "fit_data_fraction",
        )
    },
}  # fmt: skip
_VECTORS: Table = {"input_path": Becomes("kmeans.input")}
_TEXTS: Table = {
    "input_path": Becomes("corpus"),
    "input_filetype": Left("told by each file's extension"),
    "model_identifier": Becomes("model"),
    "text_field": Becomes("embed.text_field"),
    "id_field": Becomes("embed.id_field"),
    "embedding_field": Becomes(("embed.embedding_field", "kmeans.embedding_field", "dedup.embedding_field")),
    "embedding_max_seq_length": Becomes("embed.max_length"),
    "embedding_max_chars": Becomes("embed.max_chars"),
    "embedding_padding_side": Becomes("embed.padding_side"),
    "embedding_pooling": Becomes(
        "embed.pooling", {"mean_pooling": "mean", "last_token": "last", "cls": "cls"}.get, "Curator's name of it"
    ),
    "embedding_model_inference_batch_size": Left("batches are cut by tokens; embed.batch_tokens"),
    "hf_token": Left("a secret has no place in a recipe: set HF_TOKEN where it runs, or embed.hf_token: ${env:NAME}"),
    "cache_dir": Becomes("embed.cache_dir"),
    "use_id_generator": Left("documents without an id are given one, stable from run to run"),
    "perform_removal": Left("the documents that stay are written wherever dedup has documents and an eps"),
}
