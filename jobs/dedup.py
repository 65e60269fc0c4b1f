"""Clusters to documents without near-duplicates, as the entrypoint of a Ray job.

    ray job submit --working-dir . -- python jobs/dedup.py -c recipe.yaml input=s3://bucket/clusters output=s3://bucket/dedup

Same options as `raycurate dedup`. `raycurate submit dedup -c RECIPE` does all of this in one go: it sends the
recipe, follows the log and ends with the job's status.
"""

from __future__ import annotations

import sys

from raycurate.cli import main

if __name__ == "__main__":
    sys.exit(main(["dedup", *sys.argv[1:]]))
