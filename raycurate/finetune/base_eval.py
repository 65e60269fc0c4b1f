"""How well the model searches before it is trained: what the dev metrics of its checkpoints are compared with.

It reads texts as the training does: the same lengths, prefixes, pooling and normalisation. With `cache` the vectors
are those that mining has made with the same model, and only a change of lengths or prefixes embeds anew.
"""

from __future__ import annotations

import json

from raycurate.core import storage
from raycurate.core.manifest import STAGING
from raycurate.core.observe import get_logger
from raycurate.finetune.config import FinetuneConfig

_FILE = f"{STAGING}/base.json"

log = get_logger(__name__)


def measure_base(config: FinetuneConfig) -> dict[str, float]:
    """The dev metrics of the model to be trained, measured once a training; empty without `measure_base`.

    Needs a running Ray, before the training takes its CPUs or GPUs.

    Raises:
        ConfigError, ContractError, InputError: a model or a test set that cannot be used.
    """
    if not config.measure_base or config.dev is None:
        return {}
    from raycurate.finetune.dev_eval import METRICS, DevOptions, evaluate_dev

    kept = storage.join(config.output, _FILE)
    if storage.exists(kept):
        return dict(json.loads(storage.read_text(kept)))
    log.info("finetune: searching with %s as it is", config.model)
    options = DevOptions(
        eval_beir=config.dev,
        work=storage.join(config.output, STAGING, "base"),
        encoder=_encoder(config),
        query_prefix=config.query_prefix,
        document_prefix=config.passage_prefix,
        cache=config.cache,
    )
    found = evaluate_dev(config.model, options)
    metrics = {name: found[name] for name in METRICS}
    storage.write_text(kept, json.dumps(metrics) + "\n")
    return metrics


def _encoder(config: FinetuneConfig) -> dict[str, object]:
    names = ("revision", "pooling", "normalize", "cache_dir", "hf_token", "local_files_only")
    given = {name: getattr(config, name) for name in names}
    return given | {"max_length": max(config.query_max_length, config.passage_max_length), "device": config.device}
