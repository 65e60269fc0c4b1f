"""What a finished training is to a program: where the models lie, what was measured, how the loss went."""

from __future__ import annotations

import json
from dataclasses import dataclass

from raycurate.core import storage
from raycurate.core.manifest import REJECTS
from raycurate.stage import Result
from raycurate.training.checkpoints.checkpoints import CHECKPOINTS, CheckpointStore, model_in
from raycurate.training.logs import FILE as LOG_FILE


@dataclass(frozen=True)
class FinetuneResult(Result):
    """A finished training: `.best` is the path of the model to use, `.metrics` what was measured of it, `.losses` the
    loss of each step."""

    @property
    def store(self) -> CheckpointStore:
        return CheckpointStore(storage.join(self.output, CHECKPOINTS))

    @property
    def best(self) -> str:
        """The best model's folder or URI, which transformers and sentence-transformers load."""
        return model_in(self.output, self.manifest.settings["best"])

    @property
    def latest(self) -> str:
        """The last model's."""
        return model_in(self.output, self.manifest.settings["latest"])

    @property
    def metrics(self) -> dict[str, float]:
        """What was measured of the best model: val_loss, val_mrr, ..., dev_ndcg10, ..., as far as there was data."""
        found = self.manifest.settings["metrics"]
        return {name: value for name, value in found.items() if name.startswith(("val_", "dev_"))}

    @property
    def base_metrics(self) -> dict[str, float]:
        """The dev metrics of the model before training; empty without measure_base."""
        return dict(self.manifest.settings.get("base_metrics") or {})

    @property
    def losses(self) -> dict[int, float]:
        """Step -> training loss, for the steps that were logged (all of them by default)."""
        lines = storage.read_text(storage.join(self.output, LOG_FILE)).splitlines()
        return {row["step"]: row["loss"] for row in map(json.loads, lines) if "loss" in row}

    def summary(self) -> str:
        """Questions, steps, the best checkpoint with its metrics, before and after where both are known, seconds."""
        counts, settings = self.manifest.counts, self.manifest.settings
        shown = sorted((name, value) for name, value in self.metrics.items() if not name.endswith("_questions"))
        metrics = ", ".join(f"{name} {value:.4f}" for name, value in shown)
        by = f"by {settings['metric']}" if settings["metric"] else "the last"
        early = ", stopped early" if counts["stopped_early"] else ""
        seconds = ", ".join(f"{name} {value:.1f}" for name, value in self.manifest.timings.items())
        return "\n".join(
            [
                f"questions {counts['questions']:,}  validation {counts['validation_questions']:,}"
                + (f"  rejected {counts['rejected']:,} ({REJECTS}/)" if counts.get("rejected") else ""),
                f"trained   {_counted(counts['steps'], 'step')}, {_counted(counts['epochs'], 'epoch')}{early}, "
                f"{_counted(counts['workers'], 'worker')}",
                f"best      {settings['best']} ({by}): {metrics or 'nothing was measured'}",
                *([] if self.skipped else [f"seconds   {seconds}"]),
                *_table(self.base_metrics, self.metrics),
                f"model     {self.best}",
            ]
        )


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def _table(before: dict[str, float], after: dict[str, float]) -> list[str]:
    """Lines with the metrics that both have."""
    from raycurate.stages.finetune.dev_eval import METRICS

    names = [name for name in METRICS if name in before and name in after]
    if not names:
        return []
    rows = [
        ("dev questions", [METRICS[name] for name in names]),
        ("  before", [f"{before[name]:.4f}" for name in names]),
        ("  after", [f"{after[name]:.4f}" for name in names]),
        ("  change", [f"{after[name] - before[name]:+.4f}" for name in names]),
    ]
    return [title.ljust(14) + "".join(cell.rjust(12) for cell in cells) for title, cells in rows]
