"""`raycurate convert` as the entrypoint of a Ray job.

ray job submit --working-dir . -- python jobs/convert.py -c recipe.yaml [key=value ...]
"""

import sys

from raycurate.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))
