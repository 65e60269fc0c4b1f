"""The k-means stage: embeddings -> clusters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raycurate.core.manifest import Manifest
from raycurate.stage import SEED, Made, Output, Result, Run, Stage
from raycurate.stages.kmeans.config import ALGORITHM_VERSION, KMeansConfig

if TYPE_CHECKING:
    import numpy as np

    from raycurate.stages.kmeans.work import KMeansInputs


@dataclass(frozen=True)
class KMeansResult(Result):
    """Finished clusters."""

    def centroids(self) -> np.ndarray:
        """Float32 [k, dim], as fitted."""
        from raycurate.clustering.centroids import load_centroids

        return load_centroids(self.output)

    def summary(self) -> str:
        """The run in a few lines: rows, clusters and their sizes, inertia, rejects by reason, seconds by part."""
        counts, timings, settings = self.manifest.counts, self.manifest.timings, self.manifest.settings
        reasons = ", ".join(f"{reason} {n:,}" for reason, n in sorted(self.manifest.rejects.items()))
        renamed = counts.get("renamed", 0)
        parts = ", ".join(f"{name} {timings.get(name, 0.0):.1f}" for name in ("read", "fit", "assign", "write"))
        lines = [
            f"rows      {counts['rows']:,} in {counts['clusters']:,} clusters ({counts['empty_clusters']:,} empty), "
            f"largest {counts['largest_cluster']:,}, dimension {counts['dimension']:,}",
            f"rejected  {sum(self.manifest.rejects.values()):,}" + (f"  ({reasons})" if reasons else ""),
            *([f"renamed   {renamed:,}  (their ids were taken; see _renamed/)"] if renamed else []),
            f"inertia   {settings['inertia']:.6g} ({settings['inertia'] / max(counts['rows'], 1):.4f} a row), "
            f"{counts['iterations']:,} iterations",
            *([] if self.skipped else [f"seconds in {parts}; wall {timings['wall']:.1f}"]),
            f"output {self.output}  ({len(self.manifest.files):,} files)",
        ]
        return "\n".join(lines)


class KMeans(Stage[KMeansConfig, "KMeansInputs"]):
    """Embeddings in; the same by cluster, with their distances, and the centroids out."""

    name = "kmeans"
    version = ALGORITHM_VERSION
    Config = KMeansConfig
    Result = KMeansResult
    folder = "clusters"
    inputs = {"input": Output("embed"), "random_state": SEED}
    packages = ("ray", "torch", "cuml-cu13", "pyarrow")

    def open(self, config: KMeansConfig) -> KMeansInputs:
        from raycurate.stages.kmeans.work import open_inputs

        return open_inputs(config)

    def key_options(self, config: KMeansConfig, inputs: KMeansInputs) -> dict[str, Any]:
        return config.result_keys() | inputs.given.by_content()

    def work(self, config: KMeansConfig, inputs: KMeansInputs, run: Run) -> Made:
        from raycurate.stages.kmeans.work import cluster

        return cluster(config, inputs, run)

    def phrase(self, manifest: Manifest) -> str:
        return f"{manifest.counts['rows']:,} rows in {manifest.counts['clusters']:,} clusters"

    def plan(self, config: KMeansConfig) -> str:
        from raycurate.stages.kmeans.work import describe, plan_run

        inputs = self.open(config)
        return "\n".join([*describe(plan_run(config, inputs), inputs.embeddings), self.state_line(config, inputs)])


STAGE = KMeans()
