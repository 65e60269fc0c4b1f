"""`raycurate sample-corpus` as the entrypoint of a Ray job.

ray job submit --working-dir . -- python jobs/sample_corpus.py -c recipe.yaml [key=value ...]
"""

import sys

from raycurate.cli import main

if __name__ == "__main__":
    sys.exit(main(["sample-corpus", *sys.argv[1:]]))
