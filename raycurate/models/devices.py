"""Where a model runs and in which precision: the automatic choices of the torch engines, in one place."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache

import torch

from raycurate.core.errors import CapacityError
from raycurate.core.observe import get_logger
from raycurate.models.options import EncoderOptions

_log = get_logger(__name__)

# Tokens in a micro-batch. CPU: what fits the cache next to the weights (measured, jobs/benchmarks); CUDA: what
# fills a large card.
_BATCH_TOKENS = {"cuda": 65536, "cpu-packed-bfloat16": 2048, "cpu": 1024}
_WORTH_IT = 1.3  # gain of a bfloat16 product from which a first pass repays the scoring of what it leaves open
_PROBE_S = 0.3


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
    """The precision of the weights: bfloat16 where the hardware multiplies it, else float32 (CUDA: float16).

    One that is asked for and that the CPU only imitates is a warning, with how much slower it is.
    """
    if options.dtype != "auto":
        warn_if_imitated(options.dtype, device, where="dtype")
        return getattr(torch, options.dtype)
    if multiplies_bfloat16(device):
        return torch.bfloat16
    return torch.float16 if device.type == "cuda" else torch.float32


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def choose_batch_tokens(options: EncoderOptions, device: torch.device, dtype: torch.dtype, *, packed: bool) -> int:
    if options.batch_tokens != "auto":
        return int(options.batch_tokens)
    if device.type == "cuda":
        return _BATCH_TOKENS["cuda"]
    return _BATCH_TOKENS["cpu-packed-bfloat16" if packed and dtype == torch.bfloat16 else "cpu"]


def cpu_units() -> frozenset[str]:
    """The CPU's units by torch's names (`avx2`, `avx512_bf16`, `amx_bf16`, ...), but none that the environment hides.

    `ATEN_CPU_CAPABILITY` keeps torch's own kernels, and `ONEDNN_MAX_CPU_ISA` oneDNN's, from units that the CPU has; it
    is chosen then as if the CPU lacked them. With `ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2` a whole command,
    Ray's workers included, runs as on a CPU without AVX-512 and AMX.
    """
    reported = torch.cpu.get_capabilities().items()
    hidden = _hidden(os.environ)
    return frozenset(name for name, there in reported if there is True and not name.startswith(hidden))


def _hidden(environ: Mapping[str, str]) -> tuple[str, ...]:
    """What the names of the units begin with that these variables keep torch from."""
    kernels = environ.get("ATEN_CPU_CAPABILITY", "").lower()
    products = (environ.get("ONEDNN_MAX_CPU_ISA") or environ.get("DNNL_MAX_CPU_ISA") or "ALL").upper()
    wide = ("avx512", "avx10", "amx")
    if kernels == "default" or products in ("SSE41", "AVX"):
        return ("avx2", "avx_", *wide)
    if kernels.startswith("avx2") or products.startswith("AVX2"):
        return wide
    if products in ("AVX512_CORE", "AVX512_CORE_VNNI"):
        return ("avx512_bf16", "avx512_fp16", "avx10", "amx")
    return () if products in ("ALL", "DEFAULT") or "AMX" in products else ("amx",)


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16: CUDA from compute capability 8, CPUs with AMX or AVX-512 BF16, or
    ARM's. Elsewhere it is imitated: a model runs 7 times slower than in float32, and trains 15 times slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and not cpu_units().isdisjoint(("amx_bf16", "avx512_bf16", "bf16"))


def bfloat16_is_faster(device: torch.device) -> bool:
    """Whether a first pass in bfloat16 pays: the device is a CPU that multiplies it, and measured is quicker at it.

    What is decided by this may depend on the hour, so it must not change a result. On CUDA the scores are read several
    times, and the product is not what takes the time.
    """
    return device.type == "cpu" and multiplies_bfloat16(device) and product_gain() > _WORTH_IT


def product_gain(dtype: str = "bfloat16", *, backward: bool = False) -> float:
    """How many times faster the CPU multiplies matrices of `dtype` than of float32, on this process's threads.

    It is measured once a process, in half a second or less.

    Args:
        dtype: "bfloat16" or "float16".
        backward: the two products of a layer's gradients too, which are imitated by other, slower code.
    """
    return _product_gain(dtype, backward, torch.get_num_threads())


@cache
def _product_gain(dtype: str, backward: bool, threads: int) -> float:
    """See `product_gain`; `threads` are those that torch has now."""
    input_ND = torch.rand(128, 384)
    weight_ED = torch.rand(1536, 384)
    gradient_NE = torch.rand(128, 1536)

    def seconds(x_ND: torch.Tensor, w_ED: torch.Tensor, g_NE: torch.Tensor) -> float:
        start = time.perf_counter()
        x_ND @ w_ED.T
        if backward:
            g_NE @ w_ED
            g_NE.T @ x_ND
        return time.perf_counter() - start

    wide = (input_ND, weight_ED, gradient_NE)
    narrow = tuple(each.to(getattr(torch, dtype)) for each in wide)
    with torch.inference_mode(), matmul_precision("highest"):
        seconds(*wide), seconds(*narrow)  # what is set up once
        end = time.perf_counter() + _PROBE_S
        pairs = [(seconds(*wide), seconds(*narrow))]  # by turns, so that other work slows both
        while len(pairs) < 3 or (len(pairs) < 10 and time.perf_counter() < end):
            pairs.append((seconds(*wide), seconds(*narrow)))
    slow, quick = (min(times) for times in zip(*pairs, strict=True))
    return slow / quick


def warn_if_imitated(dtype: str, device: torch.device, *, where: str, backward: bool = False) -> None:
    """Warn when the CPU has no units for this precision and is slower in it than in float32, by how much."""
    if device.type != "cpu" or dtype == "float32" or (dtype == "bfloat16" and multiplies_bfloat16(device)):
        return
    slower = 1 / product_gain(dtype, backward=backward)
    if slower > 1:
        _log.warning(
            "%s=%s: this CPU has no units for it and imitates it, which is %.1f times slower than float32 in a quick "
            "measurement; %s=auto chooses by what the CPU has",
            where, dtype, slower, where,
        )  # fmt: skip


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
