"""`rc.embed`: the embed step as a function on a Ray Data data set, for pipelines of the user's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raycurate.core.errors import ConfigError
from raycurate.data.documents.rows import TEXT_CUT
from raycurate.encoders.embed_options import EmbedConfig
from raycurate.encoders.operators import SECONDS_READ, WORKING_SUMS, Encode, Tokenise, require_text_field
from raycurate.encoders.plan import EmbedPlan, make_plan
from raycurate.ray_runtime import private
from raycurate.streams.staging import MADE_AT

if TYPE_CHECKING:
    from ray.data import Dataset

_APART = 0.001  # CPUs
OPTIONS_OF_FILES = frozenset(
    {
        *("input", "output", "overwrite", "max_rejects", "show_neighbours", "repeated_ids"),
        *("file_extensions", "files_per_partition", "block_bytes", "id_field", "id_type", "metadata_fields"),
    }
)
"""Options of the embed stage that `rc.embed` refuses; it heeds all others."""


def fetch_on_every_node(plan: EmbedPlan) -> None:
    """Bring the model to each live node once, before any actor asks for it.

    Nodes that join later fetch it when their first actor starts; the hub's own lock makes that once a node too.
    """
    from raycurate.models.fetch import fetch_model
    from raycurate.ray_runtime.cluster import run_on_each_node

    if plan.engine != "endpoint" and ":" not in plan.engine:  # a URL, or a class of the user's own
        run_on_each_node(fetch_model, _engine_options(plan), gpu_only=False)


def _engine_options(plan: EmbedPlan) -> EmbedConfig:
    """The options an actor gets: engine and device as the plan has settled them."""
    return plan.config.model_copy(update={"engine": plan.engine, "device": plan.device})


def _tokenizer(options: EmbedConfig) -> Any:
    """A reference to the tokenizer as JSON, made by one task for all of the tokenising ones."""
    from raycurate.models.tokenize import serialised_tokenizer
    from raycurate.ray_runtime.cluster import remote_task

    return remote_task(serialised_tokenizer, name="LoadTokenizer", num_cpus=0).remote(options)


def _encoder_cpus(plan: EmbedPlan) -> float:
    """What an encoder actor reserves, never just what a tokenising task does.

    Ray Data fuses neighbours that reserve the same, and the actors would then read and tokenise themselves while the
    model waits.
    """
    return plan.cpus if plan.cpus != plan.task_cpus else plan.cpus - _APART


def add_operators(
    dataset: Dataset, plan: EmbedPlan, *, text_field: str = "text", title_field: str = "title"
) -> Dataset:
    """`dataset` with the tokenise and encode operators behind it; the fields are those of `read_documents`."""
    from ray.data import ActorPoolStrategy

    from raycurate.encoders.inspect import reads
    from raycurate.ray_runtime.cluster import environment_versions

    options = _engine_options(plan)
    contract_json = plan.contract.to_json()
    accepts = reads(plan.engine)
    tokenise = Tokenise(
        options,
        contract_json,
        accepts=accepts,
        text_field=text_field,
        title_field=title_field,
        keep_text=plan.config.keep_text,
        tokenizer=_tokenizer(options) if accepts == "tokens" else None,
    )
    remote_args = plan.config.actors.ray_remote_args()
    remote_args.update(num_cpus=_encoder_cpus(plan))
    if plan.gpus:
        remote_args["num_gpus"] = plan.gpus
    return dataset.map_batches(
        tokenise, batch_size=None, batch_format="pyarrow", zero_copy_batch=True, num_cpus=plan.task_cpus
    ).map_batches(
        Encode,
        fn_constructor_args=(options, contract_json),
        fn_constructor_kwargs={
            "threads": plan.threads,
            "embedding_field": plan.config.embedding_field,
            "output_dtype": plan.config.output_dtype,
            "driver_versions": environment_versions(),
        },
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=ActorPoolStrategy(
            min_size=plan.min_actors,
            max_size=plan.max_actors,
            max_tasks_in_flight_per_actor=plan.tasks_in_flight,
            max_concurrent_calls_per_actor=2,
            enable_true_multi_threading=True,
        ),
        **remote_args,
    )


def embed(dataset: Dataset, *, model: str, **options: Any) -> Dataset:
    """Add an embedding to every row of a data set.

    Lazy, like every Ray Data transformation. The data set needs a text column (`text_field`, default
    "text") and may have a title column. Every row comes out: one whose text is null or blank has a null
    vector and says why in `reject_reason`.

    Args:
        dataset: any `ray.data.Dataset`.
        model: Hugging Face name, local folder, `python:PACKAGE`, or the URL of an OpenAI-compatible server.
        options: any option of `raycurate embed` but those of files and ids, which are refused (OPTIONS_OF_FILES).

    Returns:
        The data set with the columns it had (the text only with `keep_text=True`, the default here), the
        embedding column (fixed-size list of float32 or float16), `text_cut` (bool: only the first `max_chars`
        characters were embedded), `reject_reason` and `reject_detail`.

    Raises:
        ConfigError: an unknown or bad option, or a data set that cannot be resumed although its context
            has a checkpoint.
        CapacityError: no allowed size of the cluster can run it.
    """
    from raycurate.encoders.inspect import read_contract, settle_dtype, weights_bytes
    from raycurate.ray_runtime.cluster import capacity, check_plan, dataset_demands, require_ray

    _refuse_unsafe_checkpoint(dataset)
    values = {"keep_text": True, **options, "model": model, "input": "(data set)", "output": "(data set with vectors)"}
    unusable = sorted(OPTIONS_OF_FILES & options.keys())
    if unusable:
        raise ConfigError(
            f"{', '.join(unusable)} cannot be used on a data set in memory",
            where="rc.embed",
            fix="All of its columns come along; give these to rc.read_documents, or run the embed stage",
        )
    require_ray("rc.embed")
    config = EmbedConfig.parse(values, where="rc.embed")
    _check_text_field(dataset, config.text_field)
    room = capacity()
    plan = settle_dtype(make_plan(config, read_contract(config), room, weights_bytes(config)))
    embedded = add_operators(dataset, plan, text_field=config.text_field, title_field=config.title_field)
    # The user's own operators count too, as do the filter actors of a data set that resumes from a checkpoint.
    check_plan(dataset_demands(embedded), room)
    fetch_on_every_node(plan)
    return embedded.drop_columns([MADE_AT, *(c for c in WORKING_SUMS if c not in (SECONDS_READ, TEXT_CUT))])


def _check_text_field(dataset: Dataset, text_field: str) -> None:
    """Raises ConfigError when the data set is known to have no such column, or one that is not text.

    Where its columns are known only once it runs, rows whose text is none come out as rejects.
    """
    schema = dataset.schema(fetch_if_missing=False)
    if schema is not None:
        kinds = dict(zip(schema.names, schema.types, strict=True))
        require_text_field(text_field, kinds)


def _refuse_unsafe_checkpoint(dataset: Dataset) -> None:
    """Ray Data filters finished rows right behind reads; other leaves would be written twice on resume."""
    if dataset.context.checkpoint_config is None:
        return
    waiting = [private.logical_plan(dataset).dag]
    while waiting:
        operator = waiting.pop()
        waiting += operator.input_dependencies
        if not operator.input_dependencies and type(operator).__name__ not in ("Read", "ReadFiles", "ListFiles"):
            raise ConfigError(
                f"its context has a checkpoint, but it starts from '{operator.name}', not from a read: "
                "on a second run its rows would be embedded and written again",
                where="rc.embed",
                fix="Start from ray.data.read_* or rc.read_documents, or unset dataset.context.checkpoint_config",
            )
