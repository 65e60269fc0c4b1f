"""Two ranks against one: the same batch gives the same losses, gradients and states, however the model is spread."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from raycurate.core.errors import ConfigError
from raycurate.data.training.training import read_training_data
from raycurate.training.model.options import LoraOptions
from raycurate.training.model.parallelize import choose_strategy, parallelize, refuse_what_cannot_be, training_bytes
from raycurate.training.options import TrainOptions
from raycurate.training.step import NotANumberError
from tests.finetune.families import save_family
from tests.finetune.training_sets import prepared_for, random_data, write_set
from tests.finetune.trainings import (
    COMMON,
    Case,
    Diary,
    apart,
    gradients,
    one_thread,
    run,
    save_poisoned,
    weights_in,
)
from tests.ranks import in_two_ranks

# name -> (model, options). With local_batch_size=4 two ranks run two micro-steps and one rank four; 3 does not divide
# the share of either, and is GradCache's chunk.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert listed": ("bert", {}),
    "bert listed, accumulated": ("bert", {"local_batch_size": 4}),
    "bert cross_rank": ("bert", {"loss": "cross_rank", "symmetric": True}),
    "bert cross_rank, cached": ("bert", {"loss": "cross_rank", "local_batch_size": 3, "symmetric": True}),
    "llama listed, accumulated": ("llama", {"local_batch_size": 2}),
    "llama cross_rank, cached": ("llama", {"loss": "cross_rank", "chunk_tokens": 64}),
}
STRATEGIES = ("ddp", "fsdp2", "hsdp")
COMBINATIONS = [
    *((name, strategy) for name in KINDS for strategy in STRATEGIES[:2]),
    ("bert listed, accumulated", "hsdp"),
]
STEPS = {"max_steps": 4}
SLOW_BF16 = {"max_steps": 50, "num_epochs": 20, "learning_rate": 2e-6, "schedule": "constant", "warmup_steps": 0}


class Found(NamedTuple):
    """Of one case: losses of the steps, gradients of the first."""

    losses: list[float]
    gradients: dict[str, Tensor]


class Trainings(NamedTuple):
    """cases and what two ranks made of them by name and strategy; folder: where checkpoints are."""

    cases: dict[str, Case]
    two: dict[str, Any]
    folder: Path


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> Trainings:
    """All that two processes are asked for in this file, since it takes seconds to start them."""
    root = tmp_path_factory.mktemp("ranks")
    data = random_data(root / "data")
    models = {name: save_family(root / name, name) for name in ("bert", "llama")}
    sets = {name: prepared_for(folder, data) for name, folder in models.items()}
    cases = {
        name: Case(models[model], sets[model], options=options | STEPS) for name, (model, options) in KINDS.items()
    }
    # a checkpoint of one process, in the middle of an epoch, which the two go on from
    run(replace(cases["bert listed"], folder=root / "one", options=STEPS | {"checkpoint_every_steps": 2}))
    return Trainings(cases, in_two_ranks(_two_ranks, cases, _unknown_word(root), root), root)


def _unknown_word(root: Path) -> Case:
    """Question 3 has a word whose vector is no number."""
    model = save_poisoned(root / "poisoned")
    documents = {f"d{i}": "a bird " * (i + 1) for i in range(4)}
    rows: list[dict[str, Any]] = [
        {"question_id": f"q{i}", "question": "zebra" if i == 3 else "rain", "pos_doc": ["d0"], "neg_doc": ["d1"]}
        for i in range(16)
    ]
    data = read_training_data(write_set(root, rows, documents, "poisoned_corpus"))
    return Case(model, prepared_for(model, data, n_passages=2))


def _two_ranks(cases: dict[str, Case], spoilt: Case, root: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, strategy in COMBINATIONS:
        spread = replace(cases[name], options=cases[name].options | {"strategy": strategy, "shard_size": 2})
        found[f"{name}, {strategy}"] = Found(run(spread).losses, gradients(spread))
    plain = cases["bert listed"]
    each = {"local_batch_size": 2, "gradient_sync": "each", "strategy": "fsdp2", "reshard": False}
    found["each"] = gradients(replace(plain, options=plain.options | each))
    resumed = plain.options | {"strategy": "fsdp2"}
    found["from one"] = run(replace(plain, options=resumed, resume_from=root / "one" / "epoch_0_step_2")).losses
    offloaded = plain.options | {"strategy": "fsdp2", "cpu_offload": True}
    found["offloaded"] = run(replace(plain, options=offloaded)).losses
    found["spoilt"] = _spoilt(spoilt, root)
    found |= _validated_and_adapted(plain)
    found |= _resumed(plain, root)
    found |= _precisions(plain, root)
    return found


def _spoilt(case: Case, root: Path) -> tuple[str, list[str]]:
    """What a training says whose rank 1 alone has a text without a vector, and the checkpoints that it leaves."""
    strategy = {"strategy": "fsdp2"}
    try:
        run(replace(case, folder=root / "spoilt", options=STEPS | strategy))
    except NotANumberError as error:
        return error.what, [path.name for path in (root / "spoilt").iterdir()]
    return "nothing", []


def _validated_and_adapted(plain: Case) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for strategy in STRATEGIES[:2]:
        case = replace(
            plain, options=STEPS | {"strategy": strategy, "validation_batch_size": 7}, lora=LoraOptions(dim=2)
        )
        diary = Diary()
        losses = run(case, diary, val_data=case.data).losses
        found[f"adapters {strategy}"] = losses, diary.saves[-1][2]
    return found


def _resumed(plain: Case, root: Path) -> dict[str, Any]:
    """With dropout: undisturbed and from its own checkpoint."""
    found = {}
    for strategy in STRATEGIES[:2]:
        options = STEPS | {"strategy": strategy, "checkpoint_every_steps": 2}
        case = replace(plain, folder=root / strategy, options=options, dropout=0.1)
        whole = run(case)
        again = run(replace(case, folder=root / f"{strategy} again", resume_from=case.folder / "epoch_0_step_2"))  # type: ignore[operator]
        found[f"resumed {strategy}"] = whole.losses, again.losses
    options = STEPS | {"strategy": "fsdp2", "checkpoint_every_steps": 2}
    found["undisturbed"] = run(replace(plain, folder=root / "two", options=options)).losses
    return found


def _precisions(plain: Case, root: Path) -> dict[str, Any]:
    for precision in ("float32", "bfloat16"):
        options = SLOW_BF16 | {"precision": precision, "strategy": "fsdp2", "checkpoint_every_steps": 50}
        run(replace(plain, folder=root / precision, options=options))
    return {}


@pytest.mark.parametrize(("name", "strategy"), COMBINATIONS)
def test_two_ranks_are_as_one(trainings: Trainings, name: str, strategy: str):
    case = trainings.cases[name]
    got = trainings.two[f"{name}, {strategy}"]
    assert got.losses == pytest.approx(run(case).losses, rel=1e-5)
    assert apart(got.gradients, gradients(case)) < 1e-5


def test_accumulation_changes_nothing(trainings: Trainings):
    """Neither how the batch is cut nor when gradients come together."""
    plain, cut = (trainings.cases[f"bert listed{cut}"] for cut in ("", ", accumulated"))
    assert run(cut).losses == pytest.approx(run(plain).losses, rel=1e-5)
    assert apart(gradients(cut), gradients(plain)) < 1e-5
    assert apart(trainings.two["each"], gradients(plain)) < 1e-5


@pytest.mark.parametrize("strategy", STRATEGIES[:2])
def test_adapters_and_validation_over_two_ranks(trainings: Trainings, strategy: str):
    """90 questions in batches of 7 a rank: the last batch is not even, and counts all the same."""
    plain = trainings.cases["bert listed"]
    alone = Diary()
    wanted = run(replace(plain, lora=LoraOptions(dim=2)), alone, val_data=plain.data).losses
    losses, metrics = trainings.two[f"adapters {strategy}"]
    assert losses == pytest.approx(wanted, rel=1e-5)
    assert metrics["val_questions"] == 90
    for name in ("val_loss", "val_acc1", "val_mrr"):
        assert metrics[name] == pytest.approx(alone.saves[-1][2][name], rel=1e-5)


def test_offloading_changes_nothing(trainings: Trainings):
    assert trainings.two["offloaded"] == pytest.approx(run(trainings.cases["bert listed"]).losses, rel=1e-5)


def test_a_loss_that_is_no_number_on_one_rank_stops_all_and_names_its_question(trainings: Trainings):
    said, saved = trainings.two["spoilt"]
    assert said == "the loss is nan, because of 1 of 16 questions: q3"
    assert saved == ["epoch_0_step_0"]


@pytest.mark.parametrize("strategy", STRATEGIES[:2])
def test_going_on_in_the_middle_of_an_epoch_is_bit_for_bit(trainings: Trainings, strategy: str):
    whole, again = trainings.two[f"resumed {strategy}"]
    assert len(whole) == 4
    assert again == whole[2:]
    last = "epoch_0_step_4"
    one, other = (weights_in(trainings.folder / name / last) for name in (strategy, f"{strategy} again"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_going_on_with_another_number_of_ranks(trainings: Trainings):
    undisturbed = run(trainings.cases["bert listed"]).losses
    assert trainings.two["from one"] == pytest.approx(undisturbed[2:], rel=1e-5)
    assert trainings.two["undisturbed"] == pytest.approx(undisturbed, rel=1e-5)
    here = replace(trainings.cases["bert listed"], resume_from=trainings.folder / "two" / "epoch_0_step_2")
    assert run(here).losses == pytest.approx(undisturbed[2:], rel=1e-5)


def test_float32_masters_move_in_bfloat16_training_as_in_float32(trainings: Trainings):
    """At a rate of 2e-6, of which a weight in bfloat16 would feel nothing."""
    from safetensors.torch import load_file

    start = load_file(Path(trainings.cases["bert listed"].model) / "model.safetensors")
    moved = {}
    for precision in ("float32", "bfloat16"):
        (checkpoint,) = (trainings.folder / precision).glob("*_step_50")
        end = {name.removeprefix("towers.shared.body."): t for name, t in weights_in(checkpoint).items()}
        moved[precision] = torch.cat([(end[name] - start[name]).flatten() for name in sorted(end) if name in start])
    lengths = {precision: float(movement.norm()) for precision, movement in moved.items()}
    assert lengths["bfloat16"] == pytest.approx(lengths["float32"], rel=0.05)
    assert nn.functional.cosine_similarity(moved["bfloat16"], moved["float32"], dim=0) > 0.9


# The choice


@pytest.mark.parametrize(
    ("memory", "wanted", "said"), [(800, "ddp", "fit in half"), (799, "fsdp2", "do not fit in half")]
)
def test_auto_copies_what_fits_in_half_of_the_memory(memory: int, wanted: str, said: str):
    model = nn.Linear(5, 5, bias=False)  # 25 weights of 4 bytes, their gradients and two moments
    assert training_bytes(model) == 400
    strategy, reason = choose_strategy(training_bytes(model), TrainOptions(), 2, memory)
    assert strategy == wanted
    assert said in reason


def test_one_rank_shares_nothing():
    strategy, reason = choose_strategy(8, TrainOptions(strategy="fsdp2"), 1, None)
    assert (strategy, reason) == ("single", "strategy=fsdp2: one rank has nothing to share")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tp_size": 2}, "a layer is not split over ranks"),
        ({"cp_size": 2}, "not split over"),
        ({"sequence_parallel": True}, "along"),
    ],
)
def test_what_is_refused(options: dict[str, Any], said: str):
    with pytest.raises(ConfigError, match=said):
        refuse_what_cannot_be(TrainOptions(**options))


def test_offloading_without_ranks_is_refused(tmp_path: Path):
    from raycurate.training.model.bi_encoder import load_bi_encoder
    from raycurate.training.model.options import ModelOptions

    encoder = load_bi_encoder(save_family(tmp_path, "bert"), ModelOptions())
    with pytest.raises(ConfigError, match="not initialised"):
        parallelize(encoder, TrainOptions(**COMMON, cpu_offload=True), torch.device("cpu"))
