"""A checkpoint is read as sentence-transformers reads it: every vector of random checkpoints is compared with the
library's own, text by text without padding, or the reader refuses the checkpoint by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from raycurate.core.errors import ContractError
from raycurate.encoders.base import contract_for, encode, load_encoder
from raycurate.models.contract import EmbeddingContract
from raycurate.models.options import EncoderOptions
from tests.encoders.checkpoints import BODIES, POSITIONS, TEXTS, Checkpoint, Maker

SEEDS = 40


@pytest.fixture(scope="module")
def bodies(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("bodies")


def from_the_library(made: Checkpoint, contract: EmbeddingContract, role: str) -> list[np.ndarray]:
    """The library's vectors [tokens or 1, dimension] of each text, one text a batch."""
    import sentence_transformers

    kind = sentence_transformers.MultiVectorEncoder if made.many else sentence_transformers.SentenceTransformer
    library = kind(made.path, device="cpu")
    positions = POSITIONS.get(made.body, 10**9)
    at_call = library[0].processing_kwargs.get("text", {}).get("max_length")
    assert contract.max_length == min(at_call or library.max_seq_length, positions)
    library.max_seq_length = min(library.max_seq_length, positions)  # past the table it raises IndexError
    others = [made.prompts[name] for name in ("passage", "corpus") if made.prompts.get(name)]
    if role == "document" and "document" not in made.prompts and others:
        # Its documentation says that encode_document takes the first of document, passage, corpus; it always finds
        # an empty `document`.
        found = library.encode(TEXTS, prompt=others[0], batch_size=1)
    else:
        found = (library.encode_query if role == "query" else library.encode_document)(TEXTS, batch_size=1)
    return [np.atleast_2d(np.asarray(row, np.float32)) for row in found]


def ours(path: str, role: str, **more) -> list[np.ndarray]:
    options = {"engine": "transformers", "dtype": "float32", "device": "cpu", **more}
    encoder = load_encoder(EncoderOptions(model=path, role=role, **options))
    return [np.atleast_2d(row) for row in encode(encoder, TEXTS)]


def least_cosine(one: list[np.ndarray], other: list[np.ndarray]) -> float:
    assert [row.shape for row in one] == [row.shape for row in other]
    a, b = (np.concatenate(rows).astype(np.float64) for rows in (one, other))
    norms = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    assert np.allclose(*norms, rtol=1e-3)  # normalised or not, as the library does
    return float(((a * b).sum(1) / (norms[0] * norms[1]).clip(1e-12)).min())


def check(seed: int, bodies: Path, folder: Path, *, engines: bool) -> None:
    made = Maker(bodies, seed).make(folder / "m")
    if made.refused:
        with pytest.raises(ContractError, match="|".join(made.refused)):
            pytest.fail(f"{seed}, {made}: {EmbeddingContract.from_checkpoint(made.path)}")
        return
    try:
        contract = EmbeddingContract.from_checkpoint(made.path)
    except ContractError as error:
        assert "no file says how long a text may be" in str(error), (seed, made)
        assert made.body == "t5"  # the only one here whose config.json does not say it
        return
    for role in ("query", "document"):
        expected = from_the_library(made, contract, role)
        runs = [{}]
        if engines:
            runs += [{"engine_kwargs": {"attention": "padded"}, "padding_side": side} for side in ("right", "left")]
            runs += [{"engine": "sentence-transformers", "padding_side": side} for side in ("auto", "left")]
        for run in runs:
            try:
                got = ours(made.path, role, **run)
            except ContractError as error:
                assert run.get("engine") == "sentence-transformers"
                assert "Use engine=transformers" in str(error)
                continue
            assert least_cosine(got, expected) >= 0.9999, (seed, made, role, run)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_every_vector_is_the_librarys(seed, bodies, tmp_path):
    check(seed, bodies, tmp_path, engines=seed % 10 == 0)


@pytest.mark.slow
@pytest.mark.parametrize("hundred", range(1, 3))
def test_more_of_them_with_every_engine_and_padding(hundred, bodies, tmp_path):
    for seed in range(100 * hundred, 100 * hundred + 100):
        check(seed, bodies, tmp_path / str(seed), engines=True)


def test_the_generator_makes_what_it_should(tmp_path, bodies):
    """Each kind of model, and both outcomes, are among the seeds of this file."""
    made = [Maker(bodies, seed).make(tmp_path / str(seed)) for seed in range(SEEDS)]
    assert {m.body for m in made} == set(BODIES)
    assert 4 <= sum(bool(m.refused) for m in made) <= SEEDS // 2
    assert sum(m.many for m in made if not m.refused) >= 3


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("engine", ["transformers", "sentence-transformers"])
def test_padding_on_the_left_gives_the_vectors_of_the_text_alone_or_is_refused(body, engine, bodies):
    if not (bodies / body).is_dir():
        BODIES[body](bodies / body)
    options = EncoderOptions(
        model=str(bodies / body), engine=engine, padding_side="left", dtype="float32", device="cpu", pooling="mean",
        max_length=30, engine_kwargs={"attention": "padded"} if engine == "transformers" else {},
    )  # fmt: skip
    if engine == "sentence-transformers" and body in ("bert", "distilbert", "gpt2"):
        with pytest.raises(ContractError, match="counts padding on the left"):
            contract_for(options, options.model)
        return
    encoder = load_encoder(options)
    assert encoder.contract.padding_side == "left"
    alone = [encode(encoder, [text])[0] for text in TEXTS]
    assert np.abs(np.stack(alone) - encode(encoder, TEXTS)).max() < 1e-4
