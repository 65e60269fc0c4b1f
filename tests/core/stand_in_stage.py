"""A command line as small as a stage's can be, for the tests of job submission.

    python -m tests.core.stand_in_stage STAGE -c recipe.yaml

It connects the way the real one does, runs a task on the cluster, and prints what it was given.
"""

from __future__ import annotations

import json
import sys

from raycurate.core.config import load_recipe
from raycurate.core.errors import ConfigError, RaycurateError
from raycurate.ray_runtime.connect import connect, disconnect


def main(arguments: list[str]) -> int:
    stage, _, path = arguments
    try:
        section = load_recipe(path, [], stages=("embed",)).section(stage)
        if "batch_sise" in section:
            raise ConfigError("unknown key 'batch_sise'; did you mean 'batch_size'?", where=f"{path}: {stage}")
        info = connect()
        import ray

        doubled = ray.get(ray.remote(lambda x: 2 * x).remote(21))
        print(json.dumps({"in_job": info.in_job, "owned": info.owned, "task": doubled, "python": sys.executable}))
        print("token length", len(section.get("hf_token", "")))
        disconnect(info)
    except RaycurateError as error:
        print(f"raycurate: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
