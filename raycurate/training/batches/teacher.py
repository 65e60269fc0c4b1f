"""A teacher's vectors of the training texts, for distillation from embeddings.

They are made once, before the training, by the engines and the cache of the embed stage, and then lie beside the
tokens as two arrays that every rank maps into memory: a teacher never stands in memory beside the student. It reads
the texts under its own contract: its own prompts, its own lengths.

Only the process that drives the cluster embeds. Where the vectors are laid out is a folder that all machines see, and
what lies there ends with an index: a worker on another machine copies them, since tasks that it started might wait
for the very CPUs that the training holds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from raycurate.core import storage
from raycurate.core.config import fingerprint
from raycurate.core.errors import ConfigError, InputError
from raycurate.core.hashing import hash_column, hex_digest
from raycurate.core.observe import get_logger
from raycurate.data.corpora.corpus import gather
from raycurate.data.training.training import TrainingData
from raycurate.training.batches.passages import Passages

if TYPE_CHECKING:
    from raycurate.models.contract import EmbeddingContract
    from raycurate.search.shards import VectorShards

TEACHER = "teacher"
"""The folder in a training's staging where the vectors are laid out."""
_INDEX = "index.json"
_ROLES = {"questions": "query", "documents": "document"}

_log = get_logger(__name__)


@dataclass(frozen=True)
class TeacherOptions:
    """model: whose vectors are wanted. encoder: how it is run, options of `raycurate embed` by name. work: a folder or
    URI that all machines see, where what was embedded is kept until the training is over."""

    model: str
    encoder: dict[str, Any] = field(default_factory=dict)
    work: str = ""


@dataclass(frozen=True)
class Teacher:
    """A teacher that fits its student.

    identity: of its vectors, 16 hex digits: the model's contract and the options that decide them.
    """

    options: TeacherOptions
    identity: str

    @classmethod
    def of(cls, options: TeacherOptions, student: EmbeddingContract) -> Teacher:
        """The teacher for a student of this contract; nothing is embedded yet.

        Raises:
            ConfigError: one of the two has a vector a token, their dimensions differ, or an option is none of embed's.
        """
        contract, identity = teacher_contract(options)
        for whose, each in (("student", student), ("teacher", contract)):
            if each.pooling == "multi_vector":
                raise ConfigError(
                    f"distillation from embeddings compares one vector a text, and the {whose} has one a token",
                    where=f"distillation: teacher={options.model}",
                    fix="Distil scores instead (kind: kl or margin_mse)",
                )
        if contract.dimension != student.dimension:
            raise ConfigError(
                f"the teacher's vectors have {contract.dimension} dimensions and the student's {student.dimension}; "
                "a cosine between them needs as many",
                where=f"distillation: teacher={options.model}",
                fix=f"Take a teacher of {student.dimension} dimensions, or distil scores (kind: kl or margin_mse), "
                "which compare across any",
            )
        return cls(options, identity)

    def write(self, folder: Path, data: TrainingData, passages: Passages) -> None:
        """Put the vectors into `folder` as teacher_questions.npy and teacher_documents.npy, float32 [n, D], in the
        order of the questions of `data` and of the documents of `passages`.

        Raises:
            ConfigError: they have to be embedded and no Ray is connected.
            InputError: a text has no vector of the teacher.
        """
        texts = {"questions": data.table["question"], "documents": _document_texts(data, passages)}
        place = storage.join(self.options.work, fingerprint([self.identity, *_text_fingerprints(texts)]))
        if not storage.exists(storage.join(place, _INDEX)):
            self._embed(place, texts)
        for name, shards in _laid_out(place).items():
            _join(shards, folder / f"teacher_{name}.npy")

    def _embed(self, place: str, texts: dict[str, pa.ChunkedArray]) -> None:
        from raycurate.encoders.cache import Texts, embed_texts
        from raycurate.ray_runtime.cluster import require_ray

        require_ray(f"distillation: teacher={self.options.model}")
        given = [Texts(name, texts[name], role) for name, role in _ROLES.items()]
        cache = storage.join(self.options.work, "cache")
        made = embed_texts(given, self.options.model, self.options.encoder, cache=cache, folder=place)
        _log.info("the teacher embedded %s texts anew", f"{sum(each.fresh for each in made):,}")
        index = {
            name: {"paths": [path.rpartition("/")[2] for path in each.vectors.paths], "rows": each.vectors.rows,
                   "dimension": each.vectors.dimension}
            for name, each in zip(_ROLES, made, strict=True)
        }  # fmt: skip
        storage.write_text(storage.join(place, _INDEX), json.dumps(index))


def teacher_contract(options: TeacherOptions) -> tuple[EmbeddingContract, str]:
    """What the teacher's vectors are, and a fingerprint of it.

    Raises:
        ConfigError: an option is none of embed's, or the model is not there.
    """
    from raycurate.encoders.embed_options import EmbedConfig
    from raycurate.encoders.inspect import read_contract

    values = {**options.encoder, "model": options.model, "input": "(texts)", "output": "(cache)"}
    config = EmbedConfig.parse(values, where=f"distillation: teacher={options.model}")
    contract = read_contract(config)
    kept = EmbedConfig.operational_keys() | {"model", "input", "output", "role"}
    decisive = {name: value for name, value in config.model_dump(mode="json").items() if name not in kept}
    return contract, fingerprint([contract.identity(), decisive])


def _document_texts(data: TrainingData, passages: Passages) -> pa.ChunkedArray:
    """Of the documents that can come up, as `passages` numbers them."""
    rows = [passages.row_of[passages.corpus_of == place] for place in range(len(data.corpora))]
    parts = [
        gather(corpus.texts, mine).cast(pa.large_string())
        for corpus, mine in zip(data.corpora, rows, strict=True)
        if len(mine)
    ]
    return pa.chunked_array(parts, pa.large_string())


def _text_fingerprints(texts: dict[str, pa.ChunkedArray]) -> Iterator[str]:
    """Of the texts in their order, however they are cut into chunks."""
    for column in texts.values():
        yield hex_digest(hash_column(column).tobytes())


def _laid_out(place: str) -> dict[str, VectorShards]:
    from raycurate.search.shards import VectorShards

    index = json.loads(storage.read_text(storage.join(place, _INDEX)))
    return {
        name: VectorShards(
            tuple(storage.join(place, name, path) for path in part["paths"]), tuple(part["rows"]), part["dimension"]
        )
        for name, part in index.items()
    }


def _join(shards: VectorShards, path: Path) -> None:
    """One array of all shards, which a process maps; written shard by shard.

    Raises:
        InputError: a vector that is no number, or of length zero, which has no direction to follow.
    """
    whole_nD = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(len(shards), shards.dimension))
    for piece in shards.pieces(0, len(shards), most=65_536):
        part_nD = shards.read(piece)
        if not np.all(np.linalg.norm(part_nD, axis=1) > 0):  # also where it is NaN
            bad = int(np.flatnonzero(~(np.linalg.norm(part_nD, axis=1) > 0))[0])
            raise InputError(
                f"the teacher's vector of text {piece.first + bad} has no direction",
                where=path.stem,
                fix="Leave the text out, or take another teacher",
            )
        whole_nD[piece.first : piece.first + len(piece)] = part_nD
    whole_nD.flush()
