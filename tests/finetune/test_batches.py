"""A batch by hand: padding, masks and keys; passages by epoch; and batches that depend on their place alone."""

from __future__ import annotations

import pickle
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from raycurate.core.errors import ConfigError, InputError
from raycurate.data.training.training import TrainingData, read_training_data
from raycurate.models.tokenize import TokenBatch
from raycurate.training.batches.batches import Batch, Feed, Place, collate, pad_tokens, prefetch
from raycurate.training.batches.options import PassageOptions
from raycurate.training.batches.order import QuestionOrder, Share, split_batch
from raycurate.training.batches.passages import choose_passages
from raycurate.training.batches.prepared import Prepared
from tests.encoders.tiny import save_roberta
from tests.finetune.test_order import ordering
from tests.finetune.training_sets import prepared_for, random_data, write_set
from tests.processes import PATIENCE_S

PLACE = Place(epoch=0, step=0, micro_step=0, last=True, questions=2)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYCURATE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def roberta(tmp_path_factory) -> str:
    return save_roberta(tmp_path_factory.mktemp("roberta"))


def batch_of(prepared, rows: list[int], epoch: int = 0, **options) -> Batch:
    return collate(prepared, Share(np.array(rows), None), PLACE._replace(epoch=epoch), **options)


# --- padding ------------------------------------------------------------------------------------


def test_rows_are_padded_on_the_right_to_a_multiple():
    tokens = TokenBatch.from_lists([[5, 6, 7], [8], [9, 10]])
    padded = pad_tokens(tokens, np.array([2, 0, 2]), 1)
    assert padded.input_ids.tolist() == [[9, 10, 1], [5, 6, 7], [9, 10, 1]]
    assert padded.attention_mask.tolist() == [[1, 1, 0], [1, 1, 1], [1, 1, 0]]
    assert padded.input_ids.dtype == padded.attention_mask.dtype == torch.int64 and padded.tokens == 7
    assert pad_tokens(tokens, np.array([0]), 1, multiple_of=8).input_ids.tolist() == [[5, 6, 7, 1, 1, 1, 1, 1]]
    assert pad_tokens(tokens, np.array([0]), 1, multiple_of=8, positions=5).input_ids.shape == (1, 5)
    assert pad_tokens(tokens, np.array([0, 1]), 0, multiple_of=3).input_ids.tolist() == [[5, 6, 7], [8, 0, 0]]


def hand_made(folder: Path) -> TrainingData:
    """Two rows of one question with different positives; d9 has the text of d0, d5 answers nothing."""
    documents = {
        "d0": "bird sings",
        "d1": "rain",
        "d2": "stone bridge",
        "d3": "old bird flies",
        "d5": "dawn",
        "d9": "bird sings",
    }
    rows = [
        {"question_id": "q0", "question": "who sings", "pos_doc": ["d0"], "neg_doc": ["d1", "d5"]},
        {"question_id": "q1", "question": "what is old", "pos_doc": ["d2"], "neg_doc": ["d9"]},
        {"question_id": "q0b", "question": "who sings", "pos_doc": ["d3"], "neg_doc": ["d2", "d5"]},
        {"question_id": "q3", "question": "what falls", "pos_doc": ["d1", "d2"], "neg_doc": ["d0", "d3", "d5"]},
    ]
    return read_training_data(write_set(folder, rows, documents))


def test_a_batch_by_hand(roberta, tmp_path):
    prepared = prepared_for(roberta, hand_made(tmp_path), n_passages=3)
    batch = batch_of(prepared, [0, 1, 2], pad_to_multiple_of=1)
    # words are numbered from 4: a bird flies over the old stone bridge and sings at dawn while rain falls
    assert batch.queries.input_ids.tolist() == [[0, 3, 13, 2, 1], [0, 3, 3, 9, 2], [0, 3, 13, 2, 1]]
    assert batch.passages.input_ids.tolist() == [
        [0, 5, 13, 2, 1],  # d0
        [0, 17, 2, 1, 1],  # d1
        [0, 15, 2, 1, 1],  # d5
        [0, 10, 11, 2, 1],  # d2
        [0, 5, 13, 2, 1],  # d9
        [0, 5, 13, 2, 1],  # d9 again: there is no second negative
        [0, 9, 5, 6, 2],  # d3
        [0, 10, 11, 2, 1],  # d2
        [0, 15, 2, 1, 1],  # d5
    ]
    assert batch.passages.attention_mask.sum(1).tolist() == [4, 3, 3, 4, 4, 4, 5, 4, 3]
    columns = batch.columns
    assert columns.positive_Q.tolist() == [0, 3, 6] and columns.listed == 3
    # of "who sings": d0 and d3, which stand in two rows, and d9, which is d0's text; of "what is old": d2
    assert columns.forbidden_QP.int().tolist() == [
        [0, 0, 0, 0, 1, 1, 1, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 1, 0],
        [1, 0, 0, 0, 1, 1, 0, 0, 0],
    ]
    assert batch.question_ids == ["q0", "q1", "q0b"] and batch.real_Q.all() and batch.teacher_QN is None
    assert batch.question_keys_Q[0] == batch.question_keys_Q[2] != batch.question_keys_Q[1]
    # a positive that this row is never trained with is forbidden too: q3's second is d2
    assert batch_of(prepared, [3, 1]).columns.forbidden_QP.int().tolist() == [[0, 0, 0, 1, 0, 0], [0] * 6]


def test_a_question_of_another_corpus_is_another_question(roberta, tmp_path):
    documents = {"x": "bird", "y": "rain", "z": "dawn"}
    first = write_set(tmp_path, [{"question": "who", "pos_doc": ["x"], "neg_doc": ["z"]}], documents, "one")
    second = write_set(tmp_path, [{"question": "who", "pos_doc": ["y"], "neg_doc": ["x"]}], documents, "two")
    batch = batch_of(prepared_for(roberta, read_training_data([first, second]), 2), [0, 1])
    assert len(set(batch.question_keys_Q.tolist())) == 2
    # columns x z | y x: the other corpus's y is no positive of the first's question, its x is the same text as x
    assert batch.columns.forbidden_QP.int().tolist() == [[0, 0, 0, 1], [0, 0, 0, 0]]
    assert len(set(batch.keys.documents_P.tolist())) == 4 and len(set(batch.keys.texts_P.tolist())) == 3


def test_what_differs_in_case_or_white_space_only_is_the_same(roberta, tmp_path):
    documents = {"x": "bird rain", "y": "Bird  RAIN ", "z": "dawn", "w": "old"}
    rows = [
        {"question": "who sings", "pos_doc": ["x"], "neg_doc": ["z"]},
        {"question": " Who SINGS", "pos_doc": ["w"], "neg_doc": ["y"]},
    ]
    batch = batch_of(prepared_for(roberta, read_training_data(write_set(tmp_path, rows, documents)), 2), [0, 1])
    assert batch.question_keys_Q[0] == batch.question_keys_Q[1]
    # columns x z | w y: both questions are one, whose positives are x, its copy y, and w
    assert batch.columns.forbidden_QP.int().tolist() == [[0, 0, 1, 1], [1, 0, 0, 1]]


def test_ids_texts_and_questions_that_are_spelled_alike_have_keys_of_their_own(roberta, tmp_path):
    rows = [{"question": "rain", "pos_doc": ["rain"], "neg_doc": ["bird"]}]
    batch = batch_of(
        prepared_for(roberta, read_training_data(write_set(tmp_path, rows, {"rain": "rain", "bird": "rain"})), 2), [0]
    )
    keys = [batch.question_keys_Q[0], *batch.keys.documents_P, *batch.keys.texts_P]
    assert len({int(k) for k in keys}) == 4 and batch.keys.texts_P[0] == batch.keys.texts_P[1]
    assert sorted(batch.keys.known_K.tolist()) == sorted([int(batch.keys.documents_P[0]), int(batch.keys.texts_P[0])])


def test_masks_equal_a_plain_reading_of_the_training_set(roberta, tmp_path):
    data = random_data(tmp_path)
    prepared = prepared_for(roberta, data, 4)
    corpus, table = data.corpora[0], data.table.to_pylist()
    rows = list(range(0, 90, 7))
    documents = [n for r in rows for n in [table[r]["pos"][0], *(table[r]["neg"] * 3)[:3]]]
    texts = corpus.texts_of(documents)
    for row, forbidden in zip(rows, batch_of(prepared, rows).columns.forbidden_QP.tolist(), strict=True):
        same = [other for other in table if other["question"] == table[row]["question"]]
        answers = set(corpus.texts_of([n for other in same for n in other["pos"]]))
        own = rows.index(row) * 4
        assert forbidden == [text in answers and place != own for place, text in enumerate(texts)]


# --- which passages ---------------------------------------------------------------------------


def spelled(data: TrainingData, epoch: int, options: PassageOptions) -> list[list[str]]:
    chosen = choose_passages(data, options)
    documents, _ = chosen.pick(np.arange(len(data)), epoch)
    return [data.corpora[0].ids_of(chosen.row_of[row]) for row in documents]


def test_positives_by_epoch_and_negatives_in_file_order(tmp_path):
    data = hand_made(tmp_path)
    first = [["d0", "d1", "d5", "d1"], ["d2", "d9", "d9", "d9"], ["d3", "d2", "d5", "d2"], ["d1", "d0", "d3", "d5"]]
    assert spelled(data, 0, PassageOptions(n_passages=4)) == spelled(data, 5, PassageOptions(n_passages=4)) == first
    turning = PassageOptions(n_passages=2, cycle_positives=True)
    assert [row[0] for row in spelled(data, 0, turning)] == ["d0", "d2", "d3", "d1"]
    assert [row[0] for row in spelled(data, 1, turning)] == ["d0", "d2", "d3", "d2"]
    assert spelled(data, 2, turning) == spelled(data, 0, turning)
    assert spelled(data, 1, turning.for_validation()) == spelled(data, 0, PassageOptions(n_passages=2))
    five, none = (turning.model_copy(update={"eval_negative_size": n}).for_validation() for n in (5, 0))
    assert [len(row) for row in spelled(data, 0, five)] == [6] * 4
    assert spelled(data, 0, none) == [["d0"], ["d2"], ["d3"], ["d1"]]
    with pytest.raises(ConfigError, match="eval_negative_size=-1"):
        PassageOptions.parse({"eval_negative_size": -1}, where="test")


def test_questions_without_negatives_are_named_unless_none_are_needed(roberta, tmp_path):
    documents = {"x": "bird", "y": "rain"}
    rows = [{"question_id": f"q{i}", "question": "a", "pos_doc": ["x"], "neg_doc": ["y"][i:]} for i in range(9)]
    data = read_training_data(write_set(tmp_path, rows, documents))
    with pytest.raises(InputError) as caught:
        choose_passages(data, PassageOptions(n_passages=2))
    message = str(caught.value)
    assert message.startswith("8 of 9 questions have no negative document, and n_passages is 2: 'q1' (")
    assert "'q5'" in message and "'q6'" not in message and "and 3 more" in message
    alone = batch_of(prepared_for(roberta, data, 1), [0, 1])
    assert alone.passages.input_ids.shape[0] == 2 and alone.columns.positive_Q.tolist() == [0, 1]
    with pytest.raises(ConfigError, match="n_passages=0"):
        PassageOptions.parse({"n_passages": 0}, where="test")


def test_scores_of_a_teacher(roberta, tmp_path):
    documents = {"x": "bird", "y": "rain", "z": "dawn"}
    scored = [
        {
            "question_id": "s",
            "question": "a",
            "pos_doc": [{"id": "x", "score": 0.75}],
            "neg_doc": [{"id": "y", "score": 0.5}, {"id": "z", "score": -0.25}],
        }
    ]
    data = read_training_data(write_set(tmp_path, scored, documents))
    batch = batch_of(prepared_for(roberta, data, 4, teacher_scores=True), [0])
    assert batch.teacher_QN is not None and batch.teacher_QN.tolist() == [[0.75, 0.5, -0.25, 0.5]]
    assert batch.teacher_QN.dtype == torch.float32
    scored.append({"question_id": "t", "question": "b", "pos_doc": ["x"], "neg_doc": ["y"]})
    data = read_training_data(write_set(tmp_path / "b", scored, documents))
    with pytest.raises(InputError, match="1 of 2 questions have documents without a score: 't'"):
        choose_passages(data, PassageOptions(n_passages=2, teacher_scores=True))
    assert batch_of(prepared_for(roberta, data, 2), [0, 1]).teacher_QN is None


# --- the stream of a rank ---------------------------------------------------------------------


def same(one: Batch, other: Batch) -> bool:
    tensors = [
        (getattr(a, n), getattr(b, n))
        for a, b, names in (
            (one.queries, other.queries, ("input_ids", "attention_mask")),
            (one.passages, other.passages, ("input_ids", "attention_mask")),
            (one.keys, other.keys, ("documents_P", "texts_P", "known_K", "known_offsets_Q1")),
            (one, other, ("real_Q", "question_keys_Q")),
        )
        for n in names
    ]
    return one.place == other.place and all(torch.equal(a, b) for a, b in tensors)


def feed_of(prepared, ranks: int = 1, rank: int = 0, local: int | None = None, **options) -> Feed:
    order = QuestionOrder(prepared.lengths, ordering(**({"seed": 3, "global_batch": 8} | options)))
    return Feed(prepared, order, split_batch(8, ranks=ranks, local_batch=local), rank)


def test_resuming_at_a_step_gives_the_same_batches(roberta, tmp_path):
    prepared = prepared_for(roberta, random_data(tmp_path), cycle_positives=True)
    whole = list(feed_of(prepared, 2, 1, local=2).batches(0, 25))
    assert len(whole) == 50 and [b.place.last for b in whole[:4]] == [False, True, False, True]
    for start in (0, 1, 10, 11, 12, 24, 25):
        # in another process, which gets the feed as the name of the folder
        again = pickle.loads(pickle.dumps(feed_of(prepared, 2, 1, local=2))).prefetched(start, 25, ahead=2)
        assert all(same(a, b) for a, b in zip(again, whole[2 * start :], strict=True))


def test_every_layout_sees_each_question_with_the_same_passages(roberta, tmp_path):
    prepared = prepared_for(roberta, random_data(tmp_path), cycle_positives=True)

    def seen(ranks: int, local: int) -> list[set[tuple[str, tuple[int, ...]]]]:
        found: list[set] = [set() for _ in range(len(feed_of(prepared, drop_last=False).order))]
        for rank in range(ranks):
            for batch in feed_of(prepared, ranks, rank, local, drop_last=False).batches(0, len(found)):
                documents = batch.keys.documents_P.view(len(batch), -1).tolist()
                for name, listed, real in zip(batch.question_ids, documents, batch.real_Q.tolist(), strict=True):
                    if real:
                        assert (name, tuple(listed)) not in found[batch.place.step]
                        found[batch.place.step].add((name, tuple(listed)))
        return found

    alone = seen(1, 8)
    assert sum(map(len, alone)) == 90 and len(alone[-1]) == 2  # the last batch is incomplete
    assert seen(2, 4) == seen(2, 1) == seen(4, 2) == seen(4, 1) == alone


def test_a_run_goes_on_with_another_number_of_ranks(roberta, tmp_path):
    prepared = prepared_for(roberta, random_data(tmp_path))

    def steps(ranks: int, local: int, start: int, end: int) -> list[list[str]]:
        feeds = [feed_of(prepared, ranks, rank, local).batches(start, end) for rank in range(ranks)]
        found: list[list[str]] = [[] for _ in range(end - start)]
        for batch in (b for feed in feeds for b in feed):
            found[batch.place.epoch * 11 + batch.place.step - start] += batch.question_ids
        return [sorted(names) for names in found]

    undisturbed = steps(1, 8, 0, 25)
    assert steps(2, 2, 0, 9) + steps(4, 2, 9, 14) + steps(1, 4, 14, 25) == undisturbed


def test_prepared_data_of_another_machine_are_missed_by_name(tmp_path):
    with pytest.raises(InputError, match=r"no prepared training data here.*RAYCURATE_CACHE"):
        Prepared(str(tmp_path / "elsewhere"))


def test_fillers_are_forbidden_to_everybody(roberta, tmp_path):
    prepared = prepared_for(roberta, random_data(tmp_path))
    share = Share(np.array([4, 7]), np.array([True, False]))
    batch = collate(prepared, share, PLACE)
    assert batch.real_Q.tolist() == [True, False]
    assert batch.columns.forbidden_QP[0].tolist()[3:] == [True] * 3
    plain = batch_of(prepared, [4, 7]).columns.forbidden_QP
    assert torch.equal(batch.columns.forbidden_QP[0, :3], plain[0, :3])


def test_length_buckets_leave_little_padding(roberta, tmp_path):
    prepared = prepared_for(roberta, random_data(tmp_path, questions=400))
    longest = [
        max(prepared.documents.lengths[d] for d in prepared.passages.pick(np.array([row]), 0)[0][0])
        for row in range(400)
    ]
    assert prepared.lengths.tolist() == (prepared.queries.lengths + 3 * np.array(longest)).tolist()

    def padding(window: int) -> float:
        feed = replace(feed_of(prepared, window=window), pad_to_multiple_of=1)
        batches = list(feed.batches(0, len(feed.order)))
        return 1 - sum(b.passages.tokens for b in batches) / sum(b.passages.input_ids.numel() for b in batches)

    assert padding(50) < 0.8 * padding(0)


def test_batches_are_made_ahead_and_errors_arrive_in_their_place():
    made: list[int] = []

    def items(fail_at: int | None = None):
        for i in range(50):
            if i == fail_at:
                raise InputError("the disk is gone")
            made.append(i)
            yield i

    stream = prefetch(items(), 3)
    assert next(stream) == 0
    deadline = time.monotonic() + PATIENCE_S
    while len(made) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(made) == 5  # one taken, three waiting, one in hand
    assert list(stream) == list(range(1, 50))
    got: list[int] = []
    with pytest.raises(InputError, match="the disk is gone"):
        got.extend(prefetch(items(fail_at=4), 3))
    stream = prefetch(items(), 2)
    next(stream)
    stream.close()
    deadline = time.monotonic() + PATIENCE_S
    while any(t.name == "raycurate-batches" for t in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(t.name == "raycurate-batches" for t in threading.enumerate())


def test_a_batch_moves_with_its_keys(roberta, tmp_path):
    batch = batch_of(prepared_for(roberta, random_data(tmp_path)), [0, 1]).to("meta")
    tensors = [batch.queries.input_ids, batch.passages.attention_mask, batch.keys.known_K, batch.real_Q]
    assert all(t.device.type == "meta" for t in tensors) and batch.question_ids == ["q0", "q1"]
