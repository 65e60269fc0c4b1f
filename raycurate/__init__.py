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
    "EmbeddingContract": "raycurate.core.contract",
    "RaycurateError": "raycurate.core.errors",
    "deduplicate": "raycurate.dedup.stage",
    "mine_hard_negatives": "raycurate.prep.mine_stage",
    "prepare": "raycurate.prep.stage",
    "read_documents": "raycurate.data.documents",
    "read_training_data": "raycurate.data.training",
}

if TYPE_CHECKING:
    from raycurate.core.contract import EmbeddingContract as EmbeddingContract
    from raycurate.core.errors import RaycurateError as RaycurateError
    from raycurate.data.documents import read_documents as read_documents
    from raycurate.data.training import read_training_data as read_training_data
    from raycurate.dedup.stage import deduplicate as deduplicate
    from raycurate.embed.transform import embed as embed
    from raycurate.evaluate.stage import evaluate as evaluate
    from raycurate.finetune.stage import finetune as finetune
    from raycurate.kmeans.stage import kmeans as kmeans
    from raycurate.prep.mine_stage import mine_hard_negatives as mine_hard_negatives
    from raycurate.prep.stage import prepare as prepare

__all__ = [
    "EmbeddingContract",
    "RaycurateError",
    "deduplicate",
    "embed",
    "evaluate",
    "finetune",
    "kmeans",
    "mine_hard_negatives",
    "prepare",
    "read_documents",
    "read_training_data",
]


_STAGES = {"embed", "evaluate", "finetune", "kmeans"}  # packages that are functions too (core/callable_module.py)


def __getattr__(name: str) -> Any:
    if name in _STAGES:
        return importlib.import_module(f"raycurate.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'raycurate' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *_NAMES])
