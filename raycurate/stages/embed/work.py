"""Documents -> embeddings, as a resumable Ray Data stream.

    Documents -> Tokenise -> Encode (actor pool) -> Write (staging) ; then finalise

Killed at any point and started again, it goes on from the staged rows; its output is whole when its
manifest is there.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raycurate.core import storage
from raycurate.core.errors import InputError
from raycurate.core.manifest import (
    CONTRACT,
    REJECTS,
    StageKey,
)
from raycurate.core.observe import get_logger
from raycurate.encoders import operators
from raycurate.encoders.embed_options import EmbedConfig
from raycurate.encoders.inspect import settle_dtype
from raycurate.encoders.plan import EmbedPlan, make_plan
from raycurate.encoders.transform import add_operators, fetch_on_every_node
from raycurate.stage import Made, Run
from raycurate.streams.finalise import Finalised, Layout, finalise
from raycurate.streams.staging import (
    RejectCounter,
    StagingSink,
    committed_ref,
    is_complete,
    mark_complete,
    steady_rows_per_second,
)

if TYPE_CHECKING:
    from raycurate.data.documents.documents import Listing
    from raycurate.models.contract import EmbeddingContract

log = get_logger(__name__)


def staging_name(key: StageKey, plan: EmbedPlan) -> str:
    """What staged rows have in common: vectors of one output come from one engine, device and precision.

    What is done about repeated ids is decided over staged rows, so that another decision goes on from the same.
    """
    rows = {name: value for name, value in key.options.items() if name != "repeated_ids"}
    made_by = f"{plan.engine.split(':')[0]}-{plan.device}-{plan.config.dtype}"
    return f"{key.model_copy(update={'options': rows}).fingerprint()}-{made_by}"


@dataclass(frozen=True)
class EmbedInputs:
    """The documents' files, and how the model turns a text into a vector."""

    listing: Listing
    contract: EmbeddingContract

    @property
    def fingerprint(self) -> str:
        return self.listing.fingerprint


def open_inputs(config: EmbedConfig) -> EmbedInputs:
    """List the documents and read the model's contract.

    Raises:
        RaycurateError: input, model or options cannot be used.
    """
    from raycurate.data.documents.documents import list_documents
    from raycurate.data.documents.documents import make_plan as make_read_plan
    from raycurate.encoders.inspect import read_contract

    listing = list_documents(config)
    make_read_plan(config, config.metadata_fields, listing)  # for what it refuses
    return EmbedInputs(listing, read_contract(config))


def plan_run(config: EmbedConfig, inputs: EmbedInputs) -> EmbedPlan:
    """How the run would be laid out; needs a running Ray.

    Raises:
        RaycurateError: options or cluster cannot be used.
    """
    from raycurate.encoders.inspect import weights_bytes
    from raycurate.ray_runtime.cluster import capacity

    room = capacity()
    listing = inputs.listing
    plan = make_plan(config, inputs.contract, room, weights_bytes(config))
    report = plan.check(room)
    log.info("embed: %d files, %.1f MB; %s", len(listing.files), listing.total_bytes / 1e6, plan.describe())
    if listing.unsupported:
        left = ", ".join(f"{n:,} {ext or '(no extension)'}" for ext, n in sorted(listing.unsupported.items()))
        log.info("embed: left alone, of other kinds: %s (file_extensions names what is read)", left)
    if report.waits_for_nodes:
        log.info("embed: %s", report.waits_for_nodes)
    return plan


def embed(config: EmbedConfig, inputs: EmbedInputs, run: Run) -> Made:
    """Embed the documents; see the module."""
    plan = settle_dtype(plan_run(config, inputs))
    staging = run.staging(staging_name(run.key, plan))
    started = time.perf_counter()
    attempt = _stream(plan, inputs.listing, staging)
    streamed = time.perf_counter()
    finished = finalise(staging, config.output, _layout(config, run.key), known=attempt.rows)
    if not finished.rows:
        _nothing_embedded(config, finished)
    attempt.finalise_seconds = time.perf_counter() - streamed
    attempt.wall_seconds = time.perf_counter() - started
    made = _made(plan, inputs.listing, finished, attempt)
    assert made.contract is not None
    storage.write_text(storage.join(config.output, CONTRACT), _pretty(made.contract))
    return made


@dataclass
class _Attempt:
    """What this attempt did and took; earlier attempts' rows are in the staging files."""

    rows: int = 0
    resumed_rows: int = 0
    stream_seconds: float = 0.0
    write_seconds: float = 0.0
    steady_rate: float = 0.0
    finalise_seconds: float = 0.0
    wall_seconds: float = 0.0


def describe(plan: EmbedPlan, inputs: EmbedInputs) -> list[str]:
    """What a run would do on the cluster that is connected: input, engine, actors, whether it waits for nodes."""
    from raycurate.ray_runtime.cluster import capacity

    contract, waits = plan.contract, plan.check(capacity()).waits_for_nodes
    return [
        f"input    {len(inputs.listing.files):,} files, {inputs.listing.total_bytes:,} bytes",
        f"model    dimension {contract.dimension}, {contract.max_length} tokens, pooling {contract.pooling}, "
        f"contract {contract.fingerprint()}",
        f"plan     {plan.describe()}",
        *(
            f"operator {op.name}: {op.workers_min} x {op.num_cpus:g} CPU, {op.num_gpus:g} GPU"
            for op in plan.operators()
        ),
        *([f"wait     {waits}"] if waits else []),
    ]


def _stream(plan: EmbedPlan, listing: Listing, staging: str) -> _Attempt:
    """Everything not yet staged goes through the operators into the staging folder."""
    import ray

    from raycurate.data.documents.counting import count_documents
    from raycurate.data.documents.documents import read_documents
    from raycurate.ray_runtime.cluster import data_context
    from raycurate.streams.watch import write_staged

    config = plan.config
    done_keys, rows, rejects = committed_ref(staging)
    if rows:
        log.info("embed: going on after %d rows that an earlier attempt finished (%d of them rejects)", rows, rejects)
    counter: Any = None
    if config.max_rejects is not None:
        counter = ray.remote(RejectCounter).options(num_cpus=0).remote(config.max_rejects, rejects)
        ray.get(counter.add.remote(0))
    if is_complete(staging, rows):
        log.info("embed: every row is staged; what is left is to write the output")
        return _Attempt(rows, rows)
    fetch_on_every_node(plan)
    options = config.model_copy(update={"block_bytes": plan.block_bytes})
    dataset = read_documents(
        options,
        done_keys=done_keys if rows else None,
        listing=listing,
        seconds_column=operators.SECONDS_READ,
        num_cpus=plan.task_cpus,
    )
    dataset = add_operators(dataset, plan)
    data_context(dataset, block_bytes=2 * plan.block_bytes)
    sink = StagingSink(staging, counter, name="Embeddings")
    started = time.perf_counter()
    write_staged(dataset, sink, label="embed", num_cpus=plan.task_cpus, total=lambda: count_documents(listing))
    seconds = sum(w.ended - w.started for w in sink.written)
    mark_complete(staging, rows + sink.rows)
    return _Attempt(
        rows + sink.rows,
        rows,
        time.perf_counter() - started,
        seconds,
        steady_rows_per_second(sink.written, parallel=plan.max_actors),
    )


def _layout(config: EmbedConfig, key: StageKey) -> Layout:
    columns = ["id", config.embedding_field, *config.metadata_fields]
    if config.keep_text:
        columns.append("text")
    return Layout(
        name=f"embeddings-{key.fingerprint()[:8]}",
        columns=list(dict.fromkeys(columns)),
        sums=operators.WORKING_SUMS,
        unique_id="id",
        repeated_ids=config.repeated_ids,
    )


def _nothing_embedded(config: EmbedConfig, finished: Finalised) -> None:
    reasons = ", ".join(f"{reason} {n:,}" for reason, n in sorted(finished.rejects.items())) or "no rows at all"
    where = storage.join(config.output, REJECTS)
    field = f"No row has a field '{config.text_field}': set text_field to the one that holds the text. "
    fix = field if set(finished.rejects) == {"missing_text"} else ""
    raise InputError(
        f"no document could be embedded ({reasons})",
        where=str(config.input),
        fix=f"{fix}The rejected rows are in {where}" if finished.rejects else "Give an input that holds documents",
    )


def _made(plan: EmbedPlan, listing: Listing, finished: Finalised, attempt: _Attempt) -> Made:
    sums = finished.sums
    timings = {
        "read": sums.get(operators.SECONDS_READ, 0.0),
        "tokenise": sums.get(operators.SECONDS_TOKENISE, 0.0),
        "encode": sums.get(operators.SECONDS_ENCODE, 0.0),
        "write": attempt.write_seconds,
        "finalise": attempt.finalise_seconds,
        "stream": attempt.stream_seconds,
        "wall": attempt.wall_seconds,
        "steady_rows_per_second": attempt.steady_rate,
    }
    return Made(
        finished.files,
        {
            "documents": finished.rows,
            "tokens": int(sums.get(operators.NUM_TOKENS, 0)),
            "truncated": int(sums.get(operators.TRUNCATED, 0)),
            "over_long": int(sums.get(operators.TEXT_CUT, 0)),
            "renamed": finished.renamed,
            "input_files": len(listing.files),
            "resumed_rows": attempt.resumed_rows,
        },
        finished.rejects,
        {**plan.config.redacted(), "plan": plan.describe(), "input_bytes": listing.total_bytes},
        {name: round(value, 3) for name, value in timings.items()},
        _contract_as_written(plan.config.output, finished),
    )


def _contract_as_written(output: str, finished: Finalised) -> dict[str, Any]:
    """The contract in the files themselves: the encoder actors put it there, engine and dtype as they were."""
    import pyarrow.parquet as pq

    from raycurate.models.contract import contract_from_schema

    first = next(f.path for f in finished.files if f.path.endswith(".parquet"))
    filesystem, inner = storage.filesystem(storage.join(output, first))
    contract = contract_from_schema(pq.read_schema(inner, filesystem=filesystem))
    assert contract is not None
    return contract.model_dump(mode="json")


def _pretty(value: dict[str, Any]) -> str:
    import json

    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
