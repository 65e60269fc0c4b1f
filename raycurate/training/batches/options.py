"""What a user can say about the texts of a training. No torch is imported, as the command line's help reads it."""

from __future__ import annotations

from typing import Self

from raycurate.core.config import StageConfig, option


class ListOptions(StageConfig):
    """Which of its passages a question is trained with."""

    n_passages: int = option(5, "Passages a question: its positive and n_passages - 1 negatives.", gt=0)
    cycle_positives: bool = option(False, "Another positive of the question each epoch; else always the first.")
    eval_negative_size: int | None = option(
        None, "Negatives a question in validation; as many as in training by default.", ge=0
    )


class PassageOptions(ListOptions):
    """The same, and whether the scores of positives and negatives are read, for distillation."""

    teacher_scores: bool = False

    def for_validation(self) -> Self:
        """The first positive and `eval_negative_size` negatives (None: as many as in training), in every epoch;
        a teacher has no part in it."""
        wanted = self.n_passages if self.eval_negative_size is None else 1 + self.eval_negative_size
        changed = {"n_passages": wanted, "cycle_positives": False, "eval_negative_size": None, "teacher_scores": False}
        return self.model_copy(update=changed)


class TextOptions(StageConfig):
    """What is made of the texts."""

    query_max_length: int = option(512, "Tokens kept of a question, its prefix and special tokens included.", gt=0)
    passage_max_length: int = option(512, "Tokens kept of a passage, likewise.", gt=0)
    dataset_instructions: bool = option(
        False, "Put the instructions of each corpus's metadata before questions and passages, in place of prompts."
    )
    pad_token: str | None = option(
        None, "What pads where the tokenizer has no padding token: a token, or `eos` for its end token."
    )
    data_cache: str | None = option(
        None,
        "Folder on every machine for tokens and corpora; $RAYCURATE_CACHE or the user's cache by default.",
        operational=True,
        place="cache",
    )
