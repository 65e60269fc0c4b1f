"""A stage of its own: documents -> how often each word stands in them."""

from __future__ import annotations

import json
from collections import Counter

from raycurate.core import storage
from raycurate.core.config import StageConfig, option
from raycurate.core.errors import InputError
from raycurate.core.manifest import Manifest, OutputFile, listing_fingerprint
from raycurate.stage import CORPUS, Listed, Made, Run, Stage


class WordCountConfig(StageConfig):
    """Text files in, a table of words out."""

    input: str = option(..., "Folder or file of UTF-8 texts.", place="input")
    output: str = option(..., "Folder or URI the counts are written to.", operational=True, place="output")
    least: int = option(1, "Words that stand there less often are left out.", ge=1)
    overwrite: bool = option(False, "Replace an output that is there already.", operational=True)


class WordCount(Stage[WordCountConfig, Listed]):
    """Documents in; the words in them with their counts out."""

    name = "word-count"
    version = 1
    Config = WordCountConfig
    folder = "words"
    inputs = {"input": CORPUS}
    needs_ray = False

    def open(self, config: WordCountConfig) -> Listed:
        files = storage.list_files(config.input)
        if not files:
            raise InputError("there are no files", where=config.input, fix="Give a folder with texts")
        return Listed(listing_fingerprint(files))

    def work(self, config: WordCountConfig, inputs: Listed, run: Run) -> Made:
        run.staging()
        counts = Counter[str]()
        files = storage.list_files(config.input)
        for file in files:
            try:
                counts.update(storage.read_text(file.path).split())
            except UnicodeDecodeError:
                raise InputError("it is not UTF-8 text", where=file.path, fix="Give a folder of texts alone") from None
        kept = {word: count for word, count in sorted(counts.items()) if count >= config.least}
        path = storage.join(run.output, "words.json")
        storage.write_text(path, json.dumps(kept, ensure_ascii=False) + "\n")
        size = storage.list_files(path)[0].size
        return Made(
            [OutputFile(path="words.json", size=size, rows=len(kept))], {"files": len(files), "words": len(kept)}
        )

    def phrase(self, manifest: Manifest) -> str:
        return f"{manifest.counts['words']:,} words"


STAGE = WordCount()
