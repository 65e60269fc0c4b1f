"""From a plan to fitted centroids: the group is made, fits, and gives its places back."""

from __future__ import annotations

import time

from raycurate.clustering.centroids import Centres
from raycurate.clustering.group import GroupPlan, KMeansGroup
from raycurate.clustering.inputs import Embeddings
from raycurate.clustering.options import FitOptions
from raycurate.stages.kmeans.plan import KMeansPlan


def fit_centres(plan: KMeansPlan, inputs: Embeddings, state: str) -> Centres:
    """Fit `plan.k` centroids to the vectors of `inputs`; `state` is where they are saved on the way.

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
    options = FitOptions(
        plan.k,
        max_iter=config.max_iter,
        tol=config.tol,
        random_state=config.random_state,
        init=str(config.init) if plan.given.first is None else plan.given.first,
        n_init=config.n_init,
        oversampling_factor=config.oversampling_factor,
        max_samples_per_batch=config.max_samples_per_batch,
        fit_data_fraction=config.fit_data_fraction,
        checkpoint_every=config.checkpoint_every,
        embedding_field=config.embedding_field,
        state=state,
        engine=plan.engine,
        device_memory_fraction=config.device_memory_fraction,
        warm_start_fraction=config.warm_start_fraction,
    )
    began = time.perf_counter()
    fit = KMeansGroup(group, inputs.pieces, inputs.dimension).fit(options)
    read_seconds = time.perf_counter() - began - fit.seconds
    return Centres(fit.centroids, fit.iterations, fit.rows, read_seconds, fit.first_pass)
