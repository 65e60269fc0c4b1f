"""How a model is spread over ranks: applied to it from outside, once, between loading and the optimiser.

The model knows nothing of ranks. Three ways, each over Gloo and NCCL alike: a copy on every rank (DDP), parameters
sharded over all ranks (FSDP2's fully_shard: each layer, then what is around them), and sharded within groups of
ranks with a copy a group (HSDP). Parameters, sums of gradients and the optimiser's state stay float32 in all of them:
at the learning rates of fine-tuning (1e-6 to 1e-5) a bfloat16 weight, whose neighbours are 1/256 of it away, would not
move at all.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from raycurate.core.errors import CapacityError, ConfigError
from raycurate.core.observe import get_logger
from raycurate.training.collectives import world
from raycurate.training.model import streamed
from raycurate.training.model.backbones import layers_of
from raycurate.training.model.bi_encoder import BiEncoder, MustBeLoadedWholeError, empty_bi_encoder, load_bi_encoder
from raycurate.training.model.options import LoraOptions, ModelOptions
from raycurate.training.options import TrainOptions

SHARE_OF_MEMORY = 0.5
"""Of a device, what weights, gradients and optimiser of a copied model may take; the rest is for activations, gathered
layers and the libraries."""

_SHARDED = ("fsdp2", "hsdp")
_log = get_logger(__name__)


@dataclass(frozen=True)
class Parallel:
    """A model spread over the ranks.

    Attributes:
        model: what is called, so that the hooks of DDP and FSDP2 act.
        encoder: the bi-encoder inside, the same object as was given.
        strategy: "single", "ddp", "fsdp2" or "hsdp". reason: a sentence on why.
        autocast: precision of the arithmetic where parameters do not come in it by themselves.
    """

    model: nn.Module
    encoder: BiEncoder
    strategy: str
    reason: str
    autocast: torch.dtype | None
    device: torch.device

    def arithmetic(self) -> AbstractContextManager[Any]:
        """The context that forward passes run in."""
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.autocast)


def load_to_spread(
    folder: str, model: ModelOptions, options: TrainOptions, device: torch.device, *, lora: LoraOptions | None = None
) -> BiEncoder:
    """A bi-encoder for `parallelize`: one that will be sharded without memory for its weights, of which each rank
    then reads its own part (streamed.py); any other, and one whose files need converting, whole.

    Raises:
        ConfigError, ContractError, InputError, CapacityError, MissingDependencyError: it cannot be trained so.
    """
    refuse_what_cannot_be(options)
    if world()[1] == 1 or options.strategy == "ddp":
        return load_bi_encoder(folder, model, lora=lora)
    try:
        encoder = empty_bi_encoder(folder, model, lora=lora)
        strategy, _ = choose_strategy(training_bytes(encoder), options, world()[1], device_bytes(device))
        if strategy in _SHARDED:
            streamed.require_streamable(encoder)
            return encoder
    except MustBeLoadedWholeError as error:
        _log.info("every rank loads the whole model: %s", error)
    return load_bi_encoder(folder, model, lora=lora)


def parallelize(encoder: BiEncoder, options: TrainOptions, device: torch.device) -> Parallel:
    """Spread `encoder`, which is on the CPU or has no memory yet, over the ranks of torch.distributed.

    Raises:
        ConfigError: what is asked for cannot be.
        ContractError: a model without memory cannot be filled, or not attend as its contract says.
        CapacityError: the ranks do not make a mesh.
    """
    refuse_what_cannot_be(options)
    strategy, reason = choose_strategy(training_bytes(encoder), options, world()[1], device_bytes(device))
    bfloat16 = torch.bfloat16 if options.precision == "bfloat16" else None
    if strategy in _SHARDED:
        _shard(encoder, options, device, strategy)
        if streamed.is_empty(encoder):
            streamed.fill(encoder, device, held_on=torch.device("cpu") if options.cpu_offload else device)
        return Parallel(encoder, encoder, strategy, reason, None, device)
    encoder.to(device)
    if strategy == "single":
        return Parallel(encoder, encoder, strategy, reason, bfloat16, device)
    copies = nn.parallel.DistributedDataParallel(
        encoder,
        device_ids=None if device.type == "cpu" else [device],
        forward_sync_buffers=False,  # GradCache runs forwards between backwards, see gradcache.py
        gradient_as_bucket_view=True,
    )
    return Parallel(copies, encoder, strategy, reason, bfloat16, device)


def refuse_what_cannot_be(options: TrainOptions) -> None:
    """Raises ConfigError for the ways of spreading that a bi-encoder's training here does not have."""
    if options.tp_size > 1:
        raise ConfigError(
            f"tp_size={options.tp_size}: a layer is not split over ranks, since each rank has questions of its own "
            "(its batches, the negatives it gives the others, its dropout), and ranks that share a layer would need "
            "the same",
            where="tensor parallelism",
            fix="Set tp_size=1; FSDP2 shards the same memory over the same ranks (strategy=fsdp2)",
        )
    if options.cp_size > 1:
        raise ConfigError(
            f"cp_size={options.cp_size}: a text is not split over ranks, since pooling and attention in both "
            "directions need all of its tokens in each layer, and texts of training are a few hundred tokens long",
            where="context parallelism",
            fix="Set cp_size=1; for memory use gradient_checkpointing=true or a smaller local_batch_size",
        )
    if options.sequence_parallel:
        raise ConfigError(
            "sequence_parallel=true splits activations along the text between the ranks of tensor parallelism, "
            "which is not used",
            fix="Leave it out; for memory use gradient_checkpointing=true",
        )


def training_bytes(encoder: nn.Module) -> int:
    """Bytes of parameters, gradients and AdamW's two moments of a whole copy."""
    weights = sum(p.numel() * p.element_size() for p in encoder.parameters())
    trained = sum(p.numel() * p.element_size() for p in encoder.parameters() if p.requires_grad)
    return weights + 3 * trained


def device_bytes(device: torch.device) -> int:
    """Memory that a rank may fill: the accelerator's, or its share of this machine's (all ranks that run here)."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // _ranks_here()


def _ranks_here() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", world()[1]))


def choose_strategy(needed: int, options: TrainOptions, ranks: int, memory: int | None) -> tuple[str, str]:
    """(strategy, a sentence that says why); `auto` copies a model whose training fits in half of a device's memory.

    Args:
        needed: bytes of a whole copy in training (`training_bytes`).
        memory: bytes of one rank's device; None where that is not known: everything then fits.
    """
    if options.strategy != "auto":
        if ranks == 1 and not (options.cpu_offload and dist.is_initialized()):
            return "single", f"strategy={options.strategy}: one rank has nothing to share"
        return options.strategy, f"strategy={options.strategy}"
    if options.cpu_offload:
        return "fsdp2", "strategy=auto: fsdp2, which cpu_offload needs"
    if ranks == 1:
        return "single", "strategy=auto: one rank has nothing to share"
    if memory is None:
        return "ddp", "strategy=auto: ddp, as the memory of a rank is not known"
    chosen = "ddp" if needed <= SHARE_OF_MEMORY * memory else "fsdp2"
    verb = "fit" if chosen == "ddp" else "do not fit"
    return chosen, (
        f"strategy=auto: {chosen}, as weights, gradients and optimiser ({needed / 2**30:.1f} GiB) {verb} in half of a "
        f"rank's memory ({memory / 2**30:.1f} GiB)"
    )


def _shard(encoder: BiEncoder, options: TrainOptions, device: torch.device, strategy: str) -> None:
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

    if not dist.is_initialized():
        raise ConfigError(
            "sharding needs ranks that know each other (torch.distributed is not initialised)", where=strategy
        )
    precision = torch.bfloat16 if options.precision == "bfloat16" else torch.float32
    offload = CPUOffloadPolicy(pin_memory=device.type == "cuda") if options.cpu_offload else OffloadPolicy()
    if options.cpu_offload:
        _check_offload(device)
    how: dict[str, Any] = {
        "mesh": _mesh(options, device, strategy),
        "mp_policy": MixedPrecisionPolicy(param_dtype=precision, reduce_dtype=torch.float32),
        "offload_policy": offload,
    }
    towers: Any = encoder.towers.values()
    for tower in towers:
        for layer in layers_of(tower.body):
            fully_shard(layer, reshard_after_forward=options.reshard, **how)
    # The root's own parameters (embeddings, heads) are needed at once again in backward.
    fully_shard(encoder, reshard_after_forward=False, **how)  # and brings buffers to the device


def _mesh(options: TrainOptions, device: torch.device, strategy: str) -> Any:
    from torch.distributed.device_mesh import init_device_mesh

    ranks = world()[1]
    if strategy == "fsdp2":
        return init_device_mesh(device.type, (ranks,), mesh_dim_names=("shard",))
    size = options.shard_size or _ranks_here()
    if ranks % size:
        raise CapacityError(
            f"{ranks} ranks are not groups of {size}", where="strategy=hsdp", fix="Set shard_size to a divisor"
        )
    return init_device_mesh(device.type, (ranks // size, size), mesh_dim_names=("replicate", "shard"))


def _check_offload(device: torch.device) -> None:
    """Offloaded gradients lie on the CPU, and their length is summed over the ranks there."""
    if device.type == "cpu" or world()[1] == 1:
        return
    backends = str(dist.get_backend_config())
    if "cpu:" not in backends:
        raise ConfigError(
            f"cpu_offload needs a process group that also works on the CPU, and this one is {backends}",
            fix="Initialise it with backend 'cpu:gloo,cuda:nccl'",
        )
