"""Where a model runs and in which precision: the automatic choices of the torch engines, in one place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from raycurate.core.errors import CapacityError
from raycurate.encoders.options import EncoderOptions

# Tokens in a micro-batch. CPU: what fits the cache next to the weights (measured, jobs/benchmarks); CUDA: what
# fills a large card.
_BATCH_TOKENS = {"cuda": 65536, "cpu-packed-bfloat16": 2048, "cpu": 1024}


def choose_device(options: EncoderOptions) -> torch.device:
    """The device; the one that Ray gave this process when there are several.

    Raises:
        CapacityError: CUDA was asked for and there is none.
    """
    if options.device == "cuda" and not torch.cuda.is_available():
        raise CapacityError(
            "device=cuda, but torch sees no CUDA device here", fix="Give the actor a GPU, or device=auto"
        )
    if options.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def choose_dtype(options: EncoderOptions, device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies it (CUDA from compute capability 8; CPUs with AMX or AVX-512 BF16)."""
    if options.dtype != "auto":
        return getattr(torch, options.dtype)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    has = torch.cpu.get_capabilities()
    return torch.bfloat16 if has.get("amx_bf16") or has.get("avx512_bf16") or has.get("bf16") else torch.float32


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def choose_batch_tokens(options: EncoderOptions, device: torch.device, dtype: torch.dtype, *, packed: bool) -> int:
    if options.batch_tokens != "auto":
        return int(options.batch_tokens)
    if device.type == "cuda":
        return _BATCH_TOKENS["cuda"]
    return _BATCH_TOKENS["cpu-packed-bfloat16" if packed and dtype == torch.bfloat16 else "cpu"]


def bfloat16_is_faster(device: torch.device) -> bool:
    """Whether a first pass in bfloat16 pays: the device is a CPU that multiplies it in units of its own.

    On CUDA the scores are read several times, and the product is not what takes the time.
    """
    if device.type != "cpu":
        return False
    has = torch.cpu.get_capabilities()
    return bool(has.get("amx_bf16") or has.get("avx512_bf16"))


@contextmanager
def matmul_precision(wanted: str) -> Iterator[None]:
    """torch's float32 matmul precision inside the block; what it was before, after."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(wanted)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def true_float32() -> Iterator[None]:
    """No TF32, and no bfloat16 partial sums of bfloat16 products: the error bounds are for sums in float32."""
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_bf16_reduced_precision_reduction
    matmul.allow_bf16_reduced_precision_reduction = False
    try:
        with matmul_precision("highest"):
            yield
    finally:
        matmul.allow_bf16_reduced_precision_reduction = before
