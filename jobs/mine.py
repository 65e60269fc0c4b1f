"""Training data to mined hard negatives, as the entrypoint of a Ray job.

    ray job submit --working-dir . -- python jobs/mine.py -c recipe.yaml input=s3://bucket/in output=s3://bucket/mine

Same options as `raycurate mine`. `raycurate submit mine -c RECIPE` does all of this in one go: it sends the
recipe, follows the log and ends with the job's status.
"""

from __future__ import annotations

import sys

from raycurate.cli import main

if __name__ == "__main__":
    sys.exit(main(["mine", *sys.argv[1:]]))
