"""How well the model searches before it is trained: what the dev metrics of its checkpoints are compared with.

It reads texts under the prefixes, the pooling and the normalisation of the training, and under its own lengths or those
that `encoder` says: as mining and eval run it, so that there is one number of it. With `cache` the vectors are theirs.
"""

from __future__ import annotations

import json

from raycurate.core import storage
from raycurate.core.errors import ConfigError
from raycurate.core.manifest import STAGING
from raycurate.core.observe import get_logger
from raycurate.stages.finetune.config import FinetuneConfig

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
    refuse_untrained(config)
    from raycurate.stages.finetune.dev_eval import METRICS, DevOptions, evaluate_dev

    kept = storage.join(config.output, _FILE)
    if storage.exists(kept):
        return dict(json.loads(storage.read_text(kept)))
    log.info("finetune: searching with %s as it is", config.model)
    options = DevOptions(
        eval_beir=config.dev,
        work=storage.join(config.output, STAGING, "base"),
        encoder=config.run_as,
        cache=config.cache,
    )
    found = evaluate_dev(config.model, options)
    metrics = {name: found[name] for name in METRICS}
    storage.write_text(kept, json.dumps(metrics) + "\n")
    return metrics


def refuse_untrained(config: FinetuneConfig) -> None:
    """Raises ConfigError where the model as it is attends otherwise than it will be trained to."""
    from raycurate.models.contract import EmbeddingContract
    from raycurate.models.fetch import fetch_encoder
    from raycurate.training.model.backbones import attends_both_ways

    if not config.measure_base:
        return
    folder = fetch_encoder(config.encoder_options())
    causal = EmbeddingContract.from_checkpoint(folder).attention == "causal"
    if causal and attends_both_ways(folder, config.model_options()):
        raise ConfigError(
            "measure_base=true, but this causal decoder is to be trained to attend both ways, and before that it has "
            "no vectors worth comparing",
            where=config.model,
            fix="Leave measure_base out, or set bidirectional=false",
        )
