"""How fast a training is: questions and tokens a second, memory, and the fraction of what the devices could do."""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

import torch
from torch import nn

from raycurate.training.batches.batches import Batch
from raycurate.training.flops import Flops, peak_flops, training_flops
from raycurate.training.model.bi_encoder import BiEncoder


class Speedometer:
    """Counts what has been done since it was last read; time spent while paused (validation, checkpoints) is left out.

    Args:
        flops: of the model; None leaves the fraction of peak out.
        peak: operations a second of one device; None likewise.
    """

    def __init__(self, device: torch.device, flops: Flops | None, peak: float | None) -> None:
        self.device = device
        self._flops, self._peak = flops, peak
        self._operations = 0.0
        self.reset()

    @classmethod
    def of(cls, encoder: BiEncoder, device: torch.device, precision: str) -> Speedometer:
        """For this model; asked before it is sharded."""
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        peak = peak_flops(name, precision)
        return cls(device, flops_of(encoder) if peak else None, peak)

    def reset(self) -> None:
        """Begin anew: now, with nothing done."""
        self._since = time.perf_counter()
        self._questions = self._tokens = 0
        self._operations = 0.0

    def skip(self, seconds: float) -> None:
        """Leave out so many seconds."""
        self._since += seconds

    def see(self, batch: Batch) -> None:
        """Count the operations of a micro-step, which is still on the CPU (asking a GPU would make it wait)."""
        if self._flops is None:
            return
        for texts in (batch.queries, batch.passages):
            lengths = texts.attention_mask.sum(1).double()
            self._operations += self._flops.of(float(lengths.sum()), float((lengths**2).sum()))

    def done(self, questions: int, tokens: int) -> None:
        """Count a step, over all ranks."""
        self._questions += questions
        self._tokens += tokens

    def read(self) -> dict[str, float]:
        """`samples_per_s` and `tokens_per_s` over all ranks, `memory_gib` at most so far, and `peak_fraction` of this
        rank where it can be said; then begin anew."""
        seconds = max(time.perf_counter() - self._since, 1e-9)
        found = {
            "samples_per_s": self._questions / seconds,
            "tokens_per_s": self._tokens / seconds,
            "memory_gib": most_memory(self.device) / 2**30,
        }
        if self._flops is not None and self._peak:
            found["peak_fraction"] = self._operations / seconds / self._peak
        self.reset()
        return found


def most_memory(device: torch.device) -> int:
    """Bytes: the most that tensors have taken of a GPU, or this process of the machine's memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def flops_of(encoder: BiEncoder) -> Flops:
    """Operations of training a bi-encoder; its towers, if two, are of one size, and a text passes one of them."""
    tower = encoder.tower("document")
    weights = [m.weight for m in tower.modules() if isinstance(m, nn.Linear)]
    config: Any = tower.body.config
    text = config.get_text_config()
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    attention = text.num_hidden_layers * text.num_attention_heads * width
    trained = sum(w.numel() for w in weights if w.requires_grad)
    return training_flops(sum(w.numel() for w in weights), trained, attention)
