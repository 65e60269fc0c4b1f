"""The sample-corpus stage: a corpus from the documentation of installed packages."""

from __future__ import annotations

from dataclasses import dataclass

from raycurate.core import storage
from raycurate.core.config import StageConfig, fingerprint, option
from raycurate.core.manifest import Manifest, OutputFile, package_versions
from raycurate.stage import Listed, Made, Result, Run, Stage

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
class SampleResult(Result):
    """A sample corpus on disk."""

    def summary(self) -> str:
        counts = self.manifest.counts
        return (
            f"documents {counts['documents']:,}  bytes {counts['bytes']:,}  "
            f"packages {counts['packages']}  fingerprint {self.manifest.settings['fingerprint']}\noutput {self.output}"
        )


class SampleCorpus(Stage[SampleCorpusConfig, Listed]):
    """Installed packages in; their documentation as documents out."""

    name = "sample-corpus"
    version = ALGORITHM_VERSION
    Config = SampleCorpusConfig
    Result = SampleResult
    places = ("output",)
    needs_ray = False

    def open(self, config: SampleCorpusConfig) -> Listed:
        from raycurate.stages.sample_corpus.corpus import PACKAGES

        return Listed(fingerprint(package_versions(*(config.packages or PACKAGES))))

    def work(self, config: SampleCorpusConfig, inputs: Listed, run: Run) -> Made:
        from raycurate.stages.sample_corpus.corpus import build_sample_corpus

        run.staging()
        corpus = build_sample_corpus(config.output, config.packages or None, config.max_documents)
        [entry] = storage.list_files(corpus.path)
        return Made(
            [OutputFile(path="documents.jsonl", size=entry.size, rows=corpus.documents)],
            {"documents": corpus.documents, "bytes": corpus.bytes, "packages": len(corpus.packages)},
            settings={"fingerprint": corpus.fingerprint},
        )

    def phrase(self, manifest: Manifest) -> str:
        return f"{manifest.counts['documents']:,} documents"


STAGE = SampleCorpus()
