"""What a model to be trained consists of, from its config.json alone: parameters, and the activations that it keeps.

The model is built by its own stock class of tensors that have a shape and no memory (torch's meta device; fake
tensors of the CPU where autocast must act), and run forwards. So the counts are those of the model that will be
trained, of whatever family (grouped queries, gated MLPs, norms in float32, adapters), and not those of a formula for
one of them; neither its weights nor a GPU are needed.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from raycurate.core.errors import ContractError
from raycurate.models.checkpoint import (
    body_folder,
    dense_folders,
    read_config,
    separate_folders,
)
from raycurate.models.loading import stock_model
from raycurate.training.model.backbones import (
    attends_both_ways,
    layers_of,
    leaves,
    make_bidirectional,
    set_dropout,
)
from raycurate.training.model.lora import add_adapters
from raycurate.training.model.options import LoraOptions, ModelOptions

_OUTLINE, _ON_CPU, _GROUPED = "outline", "outline_on_cpu", "outline_grouped"
_OUTSIDE = -1


@dataclass(frozen=True)
class Outline:
    """The counts of a bi-encoder, of all its towers together where there are two.

    Attributes:
        parameters, trainable: with adapters, without what the checkpoint has beside them (a language model's head).
        layers: parameters of each repeated layer of one tower. outside: of one tower's embeddings, last norm, heads.
        multiplied: parameters of one tower that every token is multiplied with (the weights of linear layers that the
            vectors depend on, not the embedding table).
        multiplied_trainable: of these, the trainable ones.
        attention_width: heads x head size, summed over one tower's layers.
        dimension: of the vectors.
        towers: 1, or 2 for separate encoders.
    """

    parameters: int
    trainable: int
    layers: tuple[int, ...]
    outside: int
    multiplied: int
    multiplied_trainable: int
    attention_width: int
    dimension: int
    towers: int


@dataclass(frozen=True)
class Activations:
    """Bytes that a forward pass keeps for the backward pass, of one text.

    Attributes:
        outside: kept by what is not a repeated layer.
        layers: by each layer. inputs: the layers' inputs, all that checkpointed layers keep.
        copies: kept once, however many texts: the copies of weights in lower precision that autocast makes.
    """

    outside: int
    layers: tuple[int, ...]
    inputs: tuple[int, ...]
    copies: int

    def kept(self, checkpointed: bool) -> int:
        """Bytes from the forward to the backward pass."""
        return self.outside + sum(self.inputs if checkpointed else self.layers)

    def recomputed(self, checkpointed: bool) -> int:
        """Bytes that come on top in the backward pass: the layer that is being computed again."""
        return max(self.layers, default=0) if checkpointed else 0


class OutlineError(ContractError):
    """The model does not run without memory, so nothing is known of it before it is loaded."""


class ModelOutline:
    """A checkpoint's transformer and heads without memory.

    Args:
        folder: a Hugging Face or sentence-transformers model; weights and tokenizer need not be there.
        lora: as in training; None trains all.

    Raises:
        InputError: no config.json. ConfigError: adapters for layers that are not there.
        ContractError: transformers does not know the model, or it has no repeated layers.
        OutlineError: it does not run without memory.
    """

    def __init__(self, folder: str, options: ModelOptions, lora: LoraOptions | None = None) -> None:
        self.options = options
        separate = separate_folders(folder)
        towers = 2 if separate or options.separate_encoders else 1
        folder = separate.get("document", folder)
        with torch.device("meta"):
            self.body = _body(folder, options)
            heads = _heads(folder)
            if options.dropout is not None:
                set_dropout(self.body, options.dropout)
            with _attending_as(self.body, _OUTLINE):
                used = leaves(self._states(1, 8))
            for parameter in self.body.parameters():
                parameter.requires_grad_(id(parameter) in used)
            width, layers = _attention_width(self.body), layers_of(self.body)
            if lora is not None:
                heads.requires_grad_(False)
                self.body = add_adapters(self.body, lora, base=folder)
        self.counts = _counted(self.body, heads, layers, used, towers=towers, width=width)
        self._fake = FakeTensorMode()
        _put_on_cpu(self.body, self._fake)

    def activations(self, length: int, *, autocast: bool = False, cuda: bool = True) -> Activations:
        """What a text of `length` tokens keeps in training, computed in the precision of `options.dtype`.

        Attention itself keeps queries, keys, values, its result and a float32 number a head and token, as the fused
        kernels do (Dao et al. 2022, FlashAttention, arXiv:2205.14135); `eager` keeps the length x length matrices, and
        so does SDPA with dropout on a CPU, which has no kernel for it: three float32 ones a head; `unpadded` does not.
        With padded batches keys and values of grouped
        heads are kept once a head, and the mask once a layer, as SDPA gets them there.
        For a BERT layer in half precision with dropout this is the 34 x length x width bytes of Korthikanti et al.
        2022 (Reducing Activation Recomputation in Large Transformer Models, arXiv:2205.05198, equation 2 without the
        attention matrices), and 2 more where torch keeps a dropout mask as numbers and not as bytes.

        Args:
            autocast: float32 parameters under autocast to bfloat16.
            cuda: whether it runs on a GPU.
        """
        one, two = (self._recorded(texts, length, autocast, cuda) for texts in (1, 2))
        each = {place: two.kept[place] - one.kept[place] for place in two.kept}
        numbers = range(len(one.inputs))
        return Activations(
            outside=each.get(_OUTSIDE, 0),
            layers=tuple(each.get(number, 0) for number in numbers),
            inputs=tuple(one.inputs[number] for number in numbers),
            copies=one.kept.total() - sum(each.values()),
        )

    def _recorded(self, texts: int, length: int, autocast: bool, cuda: bool) -> _Ledger:
        eager = self.options.attention == "eager"
        grouped = self.options.attention in ("unpadded", "flash_attention_2")
        padded = _OUTLINE if cuda else _ON_CPU
        training = self.body.training
        self.body.train()
        ledger = _Ledger(self.body)
        with (
            _attending_as(self.body, "eager" if eager else _GROUPED if grouped else padded),
            torch.autocast("cpu", torch.bfloat16, enabled=autocast),
            self._fake,
            ledger.open(),
        ):
            states = self._states(texts, length)
        del states
        self.body.train(training)
        return ledger

    def _states(self, texts: int, length: int) -> Tensor:
        ids_BT = torch.zeros((texts, length), dtype=torch.int64)
        try:
            states: Tensor = self.body(input_ids=ids_BT)[0]
        except RuntimeError as error:  # kernels that want values, as those of mixtures of experts
            raise OutlineError(f"{type(self.body).__name__} does not run without memory ({error})") from error
        return states


def _counted(
    body: nn.Module, heads: nn.Module, layers: list[nn.Module], used: set[int], *, towers: int, width: int
) -> Outline:
    every = [*body.parameters(), *heads.parameters()]
    whole = sum(p.numel() for p in every)
    each = tuple(sum(p.numel() for p in layer.parameters()) for layer in layers)
    last = [m for m in heads.modules() if isinstance(m, nn.Linear)]
    linear = [m.weight for m in body.modules() if isinstance(m, nn.Linear)]
    # adapters freeze the weights that they stand beside, which are multiplied with all the same
    reached = [*(w for w in linear if w.requires_grad or id(w) in used), *(m.weight for m in last)]
    config: Any = body.config
    text = config.get_text_config()
    return Outline(
        parameters=whole * towers,
        trainable=sum(p.numel() for p in every if p.requires_grad) * towers,
        layers=each,
        outside=whole - sum(each),
        multiplied=sum(w.numel() for w in reached),
        multiplied_trainable=sum(w.numel() for w in reached if w.requires_grad),
        attention_width=width,
        dimension=last[-1].out_features if last else text.hidden_size,
        towers=towers,
    )


def _body(folder: str, options: ModelOptions) -> nn.Module:
    inner = body_folder(folder)
    try:
        stock = stock_model(inner)
        body: nn.Module = stock.auto.from_config(stock.config, dtype=getattr(torch, options.dtype))
    except (ValueError, ImportError) as error:
        raise ContractError(f"transformers cannot build it ({error})", where=inner) from error
    body.config.use_cache = False  # type: ignore[union-attr]
    if attends_both_ways(folder, options):
        make_bidirectional(body)
    return body


def _put_on_cpu(module: nn.Module, fake: FakeTensorMode) -> None:
    """Parameters and buffers from the meta device to fake ones of the CPU, where autocast acts; tied ones stay tied."""
    made: dict[int, Any] = {}
    for part in module.modules():
        for held in (part._parameters, part._buffers):
            for name, tensor in held.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    with fake:
                        empty = torch.empty(tensor.shape, dtype=tensor.dtype)
                    kind = isinstance(tensor, nn.Parameter)
                    made[id(tensor)] = nn.Parameter(empty, requires_grad=tensor.requires_grad) if kind else empty
                held[name] = made[id(tensor)]


def _heads(folder: str) -> nn.Sequential:
    """The Dense layers after pooling, which are kept in float32."""
    layers = []
    for path in dense_folders(folder):
        config = read_config(path)
        layers.append(nn.Linear(config["in_features"], config["out_features"], bias=config.get("bias", True)))
    return nn.Sequential(*layers)


def _attention_width(body: nn.Module) -> int:
    """Heads x head size, summed over the layers."""
    config: Any = body.config
    text = config.get_text_config()
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return len(layers_of(body)) * text.num_attention_heads * size


@contextmanager
def _attending_as(body: Any, name: str) -> Iterator[None]:
    """The model with another attention function inside the block."""
    from transformers import AttentionInterface

    AttentionInterface.register(_OUTLINE, _attention)
    AttentionInterface.register(_ON_CPU, functools.partial(_attention, cuda=False))
    AttentionInterface.register(_GROUPED, _grouped_attention)
    before = body.config._attn_implementation
    body.set_attn_implementation(name)
    try:
        yield
    finally:
        body.set_attn_implementation(before)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, cuda: bool = True, **kwargs: Any
) -> Any:
    """As transformers' SDPA with padding: grouped keys and values are repeated, and the mask becomes numbers."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    bias = query.new_empty((len(query), 1, query.shape[2], query.shape[2]))
    kept = [bias]
    if kwargs.get("dropout") and not cuda:  # the weights, the mask as numbers, and the weights that are left
        texts, heads, length = query.shape[:3]
        kept.append(query.new_empty((texts, 3 * heads, length, length), dtype=torch.float32))
    return _Fused.apply(query, key, value, kept), None


def _grouped_attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **kwargs: Any) -> Any:
    """As attention without padding does it, which computes what dropout would keep twice (unpadded.py)."""
    return _Fused.apply(query, key, value, []), None


class _Fused(torch.autograd.Function):
    """What a fused attention kernel keeps, without its arithmetic: [B, heads, T, d] -> [B, T, heads, d]."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, others: list[Tensor]) -> Tensor:
        out = torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format)
        sums = query.new_empty(query.shape[:3], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, *others, out, sums)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise NotImplementedError("an outline has no backward pass")


class _Ledger:
    """Adds up what autograd saves during a forward pass, by layer, each memory once and no parameter.

    kept: bytes by number of layer, _OUTSIDE for all else. inputs: bytes of each layer's first input.
    """

    def __init__(self, body: nn.Module) -> None:
        self.body = body
        self.kept: Counter[int] = Counter()
        self.inputs: dict[int, int] = {}
        self._seen = {_memory(tensor) for tensor in body.parameters()}
        self._here = _OUTSIDE
        self._held: list[Tensor] = []  # memory that is given back could be seen again under the same address

    @contextmanager
    def open(self) -> Iterator[None]:
        hooks = []
        for number, layer in enumerate(layers_of(self.body)):
            hooks.append(layer.register_forward_pre_hook(lambda _, given, n=number: self._enter(n, given)))
            hooks.append(layer.register_forward_hook(lambda *_: self._leave()))
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._save, lambda tensor: tensor):
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def _enter(self, number: int, given: tuple[Any, ...]) -> None:
        self._here = number
        self.inputs[number] = given[0].numel() * given[0].element_size()

    def _leave(self) -> None:
        self._here = _OUTSIDE

    def _save(self, tensor: Tensor) -> Tensor:
        memory = _memory(tensor)
        if memory not in self._seen:
            self._seen.add(memory)
            self._held.append(tensor)
            self.kept[self._here] += tensor.untyped_storage().nbytes()
        return tensor


def _memory(tensor: Tensor) -> int:
    """What views of the same memory have in common; fake tensors have no address."""
    return tensor.untyped_storage()._cdata
