"""The options of the stages convert, mine, unroll, and of prep, which is the three in one."""

from __future__ import annotations

from typing import Any

from raycurate.core.config import StageConfig, option
from raycurate.pairs.convert_options import ConvertOptions
from raycurate.pairs.mine_options import MineOptions

ALGORITHM_VERSION = 1
MINING_VERSION = 2  # of mine and prep: equal questions share their positives


class ConvertConfig(ConvertOptions):
    """Pairs in; train.json, val.json, corpus/ and eval_beir/ out."""

    output: str = option(..., "Folder or URI the training data are written to.", operational=True, place="output")
    overwrite: bool = option(False, "Replace an output that is there already.", operational=True)
    max_rejects: int | None = option(
        None, "Stop once more records than this are rejected; no limit by default.", operational=True, ge=0
    )


class MineConfig(MineOptions):
    """Training data in; the same with scored positives and mined negatives out, and unrolled."""

    input: str | list[str | dict[str, Any]] = option(
        ...,
        "Training data: a file (inline JSONL or corpus-ID JSON), hf://..., or a list of them, {path, num_samples} too.",
        place="input",
    )
    output: str = option(..., "Folder or URI the mined data are written to.", operational=True, place="output")
    overwrite: bool = option(False, "Replace an output that is there already.", operational=True)


class UnrollConfig(StageConfig):
    """Mined training data in; one positive a row out."""

    input: str = option(..., "A corpus-ID JSON file, or the output folder of `raycurate mine`.", place="input")
    output: str = option(..., "Folder or URI the unrolled data are written to.", operational=True, place="output")
    overwrite: bool = option(False, "Replace an output that is there already.", operational=True)


class PrepConfig(ConvertConfig, MineOptions):
    """Pairs in; training data with mined negatives, validation data and a BEIR test set out."""

    hard_negatives_to_mine: int = option(5, "Negatives kept a query, at most.", ge=1)
    exclude_test_positives: bool = option(
        True, "The positives of validation and test questions must not become negatives of training questions."
    )

    def conversion(self) -> ConvertConfig:
        """What of this the conversion needs."""
        return ConvertConfig(**{name: getattr(self, name) for name in ConvertConfig.model_fields})
