"""Engines of the search that workers import."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np

from raycurate.search.shards import Piece
from raycurate.search.worker import Exact, Place


class KilledOnce(Exact):
    """Exact, but the process is killed at the third piece it prepares, if no other was before."""

    def __init__(self, marker: Path) -> None:
        self.marker, self.pieces = marker, 0

    def prepare(self, documents_MD: np.ndarray, piece: Piece, place: Place, *, where: str) -> Any:
        self.pieces += 1
        if self.pieces == 3:
            try:
                self.marker.touch(exist_ok=False)
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().prepare(documents_MD, piece, place, where=where)
