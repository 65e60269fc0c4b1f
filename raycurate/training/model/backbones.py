"""A checkpoint's transformer, made ready to be trained: loaded, made bidirectional, checkpointed, compiled.

Loading itself is models/loading.py's, so that what is trained is what the encoders run. Only stock
transformers classes are trained, since what comes out must load without remote code.

Two facts are established by a probe of two tokens and not by the family's name: that a bidirectional model's first
token sees the last one, and which parameters the last hidden states depend on. The others (BERT's pooler, a vision
tower) are frozen: an optimiser would decay them, and DistributedDataParallel would wait for their gradients for ever.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from raycurate.core.errors import CapacityError, ConfigError, ContractError, require
from raycurate.models.checkpoint import attention_of, body_folder, named_pooling, read_config
from raycurate.models.contract import POOLING_ALIASES, EmbeddingContract
from raycurate.models.loading import empty_model, load_model
from raycurate.models.packed import PackedUnsupportedError
from raycurate.training.model import unpadded
from raycurate.training.model.options import ModelOptions


def training_contract(folder: str, options: ModelOptions) -> EmbeddingContract:
    """The contract of the model to be trained: the checkpoint's own, as `options` change it.

    Its prompts are under "query" and "document" whatever names the checkpoint has for these roles. Where neither
    the options nor the checkpoint name a pooling, a decoder made bidirectional is pooled by mean.

    Raises:
        ConfigError: see `attends_both_ways`, or Matryoshka dimensions exceed the vector.
        ContractError, InputError: the checkpoint cannot be reproduced.
    """
    both_ways = attends_both_ways(folder, options)
    pooling = options.pooling
    if pooling is None and both_ways and named_pooling(folder) is None:
        pooling = "mean"
    contract = EmbeddingContract.from_checkpoint(
        folder,
        pooling=pooling,
        normalize=options.normalize,
        max_length=options.max_length,
        document_template=options.document_template,
        prompts=options.prompts,
    )
    dims = contract.matryoshka_dims if options.matryoshka_dims is None else tuple(options.matryoshka_dims)
    if any(not 0 < dim <= contract.dimension for dim in dims):
        raise ConfigError(f"Matryoshka dimensions {list(dims)} of vectors of {contract.dimension}", where=folder)
    others = {k: v for k, v in contract.prompts.items() if k not in ("query", "document", "passage", "corpus")}
    roles = {role: contract.prompt_for(role) for role in ("query", "document")}
    # model_validate: model_copy would keep the empty prompts that the contract's own check takes out
    changed = {
        "prompts": others | roles,
        "matryoshka_dims": dims,
        "attention": "bidirectional" if both_ways else "causal",
    }
    return EmbeddingContract.model_validate(contract.model_dump() | changed)


def attends_both_ways(folder: str, options: ModelOptions) -> bool:
    """Whether the model of a folder is trained to let each token see those after it.

    Where the options leave it open, an encoder does, and so does a decoder that is no embedding model yet (as in NeMo
    AutoModel; BehnamGhader et al. 2024, LLM2Vec, arXiv:2404.05961, for what it gains). A decoder whose own files name
    the pooling that it is trained with stays causal: its vectors were made so.

    Raises:
        ConfigError: a bidirectional model is to become causal; a decoder is pooled by its last token, which is made
            for causal attention, and nothing says which of the two is wanted.
    """
    if attention_of(read_config(body_folder(folder))) == "bidirectional":
        if options.bidirectional is False:
            raise ConfigError("bidirectional=false, but this model attends both ways", where=folder, fix="Leave it out")
        return True
    if options.bidirectional is not None:
        return options.bidirectional
    own, asked = named_pooling(folder), POOLING_ALIASES.get(options.pooling or "", options.pooling)
    if own is not None and asked in (None, own):
        return False
    if asked == "last":
        raise ConfigError(
            "a decoder pooled by its last token may attend back only, as it was made, or both ways, and nothing says "
            "which",
            where="bidirectional",
            fix="Set bidirectional=false to keep it causal, or bidirectional=true; pooling=mean is bidirectional",
        )
    return True


def describe_attention(folder: str, options: ModelOptions) -> str:
    """How the model will attend, for people; raises as `attends_both_ways`."""
    made_causal = attention_of(read_config(body_folder(folder))) == "causal"
    if attends_both_ways(folder, options):
        both = "both ways, which this decoder did not before; bidirectional=false keeps it causal"
        return both if made_causal else "both ways"
    own = "as this model's own files pool it so" if options.bidirectional is None else "as bidirectional=false says"
    return f"causal, {own}"


def load_body(folder: str, contract: EmbeddingContract, options: ModelOptions) -> nn.Module:
    """The transformer of the checkpoint in `folder`, on the CPU, in evaluation mode, attending as `contract` says.

    Parameters that the last hidden states do not depend on are frozen.

    Raises:
        ConfigError: it cannot run unpadded.
        ContractError: it cannot be loaded so, or its class cannot attend both ways.
        CapacityError, MissingDependencyError: Liger without CUDA or not installed.
    """
    asked = None if options.attention == unpadded.NAME else options.attention
    body = load_model(folder, contract, dtype=getattr(torch, options.dtype), attention=asked, trust_remote_code=False)
    _change(body, contract, options)
    flash = options.attention == "flash_attention_2"  # which runs on CUDA only, and the model is still on the CPU
    if flash:
        body.set_attn_implementation("sdpa")  # type: ignore[operator]
    _probe(body, contract, folder)
    if flash:
        body.set_attn_implementation(options.attention)  # type: ignore[operator]
    if options.attention == unpadded.NAME:
        try:
            longest = options.trained_length or contract.max_length
            unpadded.use(body, causal=contract.attention == "causal", max_length=longest)
        except PackedUnsupportedError as error:
            raise ConfigError(f"this model cannot: {error}", where="attention=unpadded", fix="Use sdpa") from error
    return body


def empty_body(folder: str, contract: EmbeddingContract, options: ModelOptions, *, trained: set[str]) -> nn.Module:
    """As `load_body`, but its parameters have no memory yet, and what needs their values is not checked.

    A body that is to run unpadded runs padded until it has been checked.

    Args:
        trained: names of the parameters that the last hidden states depend on.

    Raises:
        ContractError: it cannot be built so.
        CapacityError, MissingDependencyError: Liger without CUDA or not installed.
    """
    asked = None if options.attention == unpadded.NAME else options.attention
    body = empty_model(folder, contract, dtype=getattr(torch, options.dtype), attention=asked)
    _change(body, contract, options)
    for name, parameter in body.named_parameters():
        parameter.requires_grad_(name in trained)
    return body


def _change(body: nn.Module, contract: EmbeddingContract, options: ModelOptions) -> None:
    """What training changes of a model whether its weights are there or not."""
    if contract.attention == "bidirectional":
        make_bidirectional(body)
    if options.dropout is not None:
        set_dropout(body, options.dropout)
    if options.liger:
        apply_liger(body)


def make_bidirectional(body: nn.Module) -> None:
    """A decoder that attends both ways from now on, and again when its saved config.json is loaded; else no change.

    The config's flag decides the mask (Transformers honours it in every stock decoder); the modules' own flags
    are asked by SDPA and flash attention where no mask is needed.
    """
    config: Any = body.config
    text = config.get_text_config()
    causal = [m for m in body.modules() if getattr(m, "is_causal", False) is True]
    if not causal:
        return
    text.is_causal = False
    for module in causal:
        module.is_causal = False  # type: ignore[assignment]


def _probe(body: nn.Module, contract: EmbeddingContract, folder: str) -> None:
    """Check the direction of attention, and freeze what the hidden states do not depend on."""
    ids_BT = probe_texts(body)
    states_BTH = body(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT))[0]
    if contract.attention == "bidirectional":
        require_both_ways(states_BTH, body, folder)
    used = leaves(states_BTH)
    for parameter in body.parameters():
        parameter.requires_grad_(id(parameter) in used)


def probe_texts(body: nn.Module) -> Tensor:
    """Two texts of two tokens that differ in the second: int64 [2, 2]."""
    config: Any = body.config
    vocabulary = config.get_text_config().vocab_size
    pad = config.get_text_config().pad_token_id
    usable = [i for i in range(min(8, vocabulary)) if i != pad]
    # Special tokens may be rows of zeros or alike; ordinary ones from the middle of the vocabulary are not.
    middle = [i for i in range(vocabulary // 2, min(vocabulary // 2 + 4, vocabulary)) if i != pad] or usable
    return torch.tensor([[middle[0], middle[0]], [middle[0], middle[-1]]])


def require_both_ways(states_BTH: Tensor, body: nn.Module, folder: str) -> None:
    """Raises ContractError where these states of `probe_texts` show that a first token does not see the second."""
    first, second = states_BTH.detach()[:, 0].float()
    if not (first - second).abs().max() > 0:
        raise ContractError(
            f"{type(body).__name__} does not let a token see those after it",
            where=folder,
            fix="Train it as it is (bidirectional=false), or use another model",
        )


def leaves(result: Tensor) -> set[int]:
    """Ids of the parameters that `result` is computed from; the graph is walked, no gradient is computed."""
    found: set[int] = set()
    seen: set[Any] = set()
    waiting: list[Any] = [result.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        waiting += [following for following, _ in node.next_functions]
    return found


def set_dropout(body: nn.Module, probability: float) -> None:
    """Every dropout of the model at `probability`; config.json keeps the checkpoint's own."""
    for module in body.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability
        for name in ("attention_dropout", "dropout_prob"):  # where attention takes it as a number
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, probability)


def layers_of(body: nn.Module) -> list[nn.Module]:
    """The transformer's repeated layers, first to last: what is sharded, checkpointed and compiled one by one.

    Raises:
        ContractError: the model has no list of layers.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    lists = [list(m) for m in body.modules() if isinstance(m, nn.ModuleList) and len(m)]
    stacks = [m for m in lists if all(isinstance(layer, GradientCheckpointingLayer) for layer in m)] or lists
    if not stacks:
        raise ContractError(f"{type(body).__name__} has no list of layers")
    return max(stacks, key=lambda stack: sum(p.numel() for layer in stack for p in layer.parameters()))


def checkpoint_layers(body: nn.Module) -> None:
    """Keep no activations inside the layers; backward computes them again, with the same dropout.

    torch's own non-reentrant checkpointing inside each layer's forward, and so inside the hooks that FSDP2 puts
    around a layer, which therefore gathers its parameters once a pass and not once more for the recomputation.
    """
    from torch.utils.checkpoint import checkpoint

    for layer in layers_of(body):
        layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)


def compile_layers(body: nn.Module) -> None:
    """torch.compile each layer in place: equal layers share one compilation, names of parameters stay."""
    for layer in layers_of(body):
        layer.compile()


def apply_liger(body: nn.Module) -> None:
    """Replace norms, rotary embeddings and gated MLPs by Liger's fused kernels, where it has them for this family.

    Raises:
        CapacityError: there is no CUDA device.
        MissingDependencyError: liger-kernel is not installed.
    """
    if not torch.cuda.is_available():
        raise CapacityError("Liger's kernels run on CUDA, and there is none here", where="liger", fix="Set liger=false")
    kernels = require("liger_kernel.transformers", "liger", purpose="liger=true")
    kernels._apply_liger_kernel_to_instance(model=body)


def takes_positions(body: nn.Module) -> bool:
    """Whether its forward accepts position_ids."""
    return "position_ids" in inspect.signature(body.forward).parameters
