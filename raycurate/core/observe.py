"""What a run says of itself: log lines, progress, and metrics at Ray's own Prometheus endpoint.

Progress is a bar on a terminal and an occasional plain line anywhere else, because a bar in a job's log is a
page of control characters. Metrics go through `ray.util.metrics`, so every node's metrics port shows them
beside Ray's own (Prometheus adds the prefix `ray_`), and what runs without Ray needs no second code path.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self, TextIO

from raycurate.core.quiet import PROGRESS_SECONDS, progress_stream
from raycurate.core.redaction import hide_credentials

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_ROOT = "raycurate"
_SECONDS = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0]
_FRACTIONS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]


def setup_logging(verbose: bool = False) -> None:
    """Log lines of this project to stderr, once however often it is called; `verbose` adds the debug ones."""
    logger = logging.getLogger(_ROOT)
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    if not any(getattr(h, "raycurate", False) for h in logger.handlers):
        handler = _CurrentStderr()
        handler.setFormatter(logging.Formatter(_FORMAT, "%H:%M:%S"))
        logger.addHandler(handler)
        logger.propagate = False


class _CurrentStderr(logging.Handler):
    """Writes to what `sys.stderr` is now: a test, a notebook or a worker replaces it after the start.

    Not by `print`, which Ray Train replaces in its workers by one that says everything twice.
    """

    raycurate = True

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(hide_credentials(self.format(record)) + "\n")
        sys.stderr.flush()


def get_logger(name: str) -> logging.Logger:
    """The logger of a module (`__name__`), below the project's own."""
    return logging.getLogger(name if name == _ROOT or name.startswith(f"{_ROOT}.") else f"{_ROOT}.{name}")


class Progress:
    """How far a long step is: a bar on a terminal, else a line when it begins to take long and at its end.

        with Progress("kmeans", total=300, unit="iteration") as progress:
            progress.update(1)

    Args:
        label: what is being done.
        total: how many units there are, None when that is not known.
        unit: what is counted, singular.
        done: units that were done before, which the rate does not count.
        every_s: seconds between two lines where there is no terminal; RAYCURATE_PROGRESS_SECONDS, else 30, by default.
        stream: where it is written; stderr by default.
    """

    def __init__(
        self,
        label: str,
        total: int | None = None,
        *,
        unit: str = "row",
        done: int = 0,
        every_s: float | None = None,
        stream: TextIO | None = None,
    ) -> None:
        self.label = label
        self.total = total
        self.unit = unit
        self.done = self._before = done
        self._note = ""
        self._every_s = float(os.environ.get(PROGRESS_SECONDS, "30")) if every_s is None else every_s
        self._stream = progress_stream(stream or sys.stderr)
        self._started = self._said = time.monotonic()
        self._lock = threading.Lock()
        self._closed = False
        self._bar: Any = None
        if self._stream.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=total,
                initial=done,
                desc=label,
                unit=f" {unit}",
                file=self._stream,
                dynamic_ncols=_width_is_known(self._stream),
                ncols=None if _width_is_known(self._stream) else 100,
            )

    def update(self, count: int = 1, *, total: int | None = None, note: str | None = None) -> None:
        """Count `count` more units; may be called from several threads.

        Args:
            total: how many there are, when that is known by now.
            note: what is said beside the numbers from now on.
        """
        with self._lock:
            self.done += count
            self._note = self._note if note is None else note
            self.total = total or self.total
            if self._bar is not None:
                self._bar.total = self.total
                self._bar.set_postfix_str(self._note, refresh=False)
                self._bar.update(count)
            elif time.monotonic() - self._said >= self._every_s:
                self._say()

    def close(self) -> None:
        """Say the last line; a second call says nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self._bar is not None:
                self._bar.close()
            elif self.done > self._before:
                self._say()

    def _say(self) -> None:
        self._said = time.monotonic()
        elapsed = self._said - self._started
        rate = (self.done - self._before) / elapsed if elapsed > 0 else 0.0
        of = f"/{self.total:,}" if self.total is not None else ""
        line = f"{self.label}: {self.done:,}{of} {self.unit}s, {rate:,.1f}/s, {elapsed:.0f} s"
        if self.total is not None and rate > 0 and self.done < self.total:
            line += f", {(self.total - self.done) / rate:.0f} s to go"
        if self._note:
            line += f", {self._note}"
        self._stream.write(line + "\n")
        self._stream.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _width_is_known(stream: TextIO) -> bool:
    """Whether a terminal says how wide it is; one that a program made may not, and a bar would be of no width."""
    try:
        return os.get_terminal_size(stream.fileno()).columns > 0
    except (OSError, ValueError, AttributeError):
        return False


class Clock:
    """Seconds of a run by part: each `lap` names what was done since the one before."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began = self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name], self._last = now - self._last, now

    def timings(self) -> dict[str, float]:
        """All parts and the whole (`wall`), for a manifest."""
        whole = {**self.seconds, "wall": time.perf_counter() - self._began}
        return {name: round(seconds, 3) for name, seconds in whole.items()}


_metrics: dict[str, Any] = {}  # one metric a name and process; a second one of the name would be a second series
_metrics_lock = threading.Lock()


class StageMetrics:
    """Counters and histograms of one stage in one worker, with the tags `stage` and `engine`.

    At the endpoint: ray_raycurate_documents_total, ray_raycurate_tokens_total, ray_raycurate_rejects_total (tag
    `reason`), ray_raycurate_encode_seconds and ray_raycurate_batch_fill. They are made when first used, so the
    object can be pickled into a worker; without a Ray in this process recording does nothing. Ray passes a
    histogram on by buckets, so its `_sum` is one of bucket middles: read quantiles from it, not exact means.
    """

    def __init__(self, stage: str, engine: str = "") -> None:
        self._tags = {"stage": stage, "engine": engine}

    def record(
        self,
        *,
        documents: int = 0,
        tokens: int = 0,
        rejects: Mapping[str, int] | None = None,
        encode_seconds: float | None = None,
        batch_fill: float | None = None,
    ) -> None:
        """Count one batch.

        Args:
            documents: documents that were done.
            tokens: tokens in them.
            rejects: how many rows were rejected, by reason.
            encode_seconds: time the engine took for the batch.
            batch_fill: share of the batch's slots that held a token and no padding, 0 to 1.
        """
        if not _ray_is_running():
            return
        self._count("raycurate_documents_total", "documents done", documents)
        self._count("raycurate_tokens_total", "tokens done", tokens)
        for reason, count in (rejects or {}).items():
            self._count("raycurate_rejects_total", "rows rejected, by reason", count, reason=reason)
        self._observe("raycurate_encode_seconds", "seconds of the engine for one batch", _SECONDS, encode_seconds)
        self._observe("raycurate_batch_fill", "share of a batch's slots without padding", _FRACTIONS, batch_fill)

    def _count(self, name: str, what: str, count: int, **tags: str) -> None:
        from ray.util.metrics import Counter

        if count:
            keys = (*self._tags, *tags)
            _metric(name, lambda: Counter(name, what, tag_keys=keys)).inc(count, tags={**self._tags, **tags})

    def _observe(self, name: str, what: str, boundaries: list[float], value: float | None) -> None:
        from ray.util.metrics import Histogram

        if value is not None:
            keys = tuple(self._tags)
            metric = _metric(name, lambda: Histogram(name, what, boundaries=boundaries, tag_keys=keys))
            metric.observe(float(value), tags=self._tags)


def _metric(name: str, make: Any) -> Any:
    with _metrics_lock:
        if name not in _metrics:
            _metrics[name] = make()
        return _metrics[name]


def _ray_is_running() -> bool:
    ray = sys.modules.get("ray")  # never imported just to find that it is not running
    return ray is not None and ray.is_initialized()
