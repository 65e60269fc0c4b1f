"""From a plan to fitted centroids: the group is made, fits, and gives its places back."""

from __future__ import annotations

import time

from raycurate.clustering.centroids import FittedCentroids
from raycurate.clustering.group import GroupPlan, KMeansGroup
from raycurate.clustering.inputs import Embeddings
from raycurate.stages.kmeans.plan import KMeansPlan


def fit_centres(plan: KMeansPlan, inputs: Embeddings, state: str) -> FittedCentroids:
    """Fit `plan.config.k` centroids to the vectors of `inputs`; `state` is where they are saved on the way.

    Raises:
        RaycurateError: the vectors, the options or the cluster cannot be used; workers lost too often.
    """
    config = plan.config
    remote_args = config.actors.ray_remote_args()
    for name in ("num_cpus", "num_gpus"):
        remote_args.pop(name, None)
    group = GroupPlan(
        plan.workers,
        cpus=plan.cpus,
        gpus=plan.gpus,
        threads=plan.threads,
        remote_args=remote_args,
        timeout_s=config.collective_timeout_s,
    )
    began = time.perf_counter()
    fit = KMeansGroup(group, inputs.pieces, config.embedding_field, inputs.dimension).fit(config, state)
    read_seconds = time.perf_counter() - began - fit.seconds
    return FittedCentroids(fit.centroids, fit.iterations, fit.rows, read_seconds, fit.first_pass)
