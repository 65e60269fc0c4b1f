"""Documents to embeddings, as the entrypoint of a Ray job.

    ray job submit --working-dir . -- python jobs/embed.py -c recipe.yaml input=s3://bucket/docs output=s3://bucket/emb

Same options as `raycurate embed`. `raycurate submit embed -c RECIPE` does all of this in one go: it sends the
recipe, follows the log and ends with the job's status.
"""

from __future__ import annotations

import sys

from raycurate.cli import main

if __name__ == "__main__":
    sys.exit(main(["embed", *sys.argv[1:]]))
