"""The rate of a run with its start left out, by hand."""

from __future__ import annotations

import pytest

from raycurate.streams.staging import Written, steady_rows_per_second


def test_steady_rate_counts_what_was_done_after_all_were_at_work() -> None:
    # Two workers, a block of 10 rows every 2 s each, the first late because of start-up and written at last.
    ends = [30.0, 31.0, 32.0, 33.0, 34.0, 35.0]
    written = [Written(40.0, 41.0, 10, end) for end in reversed(ends)]
    assert steady_rows_per_second(written, parallel=2) == pytest.approx(40 / 4.0)
    assert steady_rows_per_second(written[:3], parallel=2) == 0.0
