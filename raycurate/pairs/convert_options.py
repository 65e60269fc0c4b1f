"""The options of conversion, under the names that users of NeMo's embedding recipe know."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ValidationInfo, field_validator

from raycurate.core.config import StageConfig, option


class ConvertOptions(StageConfig):
    """Pairs in; training data, a corpus and a BEIR test set out."""

    input: str | list[str] = option(
        ...,
        "Question/answer records (sdg), documents with titles (title), or a BEIR folder with train qrels (beir).",
        place="input",
    )
    pairs_from: Literal["sdg", "title", "beir"] = option("sdg", "What the pairs are made from.")
    corpus_id: str = option("corpus", "Name of the corpus in the training data.", min_length=1)
    query_instruction: str = option("", "Instruction of the questions, kept in the corpus's metadata.")
    passage_instruction: str = option("", "Instruction of the documents, kept in the corpus's metadata.")
    quality_threshold: float | None = option(
        7.0, "sdg: pairs whose overall score is lower are left out; null keeps all.", ge=0, le=10
    )
    max_pos_docs: int = option(5, "sdg: questions with more segments are left out.", gt=0)
    split_strategy: Literal["random", "grouped"] = option(
        "random",
        "random: by source file, as FORMATS says; grouped: near-duplicates and equal questions stay in one split.",
    )
    groups: str | None = option(
        None,
        "Near-duplicates: a dedup output folder, or a file (.parquet, .jsonl, .csv, .tsv, .json) with id and group.",
        place="input",
    )
    group_cosine: float = option(0.9, "Pairs of a dedup output that are at least this close are one group.", gt=0, le=1)
    split_field: str | None = option(
        None, "title: the column that is split by; `package` where the documents have it, else their source."
    )
    train_ratio: float = option(0.8, "Share that is trained on.", gt=0, le=1)
    val_ratio: float = option(0.1, "Share that the model is selected by.", ge=0, lt=1)
    test_ratio: float = option(0.1, "Share that is kept for the one evaluation at the end.", ge=0, lt=1)
    seed: int = option(42, "Seed of the split.", ge=0)
    max_query_repeats: int = option(3, "title: questions that more documents share are left out.", gt=0)
    min_query_words: int = option(3, "title: questions with fewer words are left out.", gt=0)
    min_passage_chars: int = option(40, "title: documents with less text beside the question are left out.", gt=0)
    document_options: dict[str, Any] = option(
        {}, "title: how the documents are read (text_field, title_field, id_field, file_extensions, ...)."
    )

    @field_validator("test_ratio")
    @classmethod
    def _sum_to_one(cls, value: float, info: ValidationInfo) -> float:
        train, val = info.data.get("train_ratio"), info.data.get("val_ratio")
        if train is not None and val is not None and abs(train + val + value - 1) > 1e-6:
            raise ValueError(
                f"train_ratio={train:g}, val_ratio={val:g} and test_ratio={value:g} sum to {train + val + value:g}; "
                "they must sum to 1"
            )
        return value

    @property
    def ratios(self) -> dict[str, float]:
        return {"train": self.train_ratio, "val": self.val_ratio, "test": self.test_ratio}
