"""The embed stage: documents -> embeddings, as a resumable Ray Data stream.

    Documents -> Tokenise -> Encode (actor pool) -> Write (staging) ; then finalise

Killed at any point and started again, it goes on from the staged rows; its output is whole when its
manifest is there.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raycurate.core import storage
from raycurate.core.cluster import ensure_ray
from raycurate.core.errors import InputError
from raycurate.core.finalise import Finalised, Layout, finalise
from raycurate.core.manifest import (
    CONTRACT,
    REJECTS,
    Manifest,
    StageKey,
    commit,
    one_writer,
    package_versions,
    staging_folder,
    state_of,
)
from raycurate.core.observe import get_logger
from raycurate.core.staging import (
    RejectCounter,
    StagingSink,
    TooManyRejectsError,
    committed_ref,
    is_complete,
    mark_complete,
    steady_rows_per_second,
)
from raycurate.embed import operators
from raycurate.embed.config import ALGORITHM_VERSION, EmbedConfig
from raycurate.embed.model import settle_dtype
from raycurate.embed.plan import EmbedPlan, make_plan
from raycurate.embed.preview import nearest_documents
from raycurate.embed.transform import add_operators, fetch_on_every_node

if TYPE_CHECKING:
    from raycurate.core.contract import EmbeddingContract
    from raycurate.data.documents import Listing

log = get_logger(__name__)


@dataclass(frozen=True)
class EmbedResult:
    """A finished set of embeddings: where it lies and what its manifest says."""

    output: str
    manifest: Manifest
    skipped: bool
    neighbours: str = ""

    def summary(self) -> str:
        """The run in a few lines: documents, tokens, rejects by reason, rates, seconds by part."""
        counts, timings = self.manifest.counts, self.manifest.timings
        rejected = sum(self.manifest.rejects.values())
        reasons = ", ".join(f"{reason} {n:,}" for reason, n in sorted(self.manifest.rejects.items()))
        parts = ", ".join(f"{name} {timings.get(name, 0.0):.1f}" for name in ("read", "tokenise", "encode", "write"))
        rows = counts["documents"] + rejected
        share = (rows - counts["resumed_rows"]) / rows  # what this attempt did; the rest was staged before it
        stream = max(timings["stream"], 0.001)  # 0 where all rows had been staged
        renamed, over_long = counts.get("renamed", 0), counts.get("over_long", 0)
        lines = [
            f"documents {counts['documents']:,}  tokens {counts['tokens']:,}  truncated {counts['truncated']:,}",
            f"rejected  {rejected:,}" + (f"  ({reasons})" if reasons else ""),
            *([f"over-long {over_long:,}  (only their first max_chars characters were read)"] if over_long else []),
            *([f"renamed   {renamed:,}  (their ids were taken; see _renamed/)"] if renamed else []),
        ]
        made = f"output {self.output}  ({len(self.manifest.files)} files)"
        if self.skipped:  # the rates are of another day
            return "\n".join([*lines, made]) + self.neighbours
        lines += [
            f"worker seconds in {parts}",
            f"wall {timings['wall']:.1f} s, {stream:.1f} s of it streaming"
            + (f"; {counts['resumed_rows']:,} rows were there from an earlier attempt" if share < 1 else ""),
            f"rate      {counts['documents'] * share / stream:,.1f} docs/s  "
            f"{counts['tokens'] * share / stream:,.0f} tokens/s  with the start of the actors",
        ]
        steady = timings["steady_rows_per_second"]
        if steady:
            lines.append(f"steady    {steady:,.1f} docs/s  {counts['tokens'] * steady / rows:,.0f} tokens/s")
        return "\n".join([*lines, made]) + self.neighbours


def stage_key(config: EmbedConfig, listing: Listing, contract: EmbeddingContract) -> StageKey:
    """What decides the output: the input's listing, the options that affect it, and the model's identity."""
    options = {**config.result_keys(), "contract": contract.fingerprint()}
    return StageKey(
        stage="embed", algorithm_version=ALGORITHM_VERSION, input_fingerprint=listing.fingerprint, options=options
    )


def staging_name(key: StageKey, plan: EmbedPlan) -> str:
    """What staged rows have in common: vectors of one output come from one engine, device and precision.

    What is done about repeated ids is decided over staged rows, so that another decision goes on from the same.
    """
    rows = {name: value for name, value in key.options.items() if name != "repeated_ids"}
    made_by = f"{plan.engine.split(':')[0]}-{plan.device}-{plan.config.dtype}"
    return f"{key.model_copy(update={'options': rows}).fingerprint()}-{made_by}"


def plan_run(config: EmbedConfig) -> tuple[Listing, EmbedPlan, StageKey]:
    """Everything that is checked before any work; needs a running Ray.

    Raises:
        RaycurateError: input, model, options or cluster cannot be used.
    """
    listing, contract, key = _opened(config)
    return listing, _planned(config, listing, contract), key


def _opened(config: EmbedConfig) -> tuple[Listing, EmbeddingContract, StageKey]:
    from raycurate.data.documents import list_documents
    from raycurate.data.documents import make_plan as make_read_plan
    from raycurate.embed.model import read_contract

    listing = list_documents(config)
    make_read_plan(config, config.metadata_fields, listing)  # for what it refuses
    contract = read_contract(config)
    return listing, contract, stage_key(config, listing, contract)


def _planned(config: EmbedConfig, listing: Listing, contract: EmbeddingContract) -> EmbedPlan:
    from raycurate.core.cluster import capacity
    from raycurate.embed.model import weights_bytes

    room = capacity()
    plan = make_plan(config, contract, room, weights_bytes(config))
    report = plan.check(room)
    log.info("embed: %d files, %.1f MB; %s", len(listing.files), listing.total_bytes / 1e6, plan.describe())
    if listing.unsupported:
        left = ", ".join(f"{n:,} {ext or '(no extension)'}" for ext, n in sorted(listing.unsupported.items()))
        log.info("embed: left alone, of other kinds: %s (file_extensions names what is read)", left)
    if report.waits_for_nodes:
        log.info("embed: %s", report.waits_for_nodes)
    return plan


def run(config: EmbedConfig) -> EmbedResult:
    """Embed `config.input` into `config.output`; a finished output is left alone, a killed run goes on.

    Raises:
        RaycurateError: the input, the model, an option or the cluster cannot be used; too many rejects.
    """
    listing, contract, key = _opened(config)
    with one_writer(config.output, key, overwrite=config.overwrite) as done:
        if done is None:
            return _embed(config, listing, contract, key)
    return EmbedResult(config.output, done, skipped=True, neighbours=nearest_documents(config))


def _embed(config: EmbedConfig, listing: Listing, contract: EmbeddingContract, key: StageKey) -> EmbedResult:
    ensure_ray("embed")
    plan = settle_dtype(_planned(config, listing, contract))
    staging = staging_folder(config.output, staging_name(key, plan))
    started = time.perf_counter()
    attempt = _stream(plan, listing, staging)
    streamed = time.perf_counter()
    finished = finalise(staging, config.output, _layout(config, key), known=attempt.rows)
    if not finished.rows:
        _nothing_embedded(config, finished)
    attempt.finalise_seconds = time.perf_counter() - streamed
    attempt.wall_seconds = time.perf_counter() - started
    manifest = _manifest(plan, key, listing, finished, attempt)
    assert manifest.contract is not None
    storage.write_text(storage.join(config.output, CONTRACT), _pretty(manifest.contract))
    commit(config.output, manifest)
    return EmbedResult(config.output, manifest, skipped=False, neighbours=nearest_documents(config))


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


def describe_plan(config: EmbedConfig) -> str:
    """What a run would do on the cluster that is connected: input, engine, actors, whether it waits for nodes."""
    from raycurate.core.cluster import capacity

    listing, plan, key = plan_run(config)
    lines = [
        f"input    {len(listing.files):,} files, {listing.total_bytes:,} bytes",
        f"model    dimension {plan.contract.dimension}, {plan.contract.max_length} tokens, pooling "
        f"{plan.contract.pooling}, contract {plan.contract.fingerprint()}",
        f"plan     {plan.describe()}",
        *(
            f"operator {op.name}: {op.workers_min} x {op.num_cpus:g} CPU, {op.num_gpus:g} GPU"
            for op in plan.operators()
        ),
        f"state    {state(config)}  (key {key.fingerprint()})",
    ]
    waits = plan.check(capacity()).waits_for_nodes
    return "\n".join([*lines, f"wait     {waits}"] if waits else lines)


def state(config: EmbedConfig) -> str:
    """One phrase for `raycurate info`."""
    from raycurate.data.documents import list_documents
    from raycurate.embed.model import read_contract

    return state_of(
        config.output,
        lambda: stage_key(config, list_documents(config), read_contract(config)),
        lambda manifest: f"{manifest.counts['documents']:,} documents",
    )


def _stream(plan: EmbedPlan, listing: Listing, staging: str) -> _Attempt:
    """Everything not yet staged goes through the operators into the staging folder."""
    import ray

    from raycurate.core.cluster import data_context
    from raycurate.core.watch import write_staged
    from raycurate.data.counting import count_documents
    from raycurate.data.documents import read_documents

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
    raise InputError(
        f"no document could be embedded ({reasons})",
        where=str(config.input),
        fix=f"The rejected rows are listed in {where}" if finished.rejects else "Give an input that holds documents",
    )


def _manifest(plan: EmbedPlan, key: StageKey, listing: Listing, finished: Finalised, attempt: _Attempt) -> Manifest:
    sums = finished.sums
    config = plan.config
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
    settings = {**config.redacted(), "plan": plan.describe(), "input_bytes": listing.total_bytes}
    return Manifest(
        key=key,
        inputs=[config.input] if isinstance(config.input, str) else list(config.input),
        files=finished.files,
        counts={
            "documents": finished.rows,
            "tokens": int(sums.get(operators.NUM_TOKENS, 0)),
            "truncated": int(sums.get(operators.TRUNCATED, 0)),
            "over_long": int(sums.get(operators.TEXT_CUT, 0)),
            "renamed": finished.renamed,
            "input_files": len(listing.files),
            "resumed_rows": attempt.resumed_rows,
        },
        rejects=finished.rejects,
        timings={name: round(value, 3) for name, value in timings.items()},
        settings=settings,
        contract=_contract_as_written(config.output, finished),
        versions=package_versions("raycurate", "ray", "torch", "transformers", "sentence-transformers", "pyarrow"),
    )


def _contract_as_written(output: str, finished: Finalised) -> dict[str, Any]:
    """The contract in the files themselves: the encoder actors put it there, engine and dtype as they were."""
    import pyarrow.parquet as pq

    from raycurate.core.contract import contract_from_schema

    first = next(f.path for f in finished.files if f.path.endswith(".parquet"))
    filesystem, inner = storage.filesystem(storage.join(output, first))
    contract = contract_from_schema(pq.read_schema(inner, filesystem=filesystem))
    assert contract is not None
    return contract.model_dump(mode="json")


def _pretty(value: dict[str, Any]) -> str:
    import json

    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


__all__ = ["EmbedResult", "TooManyRejectsError", "plan_run", "run", "stage_key"]
