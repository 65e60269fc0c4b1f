"""Log lines, progress, and metrics as Prometheus reads them from a node."""

from __future__ import annotations

import io
import pickle
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests

from raycurate.core.observe import Progress, StageMetrics, get_logger, setup_logging
from tests.clusters import head_node
from tests.processes import PATIENCE_S

pytestmark = pytest.mark.ray

ROOT = Path(__file__).resolve().parents[2]

# Two workers of one stage: what they count is kept alive until the endpoint has been read.
WORKERS = """
import sys, ray
sys.path.insert(0, sys.argv[2])
ray.init(address=sys.argv[1], runtime_env={"env_vars": {"PYTHONPATH": sys.argv[2]}}, log_to_driver=False)
from raycurate.core.observe import StageMetrics

@ray.remote(num_cpus=0.5)
class Worker:
    def __init__(self, metrics):
        self.metrics = metrics

    def work(self):
        rejects = {"empty": 2, "bad_json": 1}
        self.metrics.record(documents=5, tokens=700, rejects=rejects, encode_seconds=0.02, batch_fill=0.85)
        self.metrics.record(documents=3, tokens=80, encode_seconds=2.5, batch_fill=0.15)

workers = [Worker.remote(StageMetrics(stage="embed", engine="transformers")) for _ in range(2)]
ray.get([w.work.remote() for w in workers])
print("recorded", flush=True)
sys.stdin.read()
"""


def samples(text: str) -> dict[str, float]:
    """Sums over workers of every `ray_raycurate_` sample, named by metric and the tags that are ours."""
    found: dict[str, float] = {}
    for name, tags, value in re.findall(r"^ray_(raycurate_\w+)\{(.*?)\} (\S+)$", text, re.M):
        ours = re.findall(r'(?:stage|engine|reason|le)="[^"]*"', tags)
        key = f"{name}{{{','.join(sorted(ours))}}}"
        found[key] = found.get(key, 0.0) + float(value)
    return found


def test_metrics_are_at_the_prometheus_endpoint(tmp_path: Path) -> None:
    with head_node(tmp_path, num_cpus=2, extra_env={"RAY_metrics_report_interval_ms": "1000"}) as head:
        command = [sys.executable, "-c", WORKERS, head.gcs_address, str(ROOT)]
        with subprocess.Popen(
            command, env=head.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as driver:
            assert driver.stdin and driver.stdout and driver.stderr
            assert driver.stdout.readline() == "recorded\n", driver.stderr.read()
            end = time.monotonic() + PATIENCE_S
            found: dict[str, float] = {}
            tags = 'engine="transformers"'
            whole = f'raycurate_documents_total{{{tags},stage="embed"}}'
            while found.get(whole) != 16 and time.monotonic() < end:
                time.sleep(0.5)
                found = samples(requests.get(f"http://127.0.0.1:{head.metrics_port}/metrics", timeout=60).text)
            driver.stdin.close()
    assert found[whole] == 16
    assert found[f'raycurate_tokens_total{{{tags},stage="embed"}}'] == 1560
    assert found[f'raycurate_rejects_total{{{tags},reason="empty",stage="embed"}}'] == 4
    assert found[f'raycurate_rejects_total{{{tags},reason="bad_json",stage="embed"}}'] == 2
    assert found[f'raycurate_encode_seconds_count{{{tags},stage="embed"}}'] == 4
    assert found[f'raycurate_encode_seconds_bucket{{{tags},le="0.03",stage="embed"}}'] == 2
    assert found[f'raycurate_encode_seconds_bucket{{{tags},le="1.0",stage="embed"}}'] == 2
    assert found[f'raycurate_encode_seconds_bucket{{{tags},le="3.0",stage="embed"}}'] == 4
    assert found[f'raycurate_batch_fill_bucket{{{tags},le="0.2",stage="embed"}}'] == 2
    assert found[f'raycurate_batch_fill_bucket{{{tags},le="0.9",stage="embed"}}'] == 4


def test_metrics_without_ray_cost_nothing_and_can_be_pickled() -> None:
    code = (
        "import sys, pickle; from raycurate.core.observe import StageMetrics; "
        "m = pickle.loads(pickle.dumps(StageMetrics('embed', 'x'))); "
        "m.record(documents=1, tokens=2, rejects={'a': 1}, encode_seconds=0.1, batch_fill=1.0); "
        "print('ray' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    assert pickle.loads(pickle.dumps(StageMetrics("a", "b"))).__dict__ == StageMetrics("a", "b").__dict__


def test_progress_without_a_terminal_says_few_plain_lines() -> None:
    out = io.StringIO()
    with Progress("kmeans", total=4000, unit="row", every_s=3600, stream=out) as progress:
        for _ in range(1000):
            progress.update(4)
    (line,) = out.getvalue().splitlines()
    assert re.fullmatch(r"kmeans: 4,000/4,000 rows, [\d,.]+/s, \d+ s", line)


def test_progress_says_rate_and_what_is_left_now_and_then() -> None:
    out = io.StringIO()
    progress = Progress("embed", total=10, every_s=0.05, stream=out)
    for _ in range(4):
        time.sleep(0.06)
        progress.update()
    progress.close()
    progress.close()
    lines = out.getvalue().splitlines()
    assert len(lines) == 5 and all("\r" not in line and "s to go" in line for line in lines)
    assert [line.split()[1] for line in lines] == ["1/10", "2/10", "3/10", "4/10", "4/10"]


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_on_a_terminal_is_a_bar() -> None:
    out = _Terminal()
    with Progress("embed", total=2, stream=out) as progress:
        progress.update(2)
    assert "embed: 100%" in out.getvalue() and "\r" in out.getvalue()


def test_logging_is_set_up_once_and_reaches_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging()
    setup_logging(verbose=True)
    log = get_logger("somewhere")
    assert log.name == "raycurate.somewhere" and get_logger("raycurate.core.x").name == "raycurate.core.x"
    log.debug("a detail")
    setup_logging(verbose=False)
    log.debug("not this")
    log.info("said once")
    captured = capsys.readouterr().err.splitlines()
    assert [line.split(": ", 1)[1] for line in captured] == ["a detail", "said once"]
    assert "INFO raycurate.somewhere" in captured[1]
