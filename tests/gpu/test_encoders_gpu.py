"""Engines on a CUDA device in low precision against transformers in float32 on the CPU."""

import pytest

from raycurate.encoders.base import encode, load_encoder
from raycurate.models.options import EncoderOptions
from tests.conftest import SHARED_DATA
from tests.encoders.parity import least_cosine, texts
from tests.encoders.tiny import TEXTS, save_llama

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize(
    ("engine", "kwargs"),
    [("transformers", {}), ("transformers", {"attention": "padded"}), ("sentence-transformers", {})],
    ids=["auto", "padded", "sentence-transformers"],
)
def test_parity_with_float32_on_the_cpu(minilm, engine, kwargs, dtype):
    inputs = texts(SHARED_DATA)
    reference = load_encoder(EncoderOptions(model=minilm, engine="transformers", dtype="float32", device="cpu"))
    encoder = load_encoder(
        EncoderOptions(model=minilm, engine=engine, dtype=dtype, device="cuda", engine_kwargs=kwargs)
    )
    assert least_cosine(encode(encoder, inputs), encode(reference, inputs)) >= 0.999


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("pooling", ["mean", "cls", "last", "weighted_mean"])
def test_decoders_attend_the_same_way_on_both_devices(tmp_path, causal, pooling):
    folder = save_llama(tmp_path / "m", causal=causal)
    options = {"model": folder, "engine": "transformers", "pooling": pooling}
    expected = encode(load_encoder(EncoderOptions(**options, dtype="float32", device="cpu")), TEXTS)
    for dtype in ("float32", "float16"):
        got = encode(load_encoder(EncoderOptions(**options, dtype=dtype, device="cuda")), TEXTS)
        assert least_cosine(got, expected) >= 0.999
