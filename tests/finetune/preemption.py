"""A program: a training on a node that is then taken away, and goes on on another. Says what it saw, as JSON.

python -m tests.finetune.preemption FOLDER
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

from raycurate.stages.finetune.stage import STAGE
from raycurate.training.checkpoints.checkpoints import CheckpointStore
from tests.finetune.runs import config_of, losses, small_recipe

STEPS = 600
NOTICE_S = 8


def main(folder: Path) -> None:
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    for _ in range(2):  # the workers are put together on one of them
        cluster.add_node(num_cpus=2, resources={"trainer": 2})
    ray.init(cluster.address, logging_level="warning")
    output = folder / "out"
    changes: dict[str, Any] = {
        "num_epochs": STEPS,
        "max_steps": STEPS,
        "checkpoint_every_steps": 100 * STEPS,
        "validate_every_steps": 100 * STEPS,
        "actors": {"num_cpus": 0.5, "resources": {"trainer": 1}},
    }
    said: dict[str, Any] = {}
    watcher = threading.Thread(target=_take_away, args=(cluster.address, output, said), daemon=True)
    watcher.start()
    result = STAGE.run(config_of(small_recipe(folder), output, **changes))
    said |= {
        "steps": list(losses(output)),
        "left": [c.model_dump(include={"step", "interim"}) for c in result.store.all()],
    }
    print("SAID " + json.dumps(said))
    ray.shutdown()
    cluster.shutdown()


def _take_away(address: str, output: Path, said: dict[str, Any]) -> None:
    """Once the training runs, tell Ray that its node will go."""
    from ray._private.state import available_resources_per_node
    from ray._raylet import GcsClient
    from ray.core.generated import autoscaler_pb2

    log = output / "train.jsonl"
    while not (log.exists() and '"step": 5,' in log.read_text()):
        time.sleep(0.05)
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    deadline = time.time_ns() // 1_000_000 + NOTICE_S * 1000
    node = next(n for n, free in available_resources_per_node().items() if "CPU" in free and free["CPU"] < 2)
    said["accepted"], said["refusal"] = GcsClient(address=address).drain_node(node, reason, "a test", deadline)
    store = CheckpointStore(str(output / "checkpoints"))
    while (found := store.latest()) is None:
        time.sleep(0.05)
    said["first"] = found.model_dump(include={"step", "interim", "metrics"})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
