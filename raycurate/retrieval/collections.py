"""Test sets by path or by name, as folders in BEIR's layout.

    runs/x/prep/eval_beir      a folder or URI in BEIR's layout
    beir:scifact               one of BEIR's own data sets, downloaded by the `beir` package
    mteb:mteb/nfcorpus         a data set of the hub, or a local folder, in the layout of MTEB's retrieval tasks

MTEB's layout (Muennighoff et al. 2023) has a configuration `corpus` (_id, title, text), one `queries` (_id, text) and
one `default` or `qrels` (query-id, corpus-id, score), the latter with one split an evaluation split. What is not in
BEIR's layout is written in it once, under the cache folder, and read as strictly as all others.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raycurate.core import storage
from raycurate.core.cache import cache_folder
from raycurate.core.config import fingerprint
from raycurate.core.errors import ConfigError, InputError, nearest, require
from raycurate.core.manifest import listing_fingerprint
from raycurate.core.once import once
from raycurate.data.corpora.beir import splits_of, write_beir

BEIR_URL = "https://public.ukp.informatik.tu-darmstadt.de/thakur/BEIR/datasets/{}.zip"
BEIR_NAMES = (
    "msmarco", "trec-covid", "nfcorpus", "nq", "hotpotqa", "fiqa", "arguana", "webis-touche2020", "cqadupstack",
    "quora", "dbpedia-entity", "scidocs", "fever", "climate-fever", "scifact",
)  # fmt: skip
"""Data sets that anyone may download; cqadupstack is a folder of twelve, named `cqadupstack/android` and so on."""
_CONVERTED = "converted.json"


def locate(source: str, *, cache_dir: str | None = None) -> str:
    """The folder, in BEIR's layout, of the test set that `source` names.

    Raises:
        ConfigError: a name that BEIR does not have.
        InputError: there is no such folder, the download failed, or its layout is another.
        MissingDependencyError: the package that downloads it is not installed.
    """
    if source.startswith("beir:"):
        return _from_beir(source.removeprefix("beir:"), cache_dir)
    if source.startswith("mteb:"):
        return _from_mteb(source.removeprefix("mteb:"), cache_dir)
    if splits_of(source):
        return source
    if source in BEIR_NAMES and not storage.exists(source):
        raise InputError("there is no such folder", where=source, fix=f"For BEIR's data set write beir:{source}")
    raise InputError(
        "it is no test set in BEIR's layout: qrels/SPLIT.tsv is missing",
        where=source,
        fix="A test set has corpus.jsonl, queries.jsonl and qrels/test.tsv; MTEB's layout is given as mteb:PATH",
    )


def name_of(source: str) -> str:
    """What a test set is called in tables."""
    return source.partition(":")[2] if source.startswith(("beir:", "mteb:")) else source.rstrip("/").rpartition("/")[2]


def _from_beir(name: str, cache_dir: str | None) -> str:
    first = name.partition("/")[0]
    if first not in BEIR_NAMES:
        close = nearest(first, BEIR_NAMES)
        hint = f"Did you mean 'beir:{close}'?" if close else f"Known: {', '.join(BEIR_NAMES)}"
        raise ConfigError(f"BEIR has no data set '{name}' for all to download", fix=hint)
    root = cache_folder(cache_dir, shared=True) / "beir"
    folder = root / name
    if splits_of(str(folder)):
        return str(folder)
    with once(root / first) as temporary:
        if temporary is not None:
            _download(first, temporary)
    if not splits_of(str(folder)):
        inner = sorted(path.name for path in folder.glob("*") if splits_of(str(path)))
        raise InputError(f"beir:{name} is a folder of {', '.join(inner)}", where=f"beir:{name}", fix=_one_of(inner))
    return str(folder)


def _download(name: str, folder: Path) -> None:
    require("beir", "beir", purpose=f"Downloading the data set '{name}'")
    from beir.util import download_and_unzip

    aside = folder / ".download"
    try:
        unzipped = Path(download_and_unzip(BEIR_URL.format(name), str(aside)))
        for path in unzipped.iterdir():
            path.rename(folder / path.name)
    except Exception as error:
        raise InputError(
            f"BEIR's data set {name} could not be downloaded ({type(error).__name__}: {str(error)[:200]})",
            where=BEIR_URL.format(name),
            fix="Download it elsewhere and give the folder itself",
        ) from error
    shutil.rmtree(aside)


def _one_of(inner: list[str]) -> str:
    return f"Give one of them, such as beir:cqadupstack/{inner[0]}" if inner else "Delete it to download it anew"


def _from_mteb(name: str, cache_dir: str | None) -> str:
    local = os.path.isdir(name)
    mark = [os.path.abspath(name), listing_fingerprint(storage.list_files(name))] if local else [name]
    folder = cache_folder(cache_dir, shared=True) / "mteb" / fingerprint(mark)
    with once(folder, mark=_CONVERTED) as temporary:
        if temporary is not None:
            _convert(name, temporary)
    return str(folder)


def _convert(name: str, folder: Path) -> None:
    datasets = require("datasets", "hub", purpose=f"Reading the data set '{name}' in MTEB's layout")
    with tempfile.TemporaryDirectory() as arrow:  # a kept copy would outlive a change of a local file
        parts = {part: _load(datasets, name, part, arrow) for part in ("corpus", "queries", "qrels")}
        qrels = {split: _qrels(rows, name, split) for split, rows in parts["qrels"].items()}
        corpus, queries = (_rows(parts[part], name) for part in ("corpus", "queries"))
        write_beir(str(folder), corpus=corpus, queries=queries, qrels=qrels)
    (folder / _CONVERTED).write_text(json.dumps({"from": name}) + "\n")


def _load(datasets: Any, name: str, part: str, arrow: str) -> Any:
    """All splits of one configuration; the judgements' is called default or qrels."""
    wanted = ("default", "qrels") if part == "qrels" else (part,)
    try:
        known = datasets.get_dataset_config_names(name)
        config = next((config for config in wanted if config in known), None)
        if config is not None:
            return datasets.load_dataset(name, config, cache_dir=arrow)
    except (OSError, ValueError, ImportError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise InputError(
            f"it could not be read ({type(error).__name__}: {str(error)[:300]})",
            where=f"mteb:{name}",
            fix="Check the name, HF_TOKEN and the network; a local copy is given as mteb:FOLDER",
        ) from error
    raise InputError(
        f"it has no configuration '{wanted[0]}'; it has {', '.join(known)}",
        where=f"mteb:{name}",
        fix="A retrieval task has the configurations corpus, queries and default (or qrels)",
    )


def _rows(splits: Any, name: str) -> Iterator[dict[str, Any]]:
    """Documents or questions of all splits of a configuration, each id once."""
    seen: set[str] = set()
    for rows in splits.values():
        key = next((key for key in ("_id", "id") if key in rows.column_names), None)
        if key is None or "text" not in rows.column_names:
            raise InputError(f"its columns are {', '.join(rows.column_names)}, not _id and text", where=f"mteb:{name}")
        for row in rows:
            identifier = str(row[key])
            if identifier not in seen:
                seen.add(identifier)
                title = {"title": row["title"] or ""} if "title" in row else {}
                yield {"_id": identifier, **title, "text": row["text"] or ""}


def _qrels(rows: Any, name: str, split: str) -> dict[str, dict[str, int]]:
    columns = ("query-id", "corpus-id", "score")
    if any(column not in rows.column_names for column in columns):
        raise InputError(
            f"the judgements of {split} have the columns {', '.join(rows.column_names)}, not {', '.join(columns)}",
            where=f"mteb:{name}",
        )
    judged: dict[str, dict[str, int]] = {}
    for query, document, score in zip(*(rows[column] for column in columns), strict=True):
        if float(score) != int(float(score)):
            raise InputError(f"the judgement of {query!r}, {document!r} is {score}, no whole number", where=name)
        judged.setdefault(str(query), {})[str(document)] = int(float(score))
    return judged
