"""A driver for tests that kill it: `python -m tests.embed.run_embed CPUS CONFIG_JSON`."""

from __future__ import annotations

import json
import resource
import sys

from raycurate.core.observe import setup_logging
from raycurate.encoders.embed_options import EmbedConfig
from raycurate.ray_runtime.connect import connect
from raycurate.stages.embed.stage import STAGE

if __name__ == "__main__":
    setup_logging(verbose=False)
    connect("local", num_cpus=int(sys.argv[1]))
    result = STAGE.run(EmbedConfig.parse(json.loads(sys.argv[2]), where="test"))
    print(f"driver peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MiB")
    print(result.summary(), flush=True)
