"""The sample corpus as a stage: made once, skipped when it is there."""

from __future__ import annotations

from dataclasses import dataclass

from raycurate.core import storage
from raycurate.core.config import StageConfig, fingerprint, option
from raycurate.core.errors import OutputExistsError
from raycurate.core.manifest import (
    Manifest,
    OutputFile,
    StageKey,
    commit,
    is_done,
    one_writer,
    package_versions,
    read_manifest,
    staging_folder,
)

ALGORITHM_VERSION = 1


class SampleCorpusConfig(StageConfig):
    """Which packages' documentation, and where to."""

    output: str = option(..., "Folder or URI the corpus is written to.", operational=True, place="output")
    packages: list[str] = option([], "Installed packages to read; by default a pinned list of our own dependencies.")
    max_documents: int | None = option(
        None,
        "Take packages, whole and in the order named, up to the first that would make more documents than that; all by "
        "default.",
        gt=0,
    )
    overwrite: bool = option(False, "Replace a corpus that is there already.", operational=True)


@dataclass(frozen=True)
class SampleResult:
    """A sample corpus on disk."""

    output: str
    manifest: Manifest
    skipped: bool

    def summary(self) -> str:
        counts = self.manifest.counts
        return (
            f"documents {counts['documents']:,}  bytes {counts['bytes']:,}  "
            f"packages {counts['packages']}  fingerprint {self.manifest.settings['fingerprint']}\noutput {self.output}"
        )


def _key(config: SampleCorpusConfig) -> StageKey:
    from raycurate.data.sample_corpus import PACKAGES

    versions = package_versions(*(config.packages or PACKAGES))
    return StageKey(
        stage="sample-corpus",
        algorithm_version=ALGORITHM_VERSION,
        input_fingerprint=fingerprint(versions),
        options=config.result_keys(),
    )


def run(config: SampleCorpusConfig) -> SampleResult:
    """Write the sample corpus; see data/sample_corpus.py for what is in it."""
    key = _key(config)
    with one_writer(config.output, key, overwrite=config.overwrite) as done:
        return SampleResult(config.output, done, skipped=True) if done is not None else _build(config, key)


def _build(config: SampleCorpusConfig, key: StageKey) -> SampleResult:
    from raycurate.data.sample_corpus import build_sample_corpus

    storage.make_dir(staging_folder(config.output, f"sample-{key.fingerprint()}"))
    corpus = build_sample_corpus(config.output, config.packages or None, config.max_documents)
    [entry] = storage.list_files(corpus.path)
    manifest = Manifest(
        key=key,
        files=[OutputFile(path="documents.jsonl", size=entry.size, rows=corpus.documents)],
        counts={"documents": corpus.documents, "bytes": corpus.bytes, "packages": len(corpus.packages)},
        settings={"fingerprint": corpus.fingerprint},
        versions=package_versions("raycurate", *(config.packages or [])),
    )
    commit(config.output, manifest)
    return SampleResult(config.output, manifest, skipped=False)


def state(config: SampleCorpusConfig) -> str:
    """done, changed or not run."""
    try:
        return "done" if is_done(config.output, _key(config)) else "not run"
    except OutputExistsError:
        manifest = read_manifest(config.output)
        return "changed: " + "; ".join(manifest.key.differences(_key(config))) if manifest else "not ours"
