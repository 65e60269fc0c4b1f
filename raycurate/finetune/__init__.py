"""Contrastive fine-tuning of embedding models on Ray Train.

`raycurate.finetune(train, model, output, ...)` is `raycurate.finetune.stage.finetune`.
"""

from raycurate.core.callable_module import make_callable

make_callable(__name__, "raycurate.finetune.stage:finetune")
