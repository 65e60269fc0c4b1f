"""The memory that one step of training takes above idle, in a process of its own: `measure` starts it and reads it."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from typing import Any

import torch

from raycurate.training.batches.prepared import Prepared
from raycurate.training.loss.objective import Objective
from raycurate.training.model.bi_encoder import load_bi_encoder
from raycurate.training.model.options import ModelOptions
from raycurate.training.model.parallelize import Parallel, parallelize
from raycurate.training.optimise import make_optimizer
from raycurate.training.options import TrainOptions
from raycurate.training.plan import plan_training
from raycurate.training.step import Stepper


def measure(model: str, prepared: str, **options: Any) -> dict[str, float]:
    """MiB: `idle`, once the model is loaded and a step of two questions was made; `peak` of the process after a step
    with `options` (of TrainOptions); `tokens`: that this step padded its texts to."""
    told = json.dumps({"model": model, "prepared": prepared, "options": options})
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.finetune.peak_memory", told]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def step(parallel: Parallel, optimizer: torch.optim.Optimizer, data: Prepared, options: TrainOptions) -> int:
    """One whole optimiser step; the tokens of its texts, padding included."""
    plan = plan_training(data, options, rank=0, ranks=1)
    stepper = Stepper(parallel, Objective(options, normalised=True), options, plan)
    tokens = 0
    for batch in plan.feed.batches(0, 1):
        tokens += batch.queries.input_ids.numel() + batch.passages.input_ids.numel()
        stepper.micro_step(batch)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return tokens


def main(told: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    data = Prepared(told["prepared"])
    common: dict[str, Any] = {"loss": "in_batch", "temperature": 0.05, "precision": "float32"}
    options = TrainOptions(**common | told["options"])
    encoder = load_bi_encoder(told["model"], ModelOptions(normalize=True))
    parallel = parallelize(encoder, options, torch.device("cpu"))
    parallel.model.train()
    optimizer = make_optimizer(parallel.model, options)
    step(parallel, optimizer, data, TrainOptions(**common, global_batch_size=2))
    idle = _resident()
    tokens = step(parallel, optimizer, data, options)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"idle": idle, "peak": peak, "tokens": tokens}))


def _resident() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
