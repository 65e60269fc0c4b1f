"""Distillation from a teacher's vectors: made once, laid beside the tokens, and followed with the right gradients."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from raycurate.core.config import fingerprint
from raycurate.core.errors import ConfigError, InputError
from raycurate.data.training.training import TrainingData, read_training_data
from raycurate.models.contract import EmbeddingContract
from raycurate.models.options import EncoderOptions
from raycurate.stages.finetune.config import FinetuneConfig
from raycurate.training.batches.batches import Place, collate
from raycurate.training.batches.options import PassageOptions
from raycurate.training.batches.order import Share
from raycurate.training.batches.prepared import Prepared, PrepareOptions, prepare
from raycurate.training.batches.teacher import TeacherOptions
from raycurate.training.loss import losses
from raycurate.training.loss.options import Distillation
from raycurate.training.model.bi_encoder import load_bi_encoder
from raycurate.training.model.options import ModelOptions
from raycurate.training.options import TrainOptions
from raycurate.training.plan import plan_training
from tests.embed.hashing import hash_vector
from tests.finetune.families import save_family
from tests.finetune.runs import config_of, small_recipe
from tests.finetune.runs import losses as logged_losses
from tests.finetune.training_sets import prepared_for, write_set
from tests.finetune.trainings import COMMON, Case, apart, gradients, run
from tests.ranks import in_two_ranks

pytestmark = pytest.mark.usefixtures("on_one_thread")
ENGINE = "tests.embed.hashing:HashEncoder"
FOLLOW: dict[str, Any] = {"distillation": (Distillation(kind="embeddings", weight=2.0, teacher="teacher"),)}


def with_teacher(student: str, data: TrainingData, teacher: TeacherOptions, cache: Path) -> Prepared:
    options = PrepareOptions(
        passages=PassageOptions(n_passages=3),
        query_max_length=16,
        passage_max_length=16,
        data_cache=str(cache),
        teacher=teacher,
    )
    contract = EmbeddingContract.from_checkpoint(student)
    return prepare(data, EncoderOptions(model=student), contract, options, processes=1)


def hashing(folder: Path) -> TeacherOptions:
    """The tests' own encoder of 16 dimensions; `folder`/log gets a line for each text that it encodes."""
    encoder = {"engine": ENGINE, "concurrency": 1, "engine_kwargs": {"log": str(folder / "log")}}
    return TeacherOptions("words", encoder, str(folder / "work"))


# --- the loss -----------------------------------------------------------------------------------


def test_the_gradient_of_a_cosine_is_its_formula():
    """d(1 - cos)/dv = (cos * v/|v| - t/|t|) / |v|: it turns a vector and leaves its length alone."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(5, 7, generator=generator, requires_grad=True)
    teacher = torch.randn(5, 7, generator=generator)
    loss = losses.cosine_to_teacher(vectors, teacher)
    loss.sum().backward()
    ours, theirs = (v.detach().numpy().astype(np.float64) for v in (vectors, teacher))
    lengths = np.linalg.norm(ours, axis=1, keepdims=True)
    unit, wanted_unit = ours / lengths, theirs / np.linalg.norm(theirs, axis=1, keepdims=True)
    cosines = (unit * wanted_unit).sum(1, keepdims=True)
    assert vectors.grad is not None
    np.testing.assert_allclose(loss.detach().numpy(), 1 - cosines[:, 0], atol=1e-6)
    np.testing.assert_allclose(vectors.grad.numpy(), (cosines * unit - wanted_unit) / lengths, atol=1e-6)
    assert (vectors.grad * vectors).sum(1).abs().max() < 1e-6


def test_vectors_of_another_dimension_have_no_cosine():
    with pytest.raises(ValueError, match=r"vectors are \(2, 4\), the teacher's \(2, 3\)"):
        losses.cosine_to_teacher(torch.ones(2, 4), torch.ones(2, 3))


# --- the vectors --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def taught(local_ray: None, dense_model: str, data: TrainingData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the vectors of `hashing` laid out, and what was prepared with them in its cache."""
    folder = tmp_path_factory.mktemp("taught")
    with_teacher(dense_model, data, hashing(folder), folder / "cache")
    return folder


def unit_rows(texts: list[str]) -> np.ndarray:
    rows = np.stack([hash_vector(text) for text in texts])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_a_batch_carries_the_vectors_of_its_own_texts(taught: Path, dense_model: str, data: TrainingData):
    """Of the texts as they are: the student's prompts, which this model has, are not the teacher's."""
    prepared = with_teacher(dense_model, data, hashing(taught), taught / "cache")
    rows = np.array([3, 50, 7, 3])
    batch = collate(prepared, Share(rows, None), Place(0, 0, 0, last=True, questions=4))
    questions = data.table["question"].take(pa.array(rows)).to_pylist()
    documents, _ = prepared.passages.pick(rows, 0)
    texts = data.corpora[0].texts_of(prepared.passages.row_of[documents.ravel()])
    assert batch.teacher_queries_QD is not None and batch.teacher_passages_PD is not None
    np.testing.assert_allclose(batch.teacher_queries_QD.numpy(), unit_rows(questions), rtol=1e-6)
    np.testing.assert_allclose(batch.teacher_passages_PD.numpy(), unit_rows(texts), rtol=1e-6)
    assert batch.to("meta").teacher_passages_PD.device.type == "meta"  # type: ignore[union-attr]
    assert isinstance(prepared.teacher_documents, np.memmap)


def test_another_machine_copies_what_one_embedded(taught: Path, dense_model: str, data: TrainingData):
    """It has no tokens yet, and starts no task: those might wait for CPUs that the training holds. Without the cache
    of single vectors whatever embeds would have to encode all of them again."""
    before = (taught / "log").read_text()
    assert len(before.splitlines()) <= len(data) + 60, "each text once"
    shutil.rmtree(taught / "work" / "cache")
    one, other = (with_teacher(dense_model, data, hashing(taught), taught / name) for name in ("cache", "elsewhere"))
    assert one.folder != other.folder and (taught / "log").read_text() == before
    for name in ("teacher_questions", "teacher_documents"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_without_a_teacher_nothing_changes_its_place(taught: Path, dense_model: str, data: TrainingData):
    alone = prepared_for(dense_model, data, data_cache=str(taught / "cache"))
    assert alone.teacher_questions is None and alone.teacher_documents is None
    assert alone.folder != with_teacher(dense_model, data, hashing(taught), taught / "cache").folder
    options = TrainOptions(**COMMON | FOLLOW)
    with pytest.raises(ConfigError, match="prepared without a teacher"):
        plan_training(alone, options, rank=0, ranks=1)


def test_what_cannot_be_followed_is_refused(local_ray: None, data: TrainingData, tmp_path: Path):
    student = save_family(tmp_path / "student", "bert")
    with pytest.raises(ConfigError, match="teacher's vectors have 16 dimensions and the student's 32") as caught:
        with_teacher(student, data, hashing(tmp_path), tmp_path / "cache")
    assert caught.value.where == "distillation: teacher=words" and not (tmp_path / "log").exists()
    many = {"pooling": "multi_vector"}
    with pytest.raises(ConfigError, match="the teacher has one a token"):
        with_teacher(student, data, TeacherOptions(student, many, str(tmp_path)), tmp_path / "cache")
    with pytest.raises(ConfigError, match="did you mean 'max_length'"):
        with_teacher(student, data, TeacherOptions(student, {"max_lenght": 3}, str(tmp_path)), tmp_path / "cache")


def test_a_text_without_a_vector_is_named(local_ray: None, dense_model: str, tmp_path: Path):
    rows = [{"question": "a broken bird", "pos_doc": ["x"], "neg_doc": ["y", "y"]}]
    found = read_training_data(write_set(tmp_path, rows, {"x": "rain", "y": "dawn"}))
    teacher = hashing(tmp_path)
    teacher.encoder["engine_kwargs"]["poison"] = "broken"
    with pytest.raises(InputError, match="1 texts have no vector: 'a broken bird'"):
        with_teacher(dense_model, found, teacher, tmp_path / "cache")
    assert not list((tmp_path / "cache" / "tokens").glob("[!.]*")), "half of it is not there"


# --- training -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def follower(taught: Path, dense_model: str, data: TrainingData) -> Case:
    """A model of 16 dimensions, and the vectors that hashing gives its texts."""
    return Case(dense_model, with_teacher(dense_model, data, hashing(taught), taught / "cache"), options=FOLLOW)


def test_a_student_comes_near_its_teacher(follower: Case):
    options = FOLLOW | {"contrastive_weight": 0.0, "num_epochs": 8, "learning_rate": 2e-3}
    found = run(replace(follower, options=options)).losses
    assert np.mean(found[-4:]) < 0.4 * found[0]


def plain_gradients(case: Case) -> dict[str, Tensor]:
    """Of the first step's distillation alone, by autograd from the formula: the mean over questions of the mean over
    a question and its passages of 1 - t.v / (|t| |v|)."""
    plan = plan_training(case.data, case.train_options, rank=0, ranks=1)
    (batch,) = plan.feed.batches(0, 1)
    encoder = load_bi_encoder(case.model, ModelOptions(dropout=0.0, normalize=False)).train()
    queries, passages = encoder(batch.queries, "query"), encoder(batch.passages, "document")
    assert isinstance(queries, Tensor) and isinstance(passages, Tensor)
    total = torch.zeros(())
    for q in range(len(batch)):
        own = [(queries[q], batch.teacher_queries_QD[q])]  # type: ignore[index]
        own += [(passages[3 * q + n], batch.teacher_passages_PD[3 * q + n]) for n in range(3)]  # type: ignore[index]
        for vector, wanted in own:
            total = total + (1 - vector @ wanted / (vector.norm() * wanted.norm())) / (4 * len(batch))
    (2.0 * total).backward()
    return {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}


CUTS: dict[str, dict[str, Any]] = {
    "at once": {},
    "two micro-steps": {"local_batch_size": 8},
    "chunks of GradCache": {"loss": "in_batch", "local_batch_size": 3},
    "one chunk of GradCache": {"loss": "in_batch", "gradcache": True},
}


@pytest.mark.parametrize("name", CUTS)
def test_gradients_are_those_of_the_plain_formula(follower: Case, name: str):
    alone = replace(follower, options=FOLLOW | {"contrastive_weight": 0.0})
    assert apart(gradients(replace(alone, options=alone.options | CUTS[name])), plain_gradients(alone)) < 1e-5


@pytest.mark.slow
def test_two_ranks_have_the_gradients_of_one(follower: Case):
    cached = replace(follower, options=FOLLOW | {"loss": "cross_rank", "symmetric": True, "local_batch_size": 3})
    cases = {
        name: replace(case, options=case.options | {"strategy": strategy})
        for name, case, strategy in (
            ("listed", replace(follower, options=FOLLOW | {"local_batch_size": 4}), "ddp"),
            ("cached", cached, "ddp"),
            ("sharded", cached, "fsdp2"),
        )
    }
    two = in_two_ranks(_gradients_of, cases)
    for name, case in cases.items():
        assert apart(two[name], gradients(replace(case, options=case.options | {"strategy": "auto"}))) < 1e-5, name


def _gradients_of(cases: dict[str, Case]) -> dict[str, dict[str, Tensor]]:
    return {name: gradients(case) for name, case in cases.items()}


# --- the recipe ---------------------------------------------------------------------------------


def config(**values: Any) -> FinetuneConfig:
    return FinetuneConfig.parse({"train": "t.jsonl", "model": "m", "output": "out"} | values, where="test")


def test_what_a_recipe_says_of_a_teacher():
    said = config(distillation=[{"kind": "embeddings", "weight": 0.5, "teacher": "big/model"}, {"kind": "kl"}])
    assert [(part.kind, part.weight) for part in said.distillation] == [("embeddings", 0.5), ("kl", 1.0)]
    options = said.prepare_options()
    assert options.teacher is not None and options.teacher.model == "big/model" and options.passages.teacher_scores
    assert options.teacher.work == str(Path("out/_staging/teacher").absolute())
    assert options.teacher.encoder["device"] == "auto"
    validation = said.prepare_options(validation=True)
    assert validation.teacher is None and not validation.passages.teacher_scores
    alone = config(distillation=[{"kind": "embeddings", "teacher": "a", "encoder": {"device": "cpu"}}])
    assert not alone.prepare_options().passages.teacher_scores
    assert alone.prepare_options().teacher.encoder["device"] == "cpu"  # type: ignore[union-attr]
    assert fingerprint(alone.result_keys()) != fingerprint(config().result_keys())


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([{"kind": "embeddings"}], "name it with teacher"),
        ([{"kind": "kl", "teacher": "a"}], "teacher and encoder are for kind=embeddings"),
        ([{"kind": "embeddings", "teacher": "a"}, {"kind": "embeddings", "teacher": "b"}], "vectors of one teacher"),
    ],
)
def test_what_it_cannot_say(parts: list[dict[str, Any]], said: str):
    with pytest.raises(ConfigError, match=said):
        config(distillation=parts)


def _shaken(model: str, folder: Path) -> str:
    """A copy with noise in its weights."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, folder)
    weights = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(5)
    noisy = {name: w + 0.1 * torch.randn(w.shape, generator=generator) for name, w in weights.items()}
    save_file(noisy, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


@pytest.mark.slow
def test_a_student_that_is_its_teacher_has_nothing_to_learn(local_ray: None, data: TrainingData, tmp_path: Path):
    """Lengths, pooling and the rows' order are the same on both ways, or the loss would not be 0."""
    teacher = save_family(tmp_path / "teacher", "bert")
    encoder = {"dtype": "float32", "concurrency": 1, "device": "cpu"}
    prepared = with_teacher(teacher, data, TeacherOptions(teacher, encoder, str(tmp_path)), tmp_path / "cache")
    alone = FOLLOW | {"contrastive_weight": 0.0, "max_steps": 3, "learning_rate": 1e-9}
    assert max(run(Case(teacher, prepared, options=alone)).losses) < 2e-5
    assert min(run(Case(_shaken(teacher, tmp_path / "student"), prepared, options=alone)).losses) > 0.1


@pytest.mark.slow
def test_the_stage_follows_a_teacher(local_ray: None, tmp_path: Path):
    """On Ray Train: the teacher embeds before the workers start, and leaves nothing behind."""
    from raycurate.stages.finetune.stage import STAGE

    recipe = small_recipe(tmp_path)
    teacher = _shaken(recipe["model"], tmp_path / "teacher")
    parts = [{"kind": "embeddings", "teacher": teacher, "encoder": {"dtype": "float32", "concurrency": 1}}]
    changes = {"distillation": parts, "contrastive_weight": 0.0, "num_epochs": 6}
    found = STAGE.run(config_of(recipe, tmp_path / "out", **changes))
    curve = list(logged_losses(tmp_path / "out").values())
    assert np.mean(curve[-5:]) < 0.5 * curve[0]
    assert not (tmp_path / "out" / "_staging").exists()
    assert STAGE.run(config_of(recipe, tmp_path / "out", **changes)).skipped
    assert found.manifest.settings["distillation"][0]["teacher"] == teacher
