"""What the hub answers, in a user's words; the answers are those of a server, read by the hub's own client."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from raycurate.core.errors import InputError
from raycurate.core.hub import DATASET, MODEL, Kind, snapshot

ANSWERS = {"gated": (403, "GatedRepo"), "revision": (404, "RevisionNotFound"), "unknown": (404, "RepoNotFound")}


class Hub(BaseHTTPRequestHandler):
    """Refuses the repository `org/KIND` as the hub does."""

    def do_GET(self) -> None:
        status, code = next((ANSWERS[name] for name in ANSWERS if f"/org/{name}" in self.path), (500, ""))
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize(
    "kind,name,said",
    [
        (MODEL, "gated", "this model is gated .*https://huggingface.co/org/gated, then set hf_token or HF_TOKEN"),
        (DATASET, "gated", "this data set is gated .*huggingface.co/datasets/org/gated, then set HF_TOKEN"),
        (MODEL, "revision", "this model has no revision 'v9'"),
        (DATASET, "revision", "this data set has no revision 'v9'"),
        (MODEL, "unknown", "no such model on the hub, nor such a folder here.*private model needs hf_token"),
        (DATASET, "unknown", "no such data set on the hub, nor such a folder here.*private data set needs HF_TOKEN"),
        (MODEL, "broken", "this model is not in the cache and the hub was not reached"),
        (DATASET, "no good name", "there is no such data set on the hub"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(endpoint: str, tmp_path: Path, kind: Kind, name: str, said: str) -> None:
    with pytest.raises(InputError, match=f"org/{name}: .*{said}"):
        snapshot(f"org/{name}", None, kind=kind, revision="v9", endpoint=endpoint, cache_dir=str(tmp_path))


def test_without_a_network_the_way_out_is_the_kinds_own(tmp_path: Path) -> None:
    for kind, way in ((MODEL, "local_files_only=false, HF_HUB_OFFLINE unset"), (DATASET, "HF_HUB_OFFLINE unset")):
        with pytest.raises(InputError, match=rf"the hub was not reached .*\({way}\)"):
            snapshot("org/name", None, kind=kind, cache_dir=str(tmp_path))
