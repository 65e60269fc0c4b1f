"""A whole recipe, stage after stage, as the entrypoint of a Ray job.

    ray job submit --working-dir . -- python jobs/run.py -c recipe.yaml [stage.option=value ...]

Same arguments as `raycurate run`. `raycurate submit run -c RECIPE` does all of this in one go.
"""

from __future__ import annotations

import sys

from raycurate.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
