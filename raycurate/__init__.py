"""raycurate: documents -> a curated corpus and a search-grade embedding model, on Ray.

    import raycurate as rc

    documents = rc.read_documents("s3://bucket/docs")
    embedded = rc.embed(documents, model="sentence-transformers/all-MiniLM-L6-v2")

Names are imported when first used, so `import raycurate` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_NAMES = {
    "EmbeddingContract": "raycurate.models.contract",
    "RaycurateError": "raycurate.core.errors",
    "read_documents": "raycurate.data.documents.documents",
    "read_training_data": "raycurate.data.training.training",
}
_STAGES = (
    "sample_corpus", "embed", "kmeans", "dedup", "convert", "mine", "unroll", "prep", "finetune", "eval",
)  # fmt: skip
_BEFORE = {"deduplicate": "dedup", "mine_hard_negatives": "mine", "prepare": "prep", "evaluate": "eval"}
"""What stages were called before."""

if TYPE_CHECKING:
    from raycurate.core.errors import RaycurateError as RaycurateError
    from raycurate.data.documents.documents import read_documents as read_documents
    from raycurate.data.training.training import read_training_data as read_training_data
    from raycurate.models.contract import EmbeddingContract as EmbeddingContract
    from raycurate.stage import Stage
    from raycurate.stages.convert.stage import STAGE as convert
    from raycurate.stages.dedup.stage import STAGE as dedup
    from raycurate.stages.embed.stage import STAGE as embed
    from raycurate.stages.eval.stage import STAGE as eval
    from raycurate.stages.finetune.stage import STAGE as finetune
    from raycurate.stages.kmeans.stage import STAGE as kmeans
    from raycurate.stages.mine.stage import STAGE as mine
    from raycurate.stages.prep.stage import STAGE as prep
    from raycurate.stages.sample_corpus.stage import STAGE as sample_corpus
    from raycurate.stages.unroll.stage import STAGE as unroll

    deduplicate: Stage[Any, Any]
    mine_hard_negatives: Stage[Any, Any]
    prepare: Stage[Any, Any]
    evaluate: Stage[Any, Any]

__all__ = [
    "EmbeddingContract",
    "RaycurateError",
    "convert",
    "dedup",
    "deduplicate",
    "embed",
    "eval",
    "evaluate",
    "finetune",
    "kmeans",
    "mine",
    "mine_hard_negatives",
    "prep",
    "prepare",
    "read_documents",
    "read_training_data",
    "sample_corpus",
    "unroll",
]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    stage = _BEFORE.get(name, name)
    if stage in _STAGES:
        return importlib.import_module(f"raycurate.stages.{stage}.stage").STAGE
    raise AttributeError(f"module 'raycurate' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *_NAMES, *_STAGES, *_BEFORE])
