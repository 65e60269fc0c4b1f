"""Work in two Gloo processes."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def in_two_ranks(work: Callable[..., Any], *arguments: Any) -> Any:
    """What `work(*arguments)` gives in rank 0 of two Gloo processes; an error there is an error here."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_rank, (folder, work, arguments), nprocs=2)
        return torch.load(Path(folder) / "result.pt", weights_only=False)


def _rank(rank: int, folder: str, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    try:
        result = work(*arguments)
        if rank == 0:
            torch.save(result, Path(folder) / "result.pt")
    finally:
        dist.destroy_process_group()
    # Gloo's threads of further groups may still run: the interpreter's own end has aborted on them, once all was done.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
