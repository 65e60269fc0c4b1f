"""The recipe's words and what becomes of them."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from raycurate.core.config import load_recipe
from raycurate.core.errors import CapacityError, ConfigError, InputError, RaycurateError
from raycurate.pipeline import STAGES, config_of
from raycurate.ray_runtime.capacity import Capacity, NodeShape
from raycurate.ray_runtime.cluster import user_error
from raycurate.stages.finetune.config import FinetuneConfig
from raycurate.stages.finetune.driver import Layout, layout

BASE: dict[str, Any] = {"train": "train.jsonl", "model": "some/model", "output": "out"}


def _config(**values: Any) -> FinetuneConfig:
    return FinetuneConfig.parse({**BASE, **values}, where="test")


def test_the_defaults_are_those_of_the_embed_recipe() -> None:
    options = _config()
    assert (options.loss, options.num_epochs, options.learning_rate) == ("listed", 3, 1e-5)
    assert (options.global_batch_size, options.temperature, options.weight_decay) == (128, 0.02, 0.01)
    assert options.max_grad_norm == 1.0
    prepared = _config().prepare_options()
    assert (prepared.passages.n_passages, prepared.query_max_length, prepared.passage_max_length) == (5, 512, 512)


def test_the_precision_is_what_the_hardware_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _config().settled(cuda=True).precision == "bfloat16"
    assert _config().settled(cuda=True, bfloat16=False).precision == "float32"  # a card from before Ampere
    assert _config().settled(cuda=False, bfloat16=True).precision == "bfloat16"
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    assert _config().settled(cuda=False).precision == "float32"
    assert _config(precision="bfloat16").settled(cuda=False).precision == "bfloat16"  # what is asked for stays


def test_each_option_is_declared_once() -> None:
    declared = [name for group in FinetuneConfig.__mro__ for name in vars(group).get("__annotations__", {})]
    options = [name for name in declared if name in FinetuneConfig.model_fields]
    assert len(options) == len(set(options)) == len(FinetuneConfig.model_fields)


def test_values_reach_the_loop_the_model_and_the_data() -> None:
    config = _config(
        matryoshka={64: 0.5, 128: 1.0},
        false_negatives={"margin": 0.9},
        distillation=[{"kind": "kl", "weight": 0.5}],
        lora={"dim": 4, "target_modules": ["q_proj"]},
        loss="cross_rank",
        query_prefix="q: ",
        passage_prefix="",
        query_max_length=64,
        passage_max_length=256,
        eval_negative_size=2,
        num_workers=[1, 4],
    )
    options = config
    assert options.matryoshka == {64: 0.5, 128: 1.0}
    assert options.false_negatives is not None and options.false_negatives.margin == 0.9
    assert options.distillation[0].weight == 0.5 and options.elastic
    model = config.model_options()
    assert model.prompts == {"query": "q: ", "document": ""} and (model.max_length, model.trained_length) == (None, 256)
    assert model.matryoshka_dims == (128, 64)
    lora = config.lora
    assert lora is not None and lora.dim == 4 and lora.target_modules == ["q_proj"]
    assert config.prepare_options().passages.teacher_scores
    assert config.prepare_options(validation=True).passages.n_passages == 3


@pytest.mark.parametrize(
    ("said", "wanted"),
    [({}, "auto"), ({"gradcache": "auto"}, "auto"), ({"gradcache": "on"}, True), ({"gradcache": False}, False)],
)
def test_gradcache_and_when_gradients_come_together(said: dict[str, Any], wanted: bool | str) -> None:
    """YAML reads `on` and `off` as true and false, the command line as words."""
    config = _config(loss="cross_rank", gradient_sync="each", **said)
    assert config.gradcache == wanted and config.gradient_sync == "each"
    assert config.result_keys() == _config(loss="cross_rank").result_keys()
    assert _config().gradient_sync == "last"


def test_other_tools_names_are_taken() -> None:
    assert _config(train_n_passages=3, lr_warmup_steps=7).n_passages == 3
    assert _config(pooling="avg").pooling == "mean"
    with pytest.raises(ConfigError, match="train_n_passages and n_passages are two names of one option"):
        _config(train_n_passages=3, n_passages=4)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"tempreature": 0.1}, "did you mean 'temperature'"),
        ({"num_workers": [4, 2]}, r"write \[min, max\]"),
        ({"num_workers": [1, 2], "loss": "in_batch"}, "negatives depend on the number of workers"),
        ({"warmup_steps": 1, "warmup_ratio": 0.1}, "give one of them"),
        ({"early_stopping": 2}, "needs val"),
        ({"best_metric": "dev_ndcg10"}, "needs dev"),
        ({"keep_last": 0}, "keep_last=0"),
        ({"lora": {"rank": 4}}, "rank"),
        ({"lora": {"dimm": 4}}, r"unknown key 'lora\.dimm'; did you mean 'lora\.dim'\?"),
        ({"best_metric": "ndcg"}, "best_metric='ndcg': write one of auto, val_mrr"),
        ({"measure_base": True}, "^test: measure_base=true needs dev"),
        ({"measure_base": True, "dev": "eval_beir", "bidirectional": True}, "no vectors worth comparing"),
        ({"n_passages": 1}, "a positive alone has nothing to be told from"),
        ({"gradcache": "sometimes"}, "gradcache"),
        ({"gradient_sync": "never"}, "gradient_sync='never'"),
    ],
)
def test_what_cannot_be_is_said(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        _config(**values)


def test_best_is_chosen_by_what_is_there() -> None:
    from raycurate.stages.finetune.dev_eval import METRICS

    assert all(_config(dev="eval_beir", best_metric=name).metric == name for name in METRICS)
    assert _config().metric is None
    assert _config(val="v.json").metric == "val_mrr"
    assert _config(dev="eval_beir").metric == "dev_ndcg10"
    assert _config(val="v.json", dev="eval_beir").metric == "dev_ndcg10"
    assert _config(val="v.json", dev="eval_beir", best_metric="val_loss").metric == "val_loss"


def test_how_it_runs_plays_no_part_in_whether_it_is_done() -> None:
    same = _config(num_workers=4, strategy="fsdp2", resume="never", overwrite=True, keep_last=3, compile=True)
    assert same.result_keys() == _config().result_keys()
    assert _config(resume="/a/epoch_0_step_1").result_keys() != _config().result_keys()
    assert _config(learning_rate=2e-5).result_keys() != _config().result_keys()


def test_the_recipe_wires_it_to_prep() -> None:
    recipe = load_recipe(None, ["workdir=/w", "model=m", "seed=3", "finetune.train_n_passages=2"], stages=STAGES)
    config = config_of("finetune", recipe)
    assert config.train == "/w/prep/train_mined.automodel_unrolled.json"
    assert config.val == "/w/prep/val_mined.automodel.json"
    assert (config.model, config.output, config.seed, config.n_passages) == ("m", "/w/finetune", 3, 2)
    assert config.input == ["/w/prep/train_mined.automodel_unrolled.json"]


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys, raycurate.stages.finetune.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def _cluster(**resources: float) -> Capacity:
    return Capacity((NodeShape({k.upper(): v for k, v in resources.items()}),))


@pytest.mark.parametrize(
    ("values", "cluster", "expected"),
    [
        ({}, _cluster(cpu=4), Layout(4, 4, 1.0, 0.0)),
        ({}, _cluster(cpu=64), Layout(8, 8, 1.0, 0.0)),
        ({"global_batch_size": 6}, _cluster(cpu=4), Layout(3, 3, 1.0, 0.0)),
        ({"local_batch_size": 32}, _cluster(cpu=8), Layout(4, 4, 1.0, 0.0)),
        ({}, _cluster(cpu=64, gpu=8), Layout(8, 8, 1.0, 1.0)),
        ({"device": "cpu", "num_workers": 2}, _cluster(cpu=64, gpu=8), Layout(2, 2, 1.0, 0.0)),
        ({"num_workers": [2, 8], "actors": {"num_cpus": 4}}, _cluster(cpu=64), Layout(2, 8, 4.0, 0.0)),
    ],
)
def test_workers(values: dict[str, Any], cluster: Capacity, expected: Layout) -> None:
    assert layout(_config(**values), cluster) == expected


def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(CapacityError, match="no node of the cluster has a GPU"):
        layout(_config(device="cuda"), _cluster(cpu=4))


def test_a_users_error_is_found_in_what_ray_train_makes_of_it() -> None:
    from ray.train import TrainingFailedError
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
    from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

    ours = InputError("no", where="here")
    wrapped = UserExceptionWithTraceback(ours, "Traceback ...")
    errors: list[TrainingFailedError] = [
        WorkerGroupError("a worker failed", {0: ConnectionError("peer"), 1: wrapped}),
        ControllerError(ours),
    ]
    for error in errors:
        found = user_error(error)
        assert isinstance(found, RaycurateError) and str(found) == "here: no"
    assert user_error(WorkerGroupError("a worker died", {0: ConnectionError("peer")})) is None
