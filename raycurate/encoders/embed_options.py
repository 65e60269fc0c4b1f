"""The options of the embed stage, on top of those of the documents and of the encoder."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from raycurate.core.config import option
from raycurate.data.documents.documents import DocumentsOptions
from raycurate.models.options import EncoderOptions
from raycurate.ray_runtime.cluster import ActorGroupOptions
from raycurate.streams.repeated_ids import RepeatedIds

ALGORITHM_VERSION = 2
"""2: made-up ids come from paths relative to the input's root, and over-long texts are cut, not rejected."""


class EmbedConfig(EncoderOptions, DocumentsOptions):
    """Documents in, one vector (or, for multi-vector models, a list of vectors) a document out."""

    output: str = option(..., "Folder or URI the embeddings are written to.", operational=True, place="output")
    embedding_field: str = option("embeddings", "Name of the embedding column.")
    output_dtype: Literal["float32", "float16"] = option("float32", "Type of the vectors as stored.")
    repeated_ids: RepeatedIds = option(
        "error",
        "What is done when documents share an id: error refuses and names them, rename gives the later ones ids of "
        "their own (listed in _renamed/).",
    )
    keep_text: bool = option(False, "Keep the text column in the output.")
    concurrency: int | Literal["auto"] | list[int] = option(
        "auto", "Encoder actors: a number, [min, max] for an autoscaling pool, or auto.", operational=True
    )
    num_gpus: Annotated[float, Field(ge=0)] | Literal["auto"] = option(
        "auto", "GPUs an encoder actor takes (fractions allowed); auto is 1 where there are GPUs.", operational=True
    )
    actors: ActorGroupOptions = option(
        ActorGroupOptions(),
        "Placement and environment of the encoder actors: num_cpus, resources, accelerator_type, label_selector, "
        "runtime_env (uv, pip, py_executable, image_uri, env_vars).",
        operational=True,
    )
    overwrite: bool = option(False, "Replace an output that is there already.", operational=True)
    max_rejects: int | None = option(
        None, "Stop once more rows than this are rejected; no limit by default.", operational=True, ge=0
    )
    show_neighbours: list[str] = option(
        [], "After the run, print the nearest documents for these queries.", operational=True
    )

    @field_validator("concurrency")
    @classmethod
    def _check_concurrency(cls, value: int | str | list[int]) -> int | str | list[int]:
        if isinstance(value, int) and value < 1:
            raise ValueError("at least one actor is needed")
        if isinstance(value, list) and (len(value) != 2 or not 1 <= value[0] <= value[1]):
            raise ValueError("write [min, max] with 1 <= min <= max")
        return value
