"""What a user can say about the mining of hard negatives."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import field_validator, model_validator

from raycurate.core.config import option
from raycurate.encoders.declared import RoleOptions, decisive, of_any_model
from raycurate.pairs.negatives import DEFAULT_MARGIN, MarginType


class MineOptions(RoleOptions):
    """Models, margin, window and what is left out. The names are those of NeMo AutoModel's mining where it has them."""

    model: str = option(
        ...,
        "The model that scores: a folder, a Hugging Face id, `python:MODULE` or an endpoint's URL.",
        min_length=1,
        place="model",
    )
    mining_models: list[str] = option(
        [], "Further models: each bounds the candidates by its own scores, and their rankings are fused.", place="model"
    )
    hard_negatives_to_mine: int = option(20, "Negatives kept a query, at most.", ge=1)
    hard_neg_margin_type: MarginType = option(
        "perc",
        "What a likely false negative is: a candidate above m - (1 - margin) * |m| (perc), or above m - margin (abs), "
        "where m is the least score of the query's positives; or nothing (none).",
    )
    hard_neg_margin: float | None = option(None, "The margin; 0.95 for perc, 0.05 for abs by default.", ge=0)
    range_min: int = option(0, "Candidates passed over at the head of the ranking.", ge=0)
    range_max: int | None = option(None, "Rank at which the window ends.", ge=1)
    strategy: Literal["top", "random"] = option("top", "Which of the window's candidates are kept.")
    use_negatives_from_file: bool = option(
        False, "Take the file's own negatives first, if they are not above the bound; mined ones fill up."
    )
    exclude_positives_of: list[str] = option(
        [],
        "Training files or BEIR folders (their test split) whose positives must not become negatives.",
        place="input",
    )
    teacher: str | None = option(
        None,
        "A cross-encoder that scores positives and candidates anew: it ranks, bounds, and its scores are kept.",
        place="model",
    )
    teacher_depth: int = option(50, "Candidates a query that the teacher scores.", ge=1)
    approximate: bool = option(False, "Search with an approximate index (faiss IVF); its recall is printed.")
    seed: int = option(42, "Seed of what is drawn at random.")
    mining_batch_size: int = option(128, "Queries in a block of scores.", operational=True, ge=1)
    cache: str | None = option(
        None,
        "Folder or URI where vectors are kept from run to run; the output's staging by default.",
        operational=True,
        place="cache",
    )

    @field_validator("hard_neg_margin_type", mode="before")
    @classmethod
    def _null_is_none(cls, value: Any) -> Any:
        return "none" if value is None or value == "null" else value

    @model_validator(mode="after")
    def _a_window(self) -> MineOptions:
        if self.range_max is not None and self.range_max <= self.range_min:
            raise ValueError(f"range_max ({self.range_max}) must be more than range_min ({self.range_min})")
        if self.strategy == "random" and self.range_max is None:
            raise ValueError("strategy=random draws from a window: set range_max")
        if self.hard_neg_margin_type == "perc" and self.margin > 1:
            raise ValueError(f"hard_neg_margin={self.margin:g} is a share of the positives' score: at most 1")
        return self

    @property
    def margin(self) -> float:
        given = self.hard_neg_margin
        return DEFAULT_MARGIN[self.hard_neg_margin_type] if given is None else given

    @property
    def models(self) -> list[str]:
        return [self.model, *self.mining_models]

    @property
    def depth(self) -> int:
        """Candidates a query that the search has to find."""
        first = self.range_min + self.hard_negatives_to_mine
        wanted = first if self.range_max is None else self.range_max
        if self.strategy == "top":
            wanted = min(wanted, first)
        if self.teacher:
            wanted = max(wanted, self.teacher_depth)
        return max(wanted, 100) if self.mining_models else wanted

    def encoder_of(self, model: str) -> dict[str, Any]:
        """How one of the models is run: what is said of `model` is said of no other."""
        return self.run_as if model == self.model else of_any_model(self.run_as)

    def result_keys(self) -> dict[str, Any]:
        """The encoder's own operational options do not decide the result either."""
        return {**super().result_keys(), "encoder": decisive(self.encoder)}
