"""The endpoint engine against a real server on 127.0.0.1 that answers out of order, fails, and lies."""

import base64
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest

from raycurate.core.errors import ConfigError, ContractError, InputError
from raycurate.encoders.base import encode, load_encoder
from raycurate.encoders.endpoint import _retry_after
from raycurate.models.options import EncoderOptions
from tests.conftest import SHARED_DATA
from tests.encoders.parity import least_cosine, texts
from tests.encoders.server import serving


@pytest.fixture(scope="module")
def reference(minilm):
    return load_encoder(EncoderOptions(model=minilm, engine="transformers", dtype="float32", device="cpu"))


@pytest.fixture
def server(reference):
    with serving(lambda inputs: encode(reference, inputs)) as running:
        yield running


def client(server, *, batch_size: int = 512, engine_kwargs: dict | None = None, **options):
    kwargs = {"retries": 4, "timeout_s": 30, **(engine_kwargs or {})}
    return load_encoder(EncoderOptions(model=server.url, engine_kwargs=kwargs, batch_size=batch_size, **options))


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_parity_though_answers_come_reversed_and_requests_fail(server, reference, encoding):
    inputs = texts(SHARED_DATA)
    encoder = client(server, batch_size=4, engine_kwargs={"encoding_format": encoding, "concurrency": 3})
    server.failures = [(500, {}), (429, {"Retry-After": "0.1"}), (503, {})]
    assert least_cosine(encode(encoder, inputs), encode(reference, inputs)) >= 0.99999
    assert server.failures == []
    assert max(len(r["input"]) for r in server.requests) <= 4
    assert encode(encoder, []).shape == (0, 384)
    encoder.close()


def test_a_refusal_is_not_tried_again_and_shows_the_servers_words(server):
    encoder = client(server)
    before = len(server.requests)
    server.failures = [(400, {})]
    with pytest.raises(InputError, match="HTTP 400: made to fail"):
        encode(encoder, ["a"])
    assert len(server.requests) == before + 1
    server.failures = [(500, {"Retry-After": "0"})] * 9
    with pytest.raises(InputError, match="failed 5 times, the last with: HTTP 500"):
        encode(encoder, ["a"])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda items: items[1:], r"for 3 texts it gave the indices \[1, 2\]"),
        (lambda items: [items[0], items[0], items[2]], r"the indices \[0, 0, 2\]"),
        (lambda items: [{**i, "embedding": i["embedding"][:8]} for i in items], "8 dimensions after giving 384"),
        (lambda items: [{**items[0], "embedding": [1.0]}, *items[1:]], r"vectors of \[1, 384\] dimensions"),
        (lambda items: [{**i, "embedding": [None] * 384} for i in items], "the vector of 'a' is not finite"),
    ],
    ids=["missing", "doubled", "narrower", "mixed", "nan"],
)
def test_answers_that_lie_are_found_out(server, spoil, message):
    encoder = client(server)
    server.spoil = spoil
    with pytest.raises(InputError, match=message):
        encode(encoder, ["a", "b", "c"])


VECTOR = [0.5] * 384
MALFORMED = {
    "null": None,
    "number": 3,
    "text": "ok",
    "list": [VECTOR],
    "error with status 200": {"error": {"message": "overloaded"}},
    "data null": {"data": None},
    "data a mapping": {"data": {"0": VECTOR}},
    "items are vectors": {"data": [VECTOR]},
    "items are null": {"data": [None]},
    "index missing": {"data": [{"embedding": VECTOR}]},
    "index null": {"data": [{"index": None, "embedding": VECTOR}]},
    "index a text": {"data": [{"index": "0", "embedding": VECTOR}]},
    "index a bool": {"data": [{"index": False, "embedding": VECTOR}]},
    "index a list": {"data": [{"index": [0], "embedding": VECTOR}]},
    "embedding missing": {"data": [{"index": 0}]},
    "embedding null": {"data": [{"index": 0, "embedding": None}]},
    "embedding a number": {"data": [{"index": 0, "embedding": 0.5}]},
    "embedding empty": {"data": [{"index": 0, "embedding": []}]},
    "embedding of texts": {"data": [{"index": 0, "embedding": ["0.5"] * 384}]},
    "embedding of lists": {"data": [{"index": 0, "embedding": [VECTOR]}]},
    "embedding of mappings": {"data": [{"index": 0, "embedding": [{"v": 0.5}] * 384}]},
    "embedding no base64": {"data": [{"index": 0, "embedding": "not base64!"}]},
    "embedding of odd bytes": {"data": [{"index": 0, "embedding": "AAAA"}]},
    "embedding a mapping": {"data": [{"index": 0, "embedding": {"values": VECTOR}}]},
    "numbers without end": {"data": [{"index": 0, "embedding": [10**400] * 384}]},
}
NOT_JSON = {
    "empty": b"",
    "a page": b"<html>Sign in</html>",
    "cut off": b'{"data": [{"index": 0, "embe',
    "bytes": b"\xff\xfe\x00",
}
NOT_JSON["deep"] = b"[" * 100_000


@pytest.mark.parametrize("body", [*(json.dumps(v).encode() for v in MALFORMED.values()), *NOT_JSON.values()],
                         ids=[*MALFORMED, *NOT_JSON])  # fmt: skip
@pytest.mark.parametrize("path", ["/embeddings", "/models", "/metadata"])
def test_a_malformed_answer_is_one_sentence_that_names_the_server(server, path, body):
    encoder = client(server, engine_kwargs={"retries": 0})
    server.raw[path] = body
    if path == "/embeddings":
        with pytest.raises(InputError, match=re.escape(server.url)) as raised:
            encode(encoder, ["a"])
        assert "\n" not in str(raised.value)
        assert len(str(raised.value)) < 600
        return
    try:  # a server without a contract may answer anything there; what comes through is a whole encoder
        assert client(server, engine_kwargs={"retries": 0}).contract.dimension == 384
    except InputError as error:
        assert f"{server.url}{path}" in str(error)


def test_a_contract_that_cannot_be_read_is_named(server, reference):
    server.metadata = {"contract": reference.contract.model_dump(mode="json") | {"pooling": "sideways"}}
    with pytest.raises(InputError, match=r"/metadata.*contract.*pooling"):
        client(server)


def test_a_server_that_ends_within_its_answer_is_asked_again(server):
    encoder = client(server, engine_kwargs={"retries": 1})
    server.cut = 1
    assert encode(encoder, ["a"]).shape == (1, 384)
    server.cut = 5
    with pytest.raises(InputError, match="failed 2 times"):
        encode(encoder, ["a"])


@pytest.mark.parametrize(
    "url", ["http://", "http:///v1", "http://127.0.0.1:99999/v1", "http://[::1/v1", "http://user@/v1"]
)
def test_a_url_that_is_none_is_refused(url):
    with pytest.raises(ConfigError, match="no URL"):
        load_encoder(EncoderOptions(model=url, engine="endpoint"))


def test_what_is_secret_in_a_url_is_sent_and_written_nowhere(server):
    url = server.url.replace("http://", "http://me:s3cret@") + "?api-version=1&key=s3cret2"
    encoder = load_encoder(EncoderOptions(model=url, engine="endpoint"))
    assert encode(encoder, ["a"]).shape == (1, 384)
    assert server.keys[-1] == "Basic " + base64.b64encode(b"me:s3cret").decode()
    assert server.paths[-1] == "/v1/embeddings?api-version=1&key=s3cret2"
    assert "s3cret" not in encoder.contract.to_json()
    server.failures = [(400, {})]
    with pytest.raises(InputError) as raised:
        encode(encoder, ["a"])
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize("asked", ["0", "0.0", "-5", "Wed, 21 Oct 2015 07:28:00 GMT"])
def test_a_wait_is_read_as_seconds_or_as_a_date(asked):
    assert _retry_after(SimpleNamespace(headers={"Retry-After": asked}), 7.0) == 0


@pytest.mark.parametrize("asked", ["", "soon", "nan", "²", "1.2.3"])
def test_a_wait_that_is_none_leaves_ours(asked):
    assert _retry_after(SimpleNamespace(headers={"Retry-After": asked}), 7.0) == 7


def test_the_key_is_taken_from_the_named_variable_and_kept_out_of_options(server, monkeypatch):
    monkeypatch.setenv("EMBED_KEY", "s3cret")
    encoder = client(server, engine_kwargs={"api_key_env": "EMBED_KEY"})
    assert server.keys[-1] == "Bearer s3cret"
    assert "s3cret" not in encoder.contract.to_json()
    with pytest.raises(ConfigError, match="NO_SUCH_KEY is not set"):
        client(server, engine_kwargs={"api_key_env": "NO_SUCH_KEY"})
    with pytest.raises(ConfigError, match="unknown key 'api_key'; did you mean 'api_key_env'"):
        client(server, engine_kwargs={"api_key": "s3cret"})


def test_the_servers_contract_is_the_identity_and_its_prompts_are_applied_once(server, reference):
    contract = reference.contract.model_copy(update={"prompts": {"query": "query: "}})
    server.metadata = {"contract": contract.model_dump(mode="json")}
    encoder = client(server, role="query")
    encoder.contract.require_same(contract, here="the client", there="the server")
    encode(encoder, ["where?"])
    assert server.requests[-1]["input"] == ["where?"]  # the server puts the prompt, asked by input_type
    assert server.requests[-1]["input_type"] == "query"
    encode(client(server, role="query", engine_kwargs={"input_type": False}), ["where?"])
    assert server.requests[-1]["input"] == ["query: where?"]
    assert "input_type" not in server.requests[-1]
    with pytest.raises(ConfigError, match="the server has pooling=mean"):
        client(server, pooling="cls")
    with pytest.raises(ContractError, match="the server gives normalised vectors"):
        client(server, normalize=False)


def test_without_a_contract_identity_is_url_and_name(server):
    encoder = client(server, prefix="passage: ", max_length=256, normalize=True)
    assert encoder.contract.weights == f"endpoint:{server.url}#minilm"
    assert (encoder.contract.dimension, encoder.contract.prompt_for("document")) == (384, "passage: ")
    encode(encoder, ["a"])
    assert server.requests[-1]["input"] == ["passage: a"]
    named = load_encoder(EncoderOptions(model="other", engine="endpoint", engine_kwargs={"url": server.url}))
    assert named.contract.weights.endswith("#other")


def test_over_long_text_is_cut_here_or_there(server, reference, minilm):
    long = "a sentence of seven words, more or less. " * 200
    asked = client(server, engine_kwargs={"truncate": "END"})
    encode(asked, [long])
    assert server.requests[-1]["truncate"] == "END"
    cutting = client(server, max_length=256, engine_kwargs={"tokenizer": minilm})
    got = encode(cutting, [long, "short", ""])
    sent = server.requests[-1]["input"]
    assert len(sent[0]) < len(long) / 3
    assert sent[1:] == ["short", ""]
    assert np.allclose(got, encode(reference, [long, "short", ""]), atol=1e-4)
