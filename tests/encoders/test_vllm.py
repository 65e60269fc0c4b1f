"""vLLM's real engine against transformers in float32. Needs vLLM (CPU or CUDA build): pytest -m vllm.

Each engine runs in a process of its own: vLLM keeps the device's memory until its process ends.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from raycurate.core.errors import ContractError, MissingDependencyError
from raycurate.encoders.base import encode, load_encoder
from raycurate.models.options import EncoderOptions
from tests.conftest import SHARED_DATA
from tests.encoders.parity import least_cosine, texts
from tests.encoders.tiny import TEXTS, save_llama
from tests.processes import PATIENCE_S

HERE = importlib.util.find_spec("vllm") is not None
needs_vllm = pytest.mark.skipif(not HERE, reason="vLLM is not installed in this environment")

CHILD = """
import json, sys, threading, time
import numpy as np
from raycurate.encoders.base import load_encoder
from raycurate.models.options import EncoderOptions

if __name__ == "__main__":
    job = json.loads(sys.stdin.read())
    encoder = load_encoder(EncoderOptions(**job["options"]), threads=2)
    chunks = [job["texts"][i::2] for i in range(2)]
    prepared = [encoder.prepare(chunks[0])]
    later = threading.Thread(target=lambda: prepared.append(encoder.prepare(chunks[1])))
    later.start()  # the next chunk's tokens, while the engine runs this one
    started = time.monotonic()
    first = encoder.run(prepared[0])
    later.join()
    second = encoder.run(prepared[1])
    seconds = time.monotonic() - started
    tokens = sum(len(p["prompt_token_ids"]) for chunk in prepared for p in chunk)
    rows = [None] * len(job["texts"])
    rows[0::2], rows[1::2] = list(first), list(second)
    np.savez(job["out"], *rows)
    print(json.dumps({"tokens": tokens, "seconds": seconds, "contract": encoder.contract.to_json()}))
    sys.stdout.flush()
    encoder.close()
"""


def run_vllm(tmp_path: Path, inputs: list[str], **options) -> tuple[list[np.ndarray], dict]:
    """Vectors, and what the process said; judged by its output, for vLLM may abort at exit after success."""
    (tmp_path / "child.py").write_text(CHILD)
    job = {"options": {"engine": "vllm", **options}, "texts": inputs, "out": str(tmp_path / "rows.npz")}
    done = subprocess.run(
        [sys.executable, str(tmp_path / "child.py")],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"tokens"')]
    assert lines, done.stderr[-3000:]
    with np.load(tmp_path / "rows.npz") as saved:
        return [saved[f"arr_{i}"] for i in range(len(inputs))], json.loads(lines[0])


@needs_vllm
@pytest.mark.vllm
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parity_on_real_text(minilm, tmp_path, dtype):
    inputs = texts(SHARED_DATA)
    got, said = run_vllm(tmp_path, inputs, model=minilm, dtype=dtype)
    reference = load_encoder(EncoderOptions(model=minilm, engine="transformers", dtype="float32", device="cpu"))
    cosine = least_cosine(np.stack(got), encode(reference, inputs))
    print(f"vllm {dtype}: cosine {cosine:.6f}, {said['tokens'] / said['seconds']:.0f} tokens/s")
    assert cosine >= 0.999
    theirs = type(reference.contract).from_json(said["contract"])
    reference.contract.require_same(theirs, here="transformers", there="vllm")
    assert (theirs.engine, theirs.dtype) == ("vllm", dtype)


@needs_vllm
@pytest.mark.vllm
@pytest.mark.parametrize(
    ("build", "pooling"),
    [({"causal": False}, "mean"), ({"model_type": "llama_bidirec"}, "mean"), ({}, "last"), ({}, "weighted_mean"),
     ({"causal": False}, "multi_vector")],
    ids=["bidirectional-mean", "llama_bidirec-mean", "causal-last", "causal-weighted", "bidirectional-multi"],
)  # fmt: skip
def test_decoders_attend_and_pool_as_the_contract_says(tmp_path, build, pooling):
    folder = save_llama(tmp_path / "model", **build)
    got, _ = run_vllm(tmp_path, TEXTS, model=folder, pooling=pooling, dtype="float32", normalize=True)
    reference = load_encoder(
        EncoderOptions(
            model=folder, engine="transformers", dtype="float32", device="cpu", pooling=pooling, normalize=True
        )
    )
    for mine, expected in zip(got, encode(reference, TEXTS), strict=True):
        assert mine.shape == expected.shape
        assert least_cosine(np.atleast_2d(mine), np.atleast_2d(expected)) >= 0.9999


@pytest.mark.skipif(HERE, reason="vLLM is installed here")
def test_without_vllm_the_error_says_which_extra_brings_it(minilm):
    with pytest.raises(MissingDependencyError, match=r"pip install 'raycurate\[vllm\]'"):
        load_encoder(EncoderOptions(model=minilm, engine="vllm"))


@needs_vllm
@pytest.mark.vllm
def test_dense_heads_are_refused(tmp_path):
    folder = Path(save_llama(tmp_path / "model"))
    names = ("models.Transformer", "models.Pooling", "models.Dense")
    modules = [{"type": f"sentence_transformers.{n}", "path": p} for n, p in zip(names, ("", "1", "2"), strict=True)]
    (folder / "modules.json").write_text(json.dumps(modules))
    for name, config in (("1", {"pooling_mode": "mean"}), ("2", {"in_features": 128, "out_features": 8})):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config))
    with pytest.raises(ContractError, match="Dense layers after pooling are not for engine vllm"):
        load_encoder(EncoderOptions(model=str(folder), engine="vllm"))
