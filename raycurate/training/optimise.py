"""From options to numbers: batch sizes, steps, learning rates, parameter groups, clipped gradients.

The learning rate is a function of the step and nothing else, so there is no scheduler whose state could be lost.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from raycurate.core.errors import ConfigError
from raycurate.core.observe import get_logger
from raycurate.training.options import TrainOptions

_FEW_QUESTIONS = 2000
_BATCH = 128
_BETAS = (0.9, 0.999)

_log = get_logger(__name__)


def global_batch(options: TrainOptions, *, questions: int, ranks: int) -> int:
    """Questions a step. `auto` is max(16, min(64, n // 8)) for n questions under 2,000 and else 128, brought to the
    nearest multiple of local x ranks from below (or one such multiple), and no more than there are questions.

    Raises:
        ConfigError: `auto`, and there are not as many questions as ranks x local_batch_size.
    """
    if options.global_batch_size != "auto":
        return options.global_batch_size
    wanted = max(16, min(64, questions // 8)) if questions < _FEW_QUESTIONS else _BATCH
    unit = ranks * ((options.local_batch_size if options.loss == "listed" else None) or 1)
    if questions < unit:
        raise ConfigError(
            f"{questions} questions cannot fill one micro-step of {unit} ({ranks} ranks)",
            where="global_batch_size=auto",
            fix="Use fewer ranks or a smaller local_batch_size",
        )
    chosen = max(min(wanted, questions) // unit, 1) * unit
    _log.info("global_batch_size=auto: %s for %s questions on %s ranks", chosen, questions, ranks)
    return chosen


def warmup(options: TrainOptions, steps: int) -> int:
    """Steps of warm-up in a training of `steps`; what would last to its end is cut to a tenth, with a message."""
    if options.warmup_steps is not None:
        asked, said = options.warmup_steps, f"warmup_steps={options.warmup_steps}"
    else:
        ratio = 0.1 if options.warmup_ratio is None else options.warmup_ratio
        asked, said = round(ratio * steps), f"warmup_ratio={ratio}"
    if asked < steps or not asked:
        return asked
    corrected = steps // 10
    _log.warning("%s is as long as the training (%s steps): warming up for %s", said, steps, corrected)
    return corrected


def learning_rate(options: TrainOptions, step: int, *, steps: int, warmup_steps: int) -> float:
    """Of the `step`-th step (from 0) of `steps`.

    It rises in equal parts so that the last step of the warm-up has the full rate, and then falls along a line, or half
    a cosine (Loshchilov & Hutter 2017, arXiv:1608.03983), that would reach `min_learning_rate` one step after the end.
    """
    peak, floor = options.learning_rate, min(options.min_learning_rate, options.learning_rate)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if options.schedule == "constant":
        return peak
    done = min((step - warmup_steps) / max(steps - warmup_steps, 1), 1.0)
    left = 1 - done if options.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return floor + (peak - floor) * left


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """AdamW's two groups: what decays, and what does not: biases and all else of one dimension, and norms' parameters.

    Decay pulls towards zero, which is no neutral place for a scale or an offset. Norms are told by their type, as
    their parameters are named "weight" like others.

    Raises:
        ConfigError: nothing is trainable.
    """
    norms = {id(p) for m in model.modules() if is_norm(m) for p in m.parameters(recurse=False)}
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise ConfigError("the model has no trainable parameter")
    plain = [p for p in trained if p.ndim < 2 or id(p) in norms]
    decayed = [p for p in trained if p.ndim >= 2 and id(p) not in norms]
    groups: list[dict[str, object]] = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalisation: torch's own, or a class that calls itself one, as LlamaRMSNorm does."""
    types = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)
    return isinstance(module, types) or type(module).__name__.lower().endswith("norm")


def make_optimizer(model: nn.Module, options: TrainOptions) -> torch.optim.AdamW:
    """AdamW over the trainable parameters as they lie now (after sharding), fused where torch has the kernel."""
    groups = parameter_groups(model, options.weight_decay)
    kinds = {p.device.type for p in model.parameters() if p.requires_grad}
    fused = kinds <= {"cpu", "cuda"}
    return torch.optim.AdamW(groups, lr=options.learning_rate, betas=_BETAS, fused=fused)


def clip_gradients(parameters: Iterable[Tensor], most: float | None) -> float:
    """The length of all gradients together, which are scaled to `most` if longer. Sharded gradients count whole."""
    graded = [p for p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in graded if p.grad is not None], foreach=None)
    if hasattr(norm, "full_tensor"):
        norm = norm.full_tensor()
    if most is not None and torch.isfinite(norm):
        nn.utils.clip_grads_with_norm_(graded, most, norm)
    return float(norm)
