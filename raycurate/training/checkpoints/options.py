"""What a user can say about the checkpoints that stay. No torch is imported, as the command line's help reads it."""

from __future__ import annotations

from raycurate.core.config import StageConfig, option


class KeepOptions(StageConfig):
    """How many checkpoints stay."""

    keep_last: int = option(1, "Latest checkpoints that are kept.", operational=True, gt=0)
    keep_best: int = option(1, "Best checkpoints that are kept besides.", operational=True, ge=0)


class Keep(KeepOptions):
    """Which checkpoints stay: the last ones and the best by `metric`, without one the latest."""

    metric: str | None = None
