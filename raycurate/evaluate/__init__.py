"""How well systems search: BEIR's metrics over judged queries, side by side, with intervals and comparisons.

result = raycurate.evaluate("runs/x/prep/eval_beir", "runs/x/eval", model="base-model", finetuned="runs/x/finetune")
"""

from raycurate.core.callable_module import make_callable

make_callable(__name__, "raycurate.evaluate.stage:evaluate")
