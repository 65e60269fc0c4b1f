"""The fit's gauges, as Prometheus reads them from a node while the fit runs."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import requests

from raycurate.clustering.assignment import fixed_size_lists
from tests.clusters import head_node
from tests.processes import PATIENCE_S


def test_iteration_and_inertia_are_at_the_prometheus_endpoint(tmp_path: Path) -> None:
    """Of a fit without an end (no tolerance), which is ended once they are seen. What is waited for is that, or the end
    of the command; the limits only end what hangs."""
    rows = np.random.default_rng(0).normal(size=(2000, 16)).astype(np.float32)
    (tmp_path / "vectors").mkdir()
    ids = [f"v{number}" for number in range(len(rows))]
    pq.write_table(pa.table({"id": ids, "embeddings": fixed_size_lists(rows)}), tmp_path / "vectors" / "a.parquet")
    arguments = [f"input={tmp_path}/vectors", f"output={tmp_path}/clusters", "n_clusters=20", "num_workers=1"]
    command = [sys.executable, "-m", "raycurate.cli", "kmeans", *arguments, "tol=0", "max_iter=10000000"]
    environment = {"RAY_metrics_report_interval_ms": "1000"}
    log = tmp_path / "kmeans.log"
    with head_node(tmp_path, num_cpus=4, extra_env=environment, timeout_s=PATIENCE_S) as head, log.open("w") as output:
        env = head.env | {"RAY_ADDRESS": head.gcs_address}
        with subprocess.Popen(command, env=env, stdout=output, stderr=subprocess.STDOUT, text=True) as driver:
            try:
                seen: dict[str, float] = {}
                end = time.monotonic() + PATIENCE_S
                while len(seen) < 2 and time.monotonic() < end and driver.poll() is None:
                    time.sleep(0.5)
                    with contextlib.suppress(requests.RequestException):  # a busy agent answers later
                        text = requests.get(f"http://127.0.0.1:{head.metrics_port}/metrics", timeout=60).text
                        seen = {name: float(value) for name, value in GAUGES.findall(text) if float(value) > 0}
            finally:
                driver.send_signal(signal.SIGINT)
                driver.wait(PATIENCE_S)
    assert len(seen) == 2, log.read_text()[-3000:]
    assert seen["iteration"] > 1
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    assert 0 < seen["inertia"] < float(((rows / lengths) ** 2).sum())  # below that of no centroid at all


GAUGES = re.compile(r'^ray_raycurate_kmeans_(iteration|inertia)\{[^}]*stage="kmeans"[^}]*\} (\S+)$', re.M)
