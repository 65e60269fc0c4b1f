"""Converting pairs into a folder: what the stages that convert share."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict

from raycurate.core import storage
from raycurate.core.manifest import REJECTS, Manifest, OutputFile, StageKey
from raycurate.data.training.sdg import Reject
from raycurate.pairs.config import ConvertConfig
from raycurate.pairs.convert import Converted, convert
from raycurate.pairs.mined_data import inputs_fingerprint
from raycurate.pairs.mined_files import output_file
from raycurate.streams.staging import TooManyRejectsError


def conversion_fingerprint(config: ConvertConfig) -> str:
    """Fingerprint of the files that the conversion reads."""
    paths = [config.input] if isinstance(config.input, str) else list(config.input)
    return inputs_fingerprint([*paths, *([config.groups] if config.groups else [])])


def describe(manifest: Manifest) -> str:
    return ", ".join(f"{manifest.counts.get(f'{split}_questions', 0):,} {split}" for split in ("train", "val", "test"))


def counts_of(converted: Converted) -> dict[str, int]:
    """What a manifest counts of a conversion."""
    questions = {f"{split}_questions": count for split, count in converted.queries.items()}
    left_out = {f"left_out_{reason}": count for reason, count in converted.left_out.items()}
    return {**converted.counts, "corpus_documents": converted.documents, **questions, **left_out}


def converted_files(
    config: ConvertConfig, output: str, key: StageKey
) -> tuple[Converted, list[OutputFile], dict[str, int]]:
    """Convert into `output`: what came of it, its files (rejects too), and rejects by reason.

    Raises:
        TooManyRejectsError: more than `max_rejects`.
    """
    converted = convert(config, output)
    files, rejects = list(converted.files), list(converted.rejects)
    if config.max_rejects is not None and len(rejects) > config.max_rejects:
        raise TooManyRejectsError(
            f"{len(rejects)} records were rejected, max_rejects is {config.max_rejects}; the first: {rejects[0]}",
            where="max_rejects",
            fix="Mend the input, or raise max_rejects",
        )
    if rejects:
        name = f"{REJECTS}/part-{key.fingerprint()[:8]}.jsonl"
        storage.write_text(storage.join(output, name), "".join(_line(reject) for reject in rejects))
        files.append(output_file(output, name, rows=len(rejects)))
    return converted, files, dict(Counter(reject.reason for reject in rejects))


def _line(reject: Reject) -> str:
    return json.dumps(asdict(reject), ensure_ascii=False) + "\n"
