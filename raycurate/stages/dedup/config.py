"""The options of semantic deduplication, under the names that users of NeMo Curator know."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import ValidationInfo, field_validator, model_validator

from raycurate.core.config import StageConfig, option
from raycurate.ray_runtime.cluster import ActorGroupOptions

ALGORITHM_VERSION = 1
RANKINGS = ("hard", "easy", "random")


class DedupConfig(StageConfig):
    """Clusters in; neighbours, edges, duplicates and the documents that are kept out."""

    input: str = option(
        ...,
        "Output of the kmeans stage, or of NeMo Curator's: centroid=K folders and, for probe, the centroids.",
        place="input",
    )
    output: str = option(..., "Folder or URI the result is written to.", operational=True, place="output")
    documents: str | list[str] | None = option(
        None, "The documents that were embedded; given, they are written again without the duplicates.", place="input"
    )
    document_options: dict[str, Any] = option(
        {},
        "How the documents are read (text_field, id_field, file_extensions, ...); by default as the embeddings' own "
        "manifest says they were.",
    )
    id_field: str = option("id", "Column that holds the id.")
    embedding_field: str = option("embeddings", "Column that holds the vector.")
    text_field: str = option("text", "Column whose equal values are copies, where the clusters have it.")
    which_to_keep: str | list[str] = option(
        "hard",
        "Who ranks first and is kept: hard (farthest from the centroid), easy (nearest), random, or a list of metadata "
        "columns, smallest first ('-column': largest first; nulls last).",
    )
    random_state: int = option(42, "Seed of which_to_keep=random.", ge=0)
    eps: float | None = option(
        0.01,
        "Rows with a cosine of at least 1 - eps to one that stays are removed; null: find the pairs, remove nothing.",
        ge=0,
        lt=1,
    )
    decision: Literal["survivor", "earlier"] = option(
        "survivor", "Near to what: a row that is kept (survivor), or any row that ranks earlier (earlier)."
    )
    score_floor: float = option(0.9, "Pairs of at least this cosine are stored as edges.", gt=0, le=1)
    probe: int = option(1, "Clusters a row is compared in: its own and the next nearest ones.", gt=0)
    against: str | None = option(
        None, "Output of an earlier deduplication whose kept rows come first and stay, for a new batch.", place="input"
    )
    recall_sample: int = option(
        0, "Rows, drawn at random, to compare with all others, to see what share of pairs was found.", ge=0
    )
    tile_rows: int = option(32768, "Rows of a cluster that are compared at once.", operational=True, gt=0)
    device: Literal["auto", "cpu", "cuda"] = option(
        "auto", "Where to compute; auto is CUDA where there are GPUs.", operational=True
    )
    actors: ActorGroupOptions = option(
        ActorGroupOptions(), "Placement and environment of the comparing workers.", operational=True
    )
    overwrite: bool = option(
        False, "Replace an output that is there; neighbours that are the same are not computed again.", operational=True
    )

    @field_validator("which_to_keep")
    @classmethod
    def _known_ranking(cls, value: str | list[str]) -> str | list[str]:
        if isinstance(value, list):
            if not value:
                raise ValueError("name at least one column")
            return value
        if value not in RANKINGS:
            raise ValueError(f"write one of {', '.join(RANKINGS)}, or a list of columns: [{value}]")
        return value

    @field_validator("score_floor")
    @classmethod
    def _eps_within_floor(cls, value: float, info: ValidationInfo) -> float:
        eps = info.data.get("eps") or 0.0
        if eps > 1 - value + 1e-9:
            raise ValueError(
                f"eps={eps:g} needs pairs of cosine {1 - eps:g}, and score_floor={value:g} leaves out those below; "
                f"set eps to {1 - value:.6g} or less, or a lower score_floor"
            )
        return value

    @model_validator(mode="after")
    def _nothing_to_remove_without_eps(self) -> Self:
        if self.eps is None and self.documents is not None:
            raise ValueError(
                "eps=null removes nothing, so there are no documents to write; leave documents out, or set eps"
            )
        return self

    def pair_keys(self) -> dict[str, Any]:
        """The options that decide neighbours and edges; the others decide only what follows from them."""
        later = {"eps", "decision", "documents", "document_options", "recall_sample"}
        return {name: value for name, value in self.result_keys().items() if name not in later}
