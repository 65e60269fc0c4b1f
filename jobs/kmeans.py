"""Embeddings to clusters, as the entrypoint of a Ray job.

    ray job submit --working-dir . -- python jobs/kmeans.py -c recipe.yaml input=s3://bucket/emb output=s3://bucket/clusters

Same options as `raycurate kmeans`. `raycurate submit kmeans -c RECIPE` does all of this in one go: it sends the
recipe, follows the log and ends with the job's status.
"""

from __future__ import annotations

import sys

from raycurate.cli import main

if __name__ == "__main__":
    sys.exit(main(["kmeans", *sys.argv[1:]]))
