"""What can be wrong with a training before anything runs: its data, its test set, its model.

It needs no Ray, which takes longer to start than a training file to be read. The data come first: they need no torch.
"""

from __future__ import annotations

from raycurate.core import storage
from raycurate.stages.finetune.config import FinetuneConfig

DEV_FILES = ("corpus.jsonl", "queries.jsonl", "qrels/dev.tsv")


def check(config: FinetuneConfig) -> None:
    """Refuse data and a model that cannot be trained with.

    Raises:
        RaycurateError: what is wrong, all of it where it is the data.
    """
    data = config.read_data()
    config.read_data(validation=True)
    for name in DEV_FILES if config.dev is not None else ():
        path = storage.join(str(config.dev), name)
        if not storage.exists(path):
            raise storage.not_there(path)

    from raycurate.models.fetch import fetch_encoder
    from raycurate.stages.finetune.base_eval import refuse_untrained
    from raycurate.training.model.backbones import training_contract
    from raycurate.training.model.parallelize import refuse_what_cannot_be

    refuse_what_cannot_be(config)
    training_contract(fetch_encoder(config.encoder_options()), config.model_options())
    refuse_untrained(config)
    if data is not None and config.global_batch_size != "auto":
        _refuse_less_than_a_batch(len(data), config)


def _refuse_less_than_a_batch(questions: int, config: FinetuneConfig) -> None:
    import numpy as np

    from raycurate.training.batches.order import OrderOptions, QuestionOrder

    batch, drop_last = int(config.global_batch_size), config.drop_last
    options = OrderOptions(seed=0, global_batch=batch, window=0, drop_last=drop_last, shuffle=False)
    QuestionOrder(np.zeros(questions, np.int64), options)  # for what it refuses
