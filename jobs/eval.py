"""Retrieval metrics of models on a test set, side by side, as the entrypoint of a Ray job.

    ray job submit --working-dir . -- python jobs/eval.py -c recipe.yaml input=s3://bucket/eval_beir output=s3://bucket/eval

Same options as `raycurate eval`. `raycurate submit eval -c RECIPE` does all of this in one go: it sends the
recipe, follows the log and ends with the job's status.
"""

from __future__ import annotations

import sys

from raycurate.cli import main

if __name__ == "__main__":
    sys.exit(main(["eval", *sys.argv[1:]]))
