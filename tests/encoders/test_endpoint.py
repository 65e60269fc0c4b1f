"""The endpoint engine against a real server on 127.0.0.1 that answers out of order, fails, and lies."""

import numpy as np
import pytest

from raycurate.core.errors import ConfigError, ContractError, InputError
from raycurate.encoders.base import encode, load_encoder
from raycurate.encoders.options import EncoderOptions
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
