"""Training data to a fine-tuned embedding model, as the entrypoint of a Ray job.

    ray job submit --working-dir . -- python jobs/finetune.py -c recipe.yaml output=s3://bucket/model

Same options as `raycurate finetune`. `raycurate submit finetune -c RECIPE` does all of this in one go: it sends the
recipe, follows the log and ends with the job's status.
"""

from __future__ import annotations

import sys

from raycurate.cli import main

if __name__ == "__main__":
    sys.exit(main(["finetune", *sys.argv[1:]]))
