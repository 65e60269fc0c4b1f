"""How many questions a worker on a CPU has in memory at once, where nobody has said it.

On a GPU what does not fit fails, and the memory is the training's alone. On a CPU it is shared: with the system, the
encoders beside the training, the object store. So a worker is held to its share of half of the machine, with texts of
full length, and only a batch that needs more is cut.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from raycurate.core.errors import ContractError
from raycurate.core.observe import get_logger
from raycurate.training.estimate import Setting, estimate_training
from raycurate.training.flops import GIB
from raycurate.training.options import TrainOptions

if TYPE_CHECKING:
    from raycurate.training.model.options import LoraOptions, ModelOptions

PROCESS = 3 * GIB // 4
"""What a worker holds before it has a model: Python, torch, Ray."""

_KEPT = 0.75
"""Of what a training fills at most, what it keeps from the forward to the backward pass; the rest a backward pass makes
and drops (MiniLM, 48 texts of 256 tokens: 2.28 GiB are counted, and the process grew by 3.0)."""

log = get_logger(__name__)


def half_of_a_machine(workers: int, nodes: int, offered: int | None) -> int | None:
    """Bytes of a worker's share of half of its machine.

    Args:
        nodes: of the cluster; where it is one, it is this machine.
        offered: what a worker may take of the memory that its node offers, by default seven tenths of what is free
            there (Ray keeps the rest for objects); None where that is not known.
    """
    shares = [] if offered is None else [offered * 5 // 7]
    if nodes == 1:
        shares.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // (2 * max(1, workers)))
    return min(shares, default=None)


def questions_at_once(
    folder: str,
    model: ModelOptions,
    options: TrainOptions,
    setting: Setting,
    *,
    lora: LoraOptions | None = None,
    fullness: float = 1.0,
) -> int | None:
    """`local_batch_size` where it is to be chosen: the most questions that a worker's `setting.memory` holds with texts
    of full length, at least one. None where the whole share of a batch fits, or is not to be cut.

    Micro-steps of listed negatives divide the share evenly; chunks of GradCache, which in-batch negatives need, may be
    of any size, and cost a second forward pass.

    Args:
        setting: memory of a worker, what it holds without the training included.
        fullness: how much of its full length a text has at most, padding included, where that is known.
    """
    if setting.cuda or setting.memory is None or options.local_batch_size or options.chunk_tokens:
        return None
    if options.gradcache is False and options.loss != "listed":
        return None
    if options.elastic and options.global_batch_size == "auto":  # which then depends on it
        return None
    room = max(1, int((setting.memory - PROCESS) * _KEPT))
    try:
        whole = estimate_training(folder, model, options, replace(setting, memory=None), lora=lora)
        share = whole.micro_batch
        needed = whole.memory.total - int((1 - fullness) * whole.memory.activations)
        if needed <= room or share == 1:
            return None
        single = options.model_copy(update={"local_batch_size": 1})
        one = estimate_training(folder, model, single, replace(setting, memory=None), lora=lora)
    except ContractError:  # it cannot be outlined without its weights
        return None
    each = max(1.0, fullness * whole.memory.activations / share)
    most = int((room - one.memory.total + one.memory.activations) // each)
    if options.loss == "listed":
        chosen = next(n for n in range(max(1, min(share, most)), 0, -1) if share % n == 0)
    else:
        chosen = max(1, min(share, most))
    log.info(
        "local_batch_size: a worker takes %s of its %s questions at once; all would keep %.1f GiB, and its share of "
        "half of the machine's memory has room for %.1f GiB",
        chosen, share, needed / GIB, room / GIB,
    )  # fmt: skip
    return chosen
