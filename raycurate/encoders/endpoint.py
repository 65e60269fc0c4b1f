"""The engine for any OpenAI-compatible /v1/embeddings URL: text in, vectors out, the model elsewhere.

What the server does to a text is its own affair; identity is the server's contract when /v1/metadata
offers one (as this project's server does), else the URL and the model's name, with the poolings and
lengths that the options say or nothing is known of.

engine_kwargs:
    url: the server, when `model` is the model's name there instead of a URL. A name and password, and a query, in
        the URL are sent with each request and written nowhere.
    model: its name there; by default the first of /v1/models.
    api_key_env: NAME of the environment variable that holds the API key; the key itself never stands in options.
    input_type: true sends NIM's input_type (query or passage, from `role`) and leaves prompts to the server; by
        default true when the server's contract has prompts.
    truncate: NONE, START or END, sent as NIM's `truncate`.
    tokenizer: a model (folder, id or python:MODULE) whose tokenizer cuts over-long texts to max_length tokens here.
    encoding_format: float (default) or base64. dimensions: asked of the server.
    concurrency: requests in flight (8). timeout_s: of one request (120). retries: of one request (6).
"""

from __future__ import annotations

import base64
import math
import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

import numpy as np

from raycurate.core.config import unknown_key
from raycurate.core.errors import ConfigError, ContractError, InputError, require
from raycurate.encoders.base import Vectors, is_url
from raycurate.encoders.batching import micro_batches
from raycurate.models.contract import EmbeddingContract
from raycurate.models.options import EncoderOptions
from raycurate.models.tokenize import TokenBatch

_KNOWN = (
    "url", "model", "api_key_env", "input_type", "truncate", "tokenizer", "encoding_format", "dimensions",
    "concurrency", "timeout_s", "retries",
)  # fmt: skip
_PASSING = {408, 429, 500, 502, 503, 504}
_INPUT_TYPES = {"document": "passage", "query": "query"}
_UNKNOWN_LENGTH = 1_000_000  # tokens; "nobody said"
_CHARS_PER_TOKEN = 4
_REQUEST_TOKENS = 32_768
_LONGEST_WAIT = 60.0


class EndpointEncoder:
    """Text to vectors over HTTP; see the module for engine_kwargs.

    Raises (when made):
        ConfigError: unknown engine options, an unset key variable, or options that only the server could follow.
        InputError: the server cannot be reached or refuses.
    """

    accepts: Literal["tokens", "text"] = "text"

    def __init__(self, options: EncoderOptions, *, threads: int | None = None) -> None:
        self._requests = require("requests", "embed", purpose="engine endpoint")
        kwargs = options.engine_kwargs
        for name in kwargs:
            if name not in _KNOWN:
                raise ConfigError(unknown_key(name, _KNOWN), where="engine_kwargs of engine endpoint")
        if options.pooling == "multi_vector":
            raise ConfigError("/v1/embeddings gives one vector a text", where="pooling=multi_vector")
        self._address = _address(str(kwargs.get("url") or options.model))
        self._base = self._address.base
        self._key = _api_key(kwargs.get("api_key_env"))
        self._retries, self._timeout = int(kwargs.get("retries", 6)), float(kwargs.get("timeout_s", 120))
        self._local = threading.local()
        self._options = options
        self.name = kwargs.get("model") or (self._first_model() if is_url(options.model) else options.model)
        served = self._served_contract()
        self._extra = self._extra_fields(kwargs, served)
        self._prefix = self._prefix_of(served)
        self._pool = ThreadPoolExecutor(max(1, int(kwargs.get("concurrency", 8))), thread_name_prefix="endpoint")
        self.contract = self._contract(served)
        self._clip = _clipper(kwargs["tokenizer"], options, self.contract) if kwargs.get("tokenizer") else None

    def prepare(self, batch: TokenBatch | list[str]) -> list[str]:
        """The texts as they are sent; safe in any thread."""
        if isinstance(batch, TokenBatch):
            raise ConfigError("engine endpoint takes text, not tokens")
        texts = [self._prefix + text for text in batch]
        return self._clip(texts) if self._clip else texts

    def run(self, prepared: list[str]) -> Vectors:
        """Float32 [n, dimension], in the order given whatever order the server answers in.

        Raises:
            InputError: the server went on failing, or answered with missing, doubled or broken vectors.
        """
        out = np.empty((len(prepared), self.contract.dimension), np.float32)
        tokens = np.array([len(text) // _CHARS_PER_TOKEN + 1 for text in prepared], np.int64)
        auto = self._options.batch_tokens == "auto"
        budget = _REQUEST_TOKENS if auto else int(self._options.batch_tokens)
        batches = micro_batches(tokens, budget, self._options.batch_size, sort=False, padded=False)
        jobs = [self._pool.submit(self._embed, [prepared[row] for row in rows]) for rows in batches]
        try:
            for rows, job in zip(batches, jobs, strict=True):
                vectors = job.result()
                if vectors.shape[1] != out.shape[1]:
                    raise InputError(
                        f"it gave {vectors.shape[1]} dimensions after giving {out.shape[1]}", where=self._base
                    )
                out[rows] = vectors
        finally:
            for job in jobs:
                job.cancel()
        if self.contract.normalize:
            out /= np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-12)
        return out

    def close(self) -> None:
        """End the request threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _embed(self, texts: list[str]) -> np.ndarray:
        """One request: float32 [n, dimension] in the order of `texts`."""
        answer = self._call("POST", "/embeddings", {"model": self.name, "input": texts, **self._extra})
        rows = _vectors_in_order(answer, len(texts), where=f"{self._base}/embeddings")
        widths = {len(row) for row in rows}
        if len(widths) != 1 or 0 in widths:
            raise InputError(f"one answer has vectors of {sorted(widths)} dimensions", where=self._base)
        vectors = np.stack(rows)
        if not np.isfinite(vectors).all():
            row = int(np.flatnonzero(~np.isfinite(vectors).all(1))[0])
            raise InputError(f"the vector of {texts[row][:80]!r} is not finite", where=self._base)
        return vectors

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None, *, optional: bool = False) -> Any:
        """The JSON answer; passing failures are tried again with growing, jittered waits (or the server's own)."""
        session = getattr(self._local, "session", None)
        if session is None:
            session = self._local.session = self._requests.Session()
            session.auth = self._address.login
            if self._key:
                session.headers["Authorization"] = f"Bearer {self._key}"
        problem = ""
        for attempt in range(self._retries + 1):
            wait = min(_LONGEST_WAIT, 0.25 * 2**attempt) * random.uniform(0.5, 1.0)
            try:
                answer = session.request(
                    method, self._base + path, params=self._address.query, json=body, timeout=self._timeout
                )
            except self._requests.RequestException as error:
                if not self._may_pass(error):
                    raise InputError(f"it cannot be asked ({error})", where=self._base + path) from error
                problem = str(error)
            else:
                if answer.ok:
                    return _json(answer, self._base + path, optional=optional)
                if optional and answer.status_code in (400, 401, 403, 404, 405, 501):
                    return None
                problem = f"HTTP {answer.status_code}: {_message(answer)}"
                if answer.status_code not in _PASSING:
                    raise InputError(f"the server refused: {problem}", where=self._base + path)
                wait = _retry_after(answer, wait)
            if attempt < self._retries:
                time.sleep(wait)
        raise InputError(f"it failed {self._retries + 1} times, the last with: {problem}", where=self._base + path)

    def _may_pass(self, error: Exception) -> bool:
        """Whether the same request may succeed a moment later: after a broken or late answer, not a bad certificate."""
        passing = (
            self._requests.ConnectionError,
            self._requests.Timeout,
            self._requests.exceptions.ChunkedEncodingError,
        )
        return isinstance(error, passing) and not isinstance(error, self._requests.exceptions.SSLError)

    def _first_model(self) -> str:
        answer = self._call("GET", "/models")
        items = answer.get("data") if isinstance(answer, dict) else None
        names = [item.get("id") for item in items if isinstance(item, dict)] if isinstance(items, list) else []
        if not names or not isinstance(names[0], str) or not names[0]:
            raise InputError(
                f"it lists no model but answers {_shown(answer)}",
                where=f"{self._base}/models",
                fix="Set engine_kwargs.model",
            )
        return names[0]

    def _served_contract(self) -> EmbeddingContract | None:
        answer = self._call("GET", "/metadata", optional=True)
        fields = answer.get("contract") if isinstance(answer, dict) else None
        if not isinstance(fields, dict):
            return None
        try:
            return EmbeddingContract(**fields)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"the contract that the server states cannot be read: {_first_problem(error)}",
                where=f"{self._base}/metadata",
                fix="Serve it with the version of raycurate that is installed here",
            ) from error

    def _extra_fields(self, kwargs: dict[str, Any], served: EmbeddingContract | None) -> dict[str, Any]:
        extra: dict[str, Any] = {"encoding_format": kwargs.get("encoding_format", "float")}
        if kwargs.get("input_type", bool(served and served.prompts and self._options.prefix is None)):
            extra["input_type"] = _INPUT_TYPES.get(self._options.role, self._options.role)
        return extra | {name: kwargs[name] for name in ("truncate", "dimensions") if name in kwargs}

    def _prefix_of(self, served: EmbeddingContract | None) -> str:
        if self._options.prefix is not None or "input_type" in self._extra:
            return self._options.prefix or ""
        return served.prompt_for(self._options.role) if served else ""

    def _contract(self, served: EmbeddingContract | None) -> EmbeddingContract:
        """The server's contract, or what can be said without one; the dimension is always measured."""
        options = self._options
        dimension = self._embed(["dimension"]).shape[1]
        if served is not None:
            for name, asked in (("pooling", options.pooling), ("max_length", options.max_length)):
                if asked is not None and asked != getattr(served, name):
                    raise ConfigError(f"the server has {name}={getattr(served, name)}", where=f"{name}={asked}")
            if options.normalize is False and served.normalize:
                raise ContractError("the server gives normalised vectors", where="normalize=false")
            update: dict[str, Any] = {"dimension": dimension, "normalize": served.normalize or bool(options.normalize)}
            if options.prefix is not None:
                update["prompts"] = served.prompts | {options.role: options.prefix}
            return EmbeddingContract(**(served.model_dump() | update))
        return EmbeddingContract(
            weights=f"endpoint:{self._base}#{self.name}",
            tokenizer=f"endpoint:{self._base}#{self.name}",
            pooling=options.pooling or "mean",  # type: ignore[arg-type]
            normalize=bool(options.normalize),
            attention="bidirectional",
            prompts={options.role: options.prefix} if options.prefix else {},
            max_length=options.max_length or _UNKNOWN_LENGTH,
            dimension=dimension,
            engine="endpoint",
        )


class _Address(NamedTuple):
    """A server's URL taken apart: what may be written down, and what is only sent."""

    base: str
    login: tuple[str, str] | None
    query: list[tuple[str, str]]


def _address(url: str) -> _Address:
    """`url` up to /v1, without the name and password or the query (keys stand there too) that requests carry.

    Raises:
        ConfigError: it is no http(s) URL.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise ConfigError(f"it is no URL ({error})", where="model, or engine_kwargs.url") from None
    if not is_url(url) or not parts.hostname:
        raise ConfigError(f"'{url}' is no URL", where="model", fix="Set engine_kwargs.url to the server's http(s) URL")
    path = parts.path.rstrip("/").removesuffix("/embeddings")
    path = path if path.endswith("/v1") else f"{path}/v1"
    host = parts.netloc.rpartition("@")[2]
    login = (unquote(parts.username), unquote(parts.password or "")) if parts.username is not None else None
    return _Address(urlunsplit((parts.scheme, host, path, "", "")), login, parse_qsl(parts.query))


def _api_key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable)
    if not key:
        fix = "Set it where the encoder runs; the option takes the variable's name, not the key"
        raise ConfigError(f"environment variable {variable} is not set", where="engine_kwargs.api_key_env", fix=fix)
    return key


def _vectors_in_order(answer: Any, count: int, *, where: str) -> list[np.ndarray]:
    """The vectors of an answer, by their indices.

    Raises:
        InputError: the answer is not OpenAI's list of embeddings, or its indices are not 0 to count - 1.
    """
    items = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise InputError(f"it gave no list of embeddings but {_shown(answer)}", where=where)
    indices = [item.get("index") for item in items]
    if not all(type(index) is int for index in indices) or sorted(indices) != list(range(count)):
        raise InputError(f"for {count} texts it gave the indices {_shown(indices)}", where=where)
    vectors: dict[int, np.ndarray] = {}
    for item in items:
        try:
            vectors[item["index"]] = _vector(item.get("embedding"))
        except (TypeError, ValueError, OverflowError):
            raise InputError(
                f"its embedding {item['index']} is no vector: {_shown(item.get('embedding'))}", where=where
            ) from None
    return [vectors[index] for index in range(count)]


def _vector(value: Any) -> np.ndarray:
    """Float32 [dimension] of a list of numbers or of base64; ValueError or TypeError of anything else."""
    if isinstance(value, str):
        return np.frombuffer(base64.b64decode(value, validate=True), "<f4").astype(np.float32)
    if not isinstance(value, list) or any(isinstance(v, bool | str | list | dict) for v in value):
        raise TypeError("neither a list of numbers nor base64")
    return np.array([np.nan if v is None else v for v in value], np.float32)  # JSON has no NaN: servers send null


def _shown(value: Any) -> str:
    """The beginning of an answer that is not what it should be, for a message."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _first_problem(error: Exception) -> str:
    problems = getattr(error, "errors", None)
    if not callable(problems):
        return str(error)
    first = problems()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def _json(answer: Any, where: str, *, optional: bool = False) -> Any:
    """The answer's JSON; of a page that not every server has, None where it is something else (a web page)."""
    try:
        return answer.json()
    except (ValueError, RecursionError):
        if optional:
            return None
        raise InputError(f"it did not answer with JSON: {_shown(answer.text)}", where=where) from None


def _message(answer: Any) -> str:
    try:
        error = answer.json().get("error")
    except (ValueError, AttributeError):
        error = None  # not OpenAI's shape: show the text itself
    return str(error.get("message") if isinstance(error, dict) else error or answer.text)[:300]


def _retry_after(answer: Any, wait: float) -> float:
    """The seconds that the server asks to wait (a number or a date, RFC 9110 10.2.3), else `wait`."""
    asked = answer.headers.get("Retry-After", "")
    try:
        seconds = float(asked)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(asked) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return wait
    return wait if math.isnan(seconds) else min(max(seconds, 0.0), _LONGEST_WAIT)


def _clipper(model: str, options: EncoderOptions, contract: EmbeddingContract) -> Any:
    """A function that cuts texts to max_length tokens, special ones included, where the last token ends."""
    from transformers import AutoTokenizer

    from raycurate.models.checkpoint import body_folder
    from raycurate.models.fetch import fetch_model

    folder = body_folder(fetch_model(options.model_copy(update={"model": model, "revision": None})))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if not tokenizer.is_fast:
        raise ConfigError("this tokenizer does not tell where tokens end", where=f"engine_kwargs.tokenizer={model}")
    if contract.max_length >= _UNKNOWN_LENGTH:
        raise ConfigError("how long a text may be is not known", where="engine_kwargs.tokenizer", fix="Set max_length")

    def clip(texts: list[str]) -> list[str]:
        found = tokenizer(texts, truncation=True, max_length=contract.max_length, return_offsets_mapping=True)
        ends = [max(end for _, end in spans) for spans in found["offset_mapping"]]
        cut = [bool(encoding.overflowing) for encoding in found.encodings]
        return [t[:end] if was else t for t, end, was in zip(texts, ends, cut, strict=True)]

    return clip
