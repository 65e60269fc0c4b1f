"""A real HTTP server that speaks /v1/embeddings, backed by the real model, and misbehaves on request."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np


class Server(ThreadingHTTPServer):
    """`requests`: bodies that came. `spoil`: changes an answer's items. `failures`: (status, headers) given first.

    `raw`: path -> the bytes of the answer there, whatever was asked.
    """

    daemon_threads = False  # closing waits for every handler, so that none outlives its test

    def __init__(self, embed: Callable[[list[str]], np.ndarray]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.embed = embed
        self.lock = threading.Lock()
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.failures: list[tuple[int, dict[str, str]]] = []
        self.metadata: dict[str, Any] | None = None
        self.raw: dict[str, bytes] = {}
        self.paths: list[str] = []
        self.cut = 0  # answers that end before their length
        self.spoil: Callable[[list[dict[str, Any]]], list[dict[str, Any]]] = lambda items: items[::-1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.0"  # one request a connection: a handler never waits for the next

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def answer(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        path = self.path.partition("?")[0]
        data = self.server.raw.get(path.removeprefix("/v1"), json.dumps(body).encode())
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.server.cut:
            self.server.cut -= 1
            data = data[: len(data) // 2]
        self.wfile.write(data)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/v1/models":
            self.answer(200, {"data": [{"id": "minilm"}]})
        elif path == "/v1/metadata" and (self.server.metadata or "/metadata" in self.server.raw):
            self.answer(200, self.server.metadata)
        else:
            self.answer(404, {"error": {"message": "no such page"}})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append(body)
            self.server.paths.append(self.path)
            self.server.keys.append(self.headers.get("Authorization"))
            failure = self.server.failures.pop() if self.server.failures else None
            if failure:
                self.answer(failure[0], {"error": {"message": "made to fail"}}, failure[1])
                return
            vectors = self.server.embed(body["input"])
        as_text = body.get("encoding_format") == "base64"
        items = [
            {"index": i, "embedding": base64.b64encode(v.tobytes()).decode() if as_text else v.tolist()}
            for i, v in enumerate(vectors)
        ]
        self.answer(200, {"data": self.server.spoil(items)})


@contextmanager
def serving(embed: Callable[[list[str]], np.ndarray]) -> Iterator[Server]:
    server = Server(embed)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
