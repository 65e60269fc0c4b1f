"""The systems of an evaluation: which model each is, whether it is there, and its answers, kept so that a killed run
goes on with the next one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raycurate.core import storage
from raycurate.core.config import fingerprint
from raycurate.core.errors import InputError, MissingDependencyError
from raycurate.core.manifest import STAGING, Manifest, read_manifest, require_whole
from raycurate.core.observe import get_logger
from raycurate.data.corpora.beir import BeirData
from raycurate.encoders.base import is_url
from raycurate.encoders.declared import BY_ROLE, agreed, merged, of_the_model
from raycurate.retrieval.lexical import fuse, retrieve_bm25
from raycurate.retrieval.results import BM25
from raycurate.retrieval.retrieve import DenseModel, Retrieved, depth_of, retrieve
from raycurate.stages.eval.config import FUSED, EvalConfig, SystemOptions
from raycurate.training.checkpoints.checkpoints import model_in

log = get_logger(__name__)

_ABOUT = b"raycurate_system"


@dataclass(frozen=True)
class System:
    """A dense system that is there.

    options: with `model` as it is loaded. identity: of its contracts. similarity: how vectors are compared, if known.
    """

    name: str
    options: SystemOptions
    identity: str
    similarity: str | None = None

    @property
    def served(self) -> bool:
        return is_url(self.options.model)


def found_systems(config: EvalConfig) -> tuple[list[System], dict[str, str]]:
    """The dense systems of an evaluation, and name -> reason of those that are not there.

    Raises:
        InputError, MissingDependencyError: one is not there, unless `skip_missing`.
        RaycurateError: an option that is wrong.
    """
    found: list[System] = []
    missing: dict[str, str] = {}
    config = as_it_was_trained(config)
    for name in config.dense_names:
        try:
            options = config.options_of(name)
            options = options.model_copy(update={"model": model_of(options.model)})
            contracts = DenseModel(options.model, options.encoder).contracts()
        except (InputError, MissingDependencyError) as error:
            if not config.skip_missing:
                fix = error.fix or "skip_missing=true leaves it out"
                raise type(error)(f"the system '{name}': {error.what}", where=error.where, fix=fix) from error
            log.warning("eval: left out %s: %s", name, error)
            missing[name] = str(error)
            continue
        identity = [one.identity() for one in contracts.values()]
        contract = contracts["document"]
        if contract.by_cosine and not contract.normalize and contract.pooling != "multi_vector":
            identity.append({"similarity": "cosine"})
        # A server does not say how its vectors are compared; what it must reproduce does.
        compared = contract.similarity or {one.name: one.similarity for one in found}.get(str(options.same_as))
        found.append(System(name, options, fingerprint(identity), compared))
    return found, missing


def as_it_was_trained(config: EvalConfig) -> EvalConfig:
    """The options with what the fine-tuning was told of its model, where that is the base: prefixes, pooling, ...

    Raises:
        ConfigError: eval was told otherwise, which would give the base two numbers; the fields are named.
    """
    manifest = _finetuning(config.finetuned) if config.model is not None and config.finetuned is not None else None
    if manifest is None or not _same_model(str(config.model), str(manifest.settings.get("model"))):
        return config
    settings = manifest.settings
    beside = {name: settings.get(name) for name in (*BY_ROLE[:2], "pooling", "normalize", "revision")}
    told = {
        "eval": of_the_model(config.run_as),
        "finetune": of_the_model(merged(settings.get("encoder") or {}, beside)),
    }
    together = agreed(told, model=str(config.model))
    return config.model_copy(update={**dict.fromkeys(BY_ROLE), "encoder": {**config.encoder, **together}})


def _finetuning(place: str) -> Manifest | None:
    """The manifest of a fine-tuning's output; None where `place` is none."""
    if is_url(place) or place.startswith(("python:", "hf://")) or not storage.exists(place):
        return None
    manifest = read_manifest(place)
    return manifest if manifest is not None and manifest.key.stage == "finetune" else None


def _same_model(one: str, other: str) -> bool:
    return one == other or (storage.exists(one) and storage.normalise(one) == other)


def model_of(place: str) -> str:
    """The model at `place`: the best checkpoint where it is the output of a fine-tuning, else `place`.

    Raises:
        InputError: a fine-tuning that has not ended, or lacks files.
    """
    if is_url(place) or place.startswith(("python:", "hf://")) or not storage.exists(place):
        return place
    if _finetuning(place) is not None:
        return model_in(place, require_whole(place).settings["best"])
    if storage.exists(storage.join(place, STAGING, "run.json")):
        raise InputError(
            "this fine-tuning has not ended", where=place, fix="Run it to its end, or give one of its checkpoints"
        )
    return place


class Answers:
    """What each system answers, from `folder` where it is there already."""

    def __init__(self, config: EvalConfig, data: BeirData, folder: str) -> None:
        self.config, self.data, self.folder = config, data, folder
        self.depth = depth_of(data, max(config.k_values)) if config.ignore_identical_ids else max(config.k_values)

    def all(self, systems: list[System]) -> dict[str, Retrieved]:
        """By name, in the order of the tables: BM25, the models, the fused ones."""
        runs: dict[str, Retrieved] = {}
        if self.config.bm25:
            runs[BM25] = self._kept(BM25, lambda: retrieve_bm25(self.data, self.depth))
        for system in systems:
            # What a server answered to a run that was killed, it may not answer now.
            ask = partial(self._dense, system)
            runs[system.name] = _timed(ask) if system.served else self._kept(system.name, ask)
        for name in self.config.fused_names:
            if name in runs:
                runs[FUSED.format(name)] = fuse([runs[BM25], runs[name]], self.depth)
        return runs

    def _dense(self, system: System) -> Retrieved:
        options = system.options
        model = DenseModel(
            options.model, options.encoder, dimensions=options.dimensions,
            quantization=options.quantization, rescore=options.rescore, similarity=system.similarity,
        )  # fmt: skip
        # What a server answers under one name may change, so its vectors are not kept from run to run.
        cache = None if system.served else self.config.cache
        log.info("eval: searching with %s (%s)", system.name, options.model)
        return retrieve(model, self.data, self.depth, cache=cache, work=storage.join(self.folder, "work"))

    def _kept(self, name: str, make: Callable[[], Retrieved]) -> Retrieved:
        path = storage.join(self.folder, f"{name}.parquet")
        if storage.exists(path):
            log.info("eval: %s was searched with before", name)
            return read_hits(path, self.data)
        run = _timed(make)
        write_hits(path, run, self.depth)
        return run


def _timed(make: Callable[[], Retrieved]) -> Retrieved:
    started = time.monotonic()
    run = make()
    return replace(run, about={**run.about, "seconds": round(time.monotonic() - started, 2)})


def write_hits(path: str, run: Retrieved, k: int) -> int:
    """Write query_id, rank (from 1), document_id, score of the first k of each question; returns the rows."""
    names_QK, scores_QK = run.document_ids_QK[:, :k], run.scores_QK[:, :k]
    there_QK = (names_QK != None) & (scores_QK != -np.inf)  # noqa: E711 - by element
    query_P, rank_P = np.nonzero(there_QK)
    table = pa.table(
        {
            "query_id": pa.array(run.query_ids, pa.string()).take(pa.array(query_P)),
            "rank": pa.array(rank_P + 1, pa.int32()),
            "document_id": pa.array(names_QK[there_QK], pa.string()),
            "score": pa.array(scores_QK[there_QK], pa.float32()),
        }
    )
    table = table.replace_schema_metadata({_ABOUT: json.dumps(run.about).encode()})
    with storage.open_output(path) as stream:
        pq.write_table(table, stream, compression="zstd")
    return table.num_rows


def read_hits(path: str, data: BeirData) -> Retrieved:
    """What `write_hits` wrote, for the questions of `data`."""
    filesystem, inner = storage.filesystem(path)
    table = pq.read_table(inner, filesystem=filesystem)
    query_ids = data.queries["_id"].to_pylist()
    place = {name: row for row, name in enumerate(query_ids)}
    width = int(table["rank"].to_numpy().max()) if table.num_rows else 1
    names_QK = np.full((len(query_ids), width), None, object)
    scores_QK = np.full((len(query_ids), width), -np.inf, np.float32)
    rows = np.array([place[name] for name in table["query_id"].to_pylist()], np.int64)
    columns = table["rank"].to_numpy() - 1
    names_QK[rows, columns] = np.array(table["document_id"].to_pylist(), object)
    scores_QK[rows, columns] = table["score"].to_numpy()
    about = json.loads((table.schema.metadata or {}).get(_ABOUT, b"{}"))
    return Retrieved(query_ids, names_QK, scores_QK, about)
