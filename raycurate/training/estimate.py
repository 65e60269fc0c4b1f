"""Whether a training fits, before anything is loaded: parameters, memory of a rank, steps, arithmetic.

    estimate = estimate_training(folder, ModelOptions(), TrainOptions(), Setting(ranks=8, memory=80 * 2**30))
    print(estimate.report()); estimate.require_fit()

The memory of a rank is the sum of what it holds at its fullest moment, the backward pass of a micro-step:

* weights, gradients and AdamW's two moments: 16 bytes a trained parameter in float32, 4 a frozen one, divided by the
  ranks that share a copy (Rajbhandari et al. 2020, ZeRO, arXiv:1910.02054, section 3.1, without its float16 copies:
  the weights in lower precision are made layer by layer, and counted as `gathered`);
* gathered: what FSDP2 has whole at that moment: the parameters outside the layers, two layers (the next one is fetched
  ahead), and one layer's gradients in the arithmetic's precision and in float32; or all copies that autocast keeps;
* whole gradients, where micro-steps of a sharded model synchronise on the last only;
* activations, counted on the model itself (outline.py), every text as long as it may be, so this is an upper bound;
* what CUDA, NCCL and cuBLAS take: 1 GiB is assumed.

Gradients of the embeddings are whole after the last layer's backward, when the activations are gone; where that is the
fuller moment, it counts. Fragmentation of the allocator is not counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from raycurate.core.errors import CapacityError, ConfigError
from raycurate.training import optimise
from raycurate.training.batches.order import BatchSplit, split_batch
from raycurate.training.flops import GIB, Flops, training_flops
from raycurate.training.model.meta_model import Activations, ModelOutline, Outline
from raycurate.training.model.options import LoraOptions, ModelOptions
from raycurate.training.model.parallelize import choose_strategy
from raycurate.training.options import TrainOptions

_CUDA_ITSELF = GIB
_MANY = 1_000_000  # questions, where they have not been counted
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Setting:
    """Where and on what a training is to run.

    Attributes:
        ranks: workers. memory: bytes of one, None where that is not known: everything then fits.
        cuda: whether they are GPUs.
        questions: of the training data; None where they have not been counted.
        n_passages, query_length, passage_length: passages a question; tokens of the longest text.
    """

    ranks: int = 1
    memory: int | None = None
    cuda: bool = False
    questions: int | None = None
    n_passages: int = 5
    query_length: int = 512
    passage_length: int = 512


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank at its fullest moment; see the module's own text."""

    weights: int
    gradients: int
    optimiser: int
    gathered: int
    activations: int
    libraries: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimiser + self.gathered + self.activations + self.libraries

    def __str__(self) -> str:
        parts = ("weights", "gradients", "optimiser", "gathered", "activations", "libraries")
        shown = [f"{name} {_gib(getattr(self, name))}" for name in parts if getattr(self, name) >= self.total / 200]
        return f"{_gib(self.total)} GiB = {' + '.join(shown)}"


@dataclass(frozen=True)
class Estimate:
    """A training as it would be.

    Attributes:
        strategy: "single", "ddp", "fsdp2" or "hsdp", `auto` decided.
        global_batch: questions a step. micro_batch: questions whose activations a rank has at once.
        steps: in all, None where the questions are not counted.
    """

    outline: Outline
    model: ModelOptions
    options: TrainOptions
    setting: Setting
    strategy: str
    global_batch: int
    micro_batch: int
    memory: Memory
    steps: int | None
    fixes: tuple[str, ...] = ()

    @property
    def flops(self) -> Flops:
        """Arithmetic of one tower's tokens."""
        counts = self.outline
        return training_flops(counts.multiplied, counts.multiplied_trainable, counts.attention_width)

    @property
    def worker(self) -> str:
        """What a rank runs on, in words."""
        return "GPU" if self.setting.cuda else "worker"

    @property
    def fits(self) -> bool:
        """Whether a rank's memory is enough, as far as it is known."""
        return self.setting.memory is None or self.memory.total <= self.setting.memory

    def report(self) -> str:
        """Parameters, memory, batch, steps and arithmetic, a line each."""
        counts, setting, options = self.outline, self.setting, self.options
        trained = "all trained" if counts.trainable == counts.parameters else f"{counts.trainable:,} trained"
        what = self.worker
        workers = f"{setting.ranks} {what}{'s' if setting.ranks > 1 else ''}"
        of = f", of {_gib(setting.memory)} GiB" if setting.memory is not None else ""
        checkpointing = "on" if self.model.gradient_checkpointing else "off"
        lines = [
            f"parameters   {counts.parameters:,} ({trained}), vectors of {counts.dimension}",
            f"per {what:<8} {self.memory}{of}",
            f"strategy     {self.strategy} over {workers}, {options.precision}, gradient checkpointing {checkpointing}",
            f"batch        {self.global_batch} questions of {1 + setting.n_passages} texts a step, "
            f"{self.micro_batch} at once on a {what}",
        ]
        if self.steps is not None:
            lines.append(f"steps        {self.steps:,}, {options.num_epochs} epochs of {setting.questions:,} questions")
        tokens = setting.query_length + setting.n_passages * setting.passage_length
        pairs = setting.query_length**2 + setting.n_passages * setting.passage_length**2
        token, question = self.flops.per_token / 1e9, self.flops.of(tokens, pairs) / 1e12
        lines.append(f"arithmetic   {token:.2f} GFLOP a token, at most {question:.2f} TFLOP a question")
        return "\n".join(lines)

    def require_fit(self) -> None:
        """Refuse what cannot fit.

        Raises:
            CapacityError: the memory is not enough; it says the numbers, and what would fit.
        """
        if self.fits:
            return
        has = f"{_gib(self.setting.memory)} GiB"
        raise CapacityError(
            f"with texts of full length a {self.worker} would need {self.memory}, and has {has}",
            where=f"{self.strategy} over {self.setting.ranks} {self.worker}{'s' if self.setting.ranks > 1 else ''}",
            fix="It would fit with " + ", or ".join(self.fixes) if self.fixes else "Take a smaller model, or lora={}",
        )


def estimate_training(
    folder: str,
    model: ModelOptions,
    options: TrainOptions,
    setting: Setting,
    *,
    lora: LoraOptions | None = None,
) -> Estimate:
    """What a training would take.

    Args:
        folder: of the model; config.json is enough.

    Raises:
        ConfigError: batch sizes that do not divide.
        ContractError, InputError: the model cannot be trained.
    """
    planner = _Planner(folder, model, lora)
    found = planner.estimate(model, options.settled(cuda=setting.cuda), setting)
    if found.fits:
        return found
    return replace(found, fixes=tuple(planner.remedies(found)))


class _Planner:
    """Estimates for one checkpoint under different options; the model is outlined once for each way of computing."""

    def __init__(self, folder: str, model: ModelOptions, lora: LoraOptions | None) -> None:
        self._folder, self._lora = folder, lora
        self._outlines: dict[ModelOptions, ModelOutline] = {}
        self._activations: dict[tuple[ModelOptions, bool, bool, int], Activations] = {}
        self.counts = self._outline(model).counts

    def estimate(self, model: ModelOptions, options: TrainOptions, setting: Setting) -> Estimate:
        ranks = setting.ranks
        size = optimise.global_batch(options, questions=setting.questions or _MANY, ranks=ranks)
        local = options.local_batch_size if options.loss == "listed" else None
        split = split_batch(size, ranks=ranks, local_batch=local, uneven=options.elastic)
        micro = min(split.local, options.local_batch_size or split.local)
        strategy = self._strategy(model, options, setting)
        steps = None
        if setting.questions is not None:
            whole = setting.questions // size if options.drop_last else -(-setting.questions // size)
            steps = min(whole * options.num_epochs, options.max_steps or whole * options.num_epochs)
        return Estimate(
            outline=self.counts,
            model=model,
            options=options,
            setting=setting,
            strategy=strategy,
            global_batch=size,
            micro_batch=micro,
            memory=self._memory(model, options, setting, strategy, (split, micro)),
            steps=steps,
        )

    def remedies(self, found: Estimate) -> Iterator[str]:
        """Changes each of which would make the training fit by itself, with what a rank would then need."""
        shards_found = False
        for text, changed in _changes(found):
            if shards_found and changed.setting.ranks > found.setting.ranks:
                continue
            try:
                needed = self.estimate(changed.model, changed.options, changed.setting)
            except ConfigError:  # a batch that does not divide so is no way out
                continue
            if needed.fits:
                shards_found = shards_found or changed.setting.ranks > found.setting.ranks
                yield f"{text} ({_gib(needed.memory.total)} GiB)"

    def _strategy(self, model: ModelOptions, options: TrainOptions, setting: Setting) -> str:
        if setting.ranks == 1:
            return "single"
        copied = _BYTES[model.dtype] * (self.counts.parameters + 3 * self.counts.trainable)
        return choose_strategy(copied, options, setting.ranks, setting.memory)[0]

    def _memory(
        self, model: ModelOptions, options: TrainOptions, setting: Setting, strategy: str, cut: tuple[BatchSplit, int]
    ) -> Memory:
        counts, size = self.counts, _BYTES[model.dtype]
        split, micro = cut
        sharded = strategy in ("fsdp2", "hsdp")
        chunked = options.loss != "listed" and (options.chunk_tokens is not None or micro < split.local)
        activations, copies = self._kept(model, options, setting, micro, autocast=not sharded)
        gathered, shards = copies, 1
        gradients = size * counts.trainable
        if sharded:
            shards = setting.ranks if strategy == "fsdp2" else options.shard_size or setting.ranks
            gathered = self._gathered(options, _BYTES[options.precision], activations)
            if (chunked or split.accumulation > 1) and options.gradient_sync == "last":
                gathered += _BYTES["float32"] * counts.trainable
        held = 0 if options.cpu_offload and sharded else 1
        return Memory(
            weights=held * size * counts.parameters // shards,
            gradients=held * gradients // shards,
            optimiser=held * 2 * size * counts.trainable // shards,
            gathered=gathered,
            activations=activations,
            libraries=_CUDA_ITSELF if setting.cuda else 0,
        )

    def _gathered(self, options: TrainOptions, size: int, activations: int) -> int:
        """What FSDP2 holds whole, in backward through the layers or after it, whichever is more on top of the rest."""
        counts = self.counts
        largest = max(counts.layers)
        share = counts.trainable / counts.parameters
        root = size * counts.outside * counts.towers
        layers = size * 2 * largest if options.reshard else size * sum(counts.layers) * counts.towers
        within = root + layers + int(share * (size + _BYTES["float32"]) * largest)
        after = root + int(share * (size + _BYTES["float32"]) * counts.outside * counts.towers)
        return max(within, after - activations)

    def _kept(
        self, model: ModelOptions, options: TrainOptions, setting: Setting, micro: int, *, autocast: bool
    ) -> tuple[int, int]:
        """Bytes of activations of a micro-step's texts, and of the copies of weights that autocast keeps."""
        checkpointed = model.gradient_checkpointing
        autocast = autocast and options.precision == "bfloat16" and model.dtype == "float32"
        computed = model if autocast else model.model_copy(update={"dtype": options.precision})
        query = self._measured(computed, autocast, setting.cuda, setting.query_length)
        passage = self._measured(computed, autocast, setting.cuda, setting.passage_length)
        copies = passage.copies * self.counts.towers
        if options.chunk_tokens and options.loss != "listed":
            texts = max(1, options.chunk_tokens // setting.passage_length)
            return texts * (passage.kept(checkpointed) + passage.recomputed(checkpointed)), copies
        each = query.kept(checkpointed) + setting.n_passages * passage.kept(checkpointed)
        return micro * (each + setting.n_passages * passage.recomputed(checkpointed)), copies

    def _measured(self, model: ModelOptions, autocast: bool, cuda: bool, length: int) -> Activations:
        key = (_shape(model), autocast, cuda, length)
        if key not in self._activations:
            self._activations[key] = self._outline(model).activations(length, autocast=autocast, cuda=cuda)
        return self._activations[key]

    def _outline(self, model: ModelOptions) -> ModelOutline:
        shape = _shape(model)
        if shape not in self._outlines:
            self._outlines[shape] = ModelOutline(self._folder, shape, self._lora)
        return self._outlines[shape]


def _changes(found: Estimate) -> Iterator[tuple[str, Estimate]]:
    """What could be tried to save memory, the cheapest first: its option, and the estimate with only that changed."""
    model, options, setting = found.model, found.options, found.setting
    if not model.gradient_checkpointing:
        checkpointed = model.model_copy(update={"gradient_checkpointing": True})
        yield "gradient_checkpointing=true", replace(found, model=checkpointed)
    if options.precision == "float32" and setting.cuda:
        yield "precision=bfloat16", replace(found, options=options.model_copy(update={"precision": "bfloat16"}))
    if found.micro_batch > 1:
        yield "local_batch_size=1", replace(found, options=options.model_copy(update={"local_batch_size": 1}))
    if setting.passage_length >= 256:
        half = setting.passage_length // 2
        yield f"passage_max_length={half}", replace(found, setting=replace(setting, passage_length=half))
    sharded = options.model_copy(update={"strategy": "fsdp2"})
    if found.strategy in ("ddp", "hsdp"):
        yield "strategy=fsdp2", replace(found, options=sharded)
    for ranks in (setting.ranks * 2**doubled for doubled in range(1, 7)):
        text = f"strategy=fsdp2 over {ranks} {found.worker}s"
        yield text, replace(found, options=sharded, setting=replace(setting, ranks=ranks))


def _shape(model: ModelOptions) -> ModelOptions:
    """The options that an outline depends on."""
    return ModelOptions(
        bidirectional=model.bidirectional,
        separate_encoders=model.separate_encoders,
        dtype=model.dtype,
        attention=model.attention,
        dropout=model.dropout,
    )


def _gib(size: int | None) -> str:
    return f"{(size or 0) / GIB:.2f}" if (size or 0) < 10 * GIB else f"{(size or 0) / GIB:.1f}"
