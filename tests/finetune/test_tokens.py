"""Tokens of the training texts are the model's own tokenizer's, made once and shared by all processes."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from raycurate.core.errors import ConfigError, InputError, RaycurateError
from raycurate.data.training.training import read_training_data
from raycurate.models.contract import EmbeddingContract
from raycurate.models.options import EncoderOptions
from raycurate.training.batches import prepared as prepared_module
from raycurate.training.batches.prepared import PrepareOptions
from raycurate.training.batches.tokens import (
    CHUNK,
    TextTokens,
    check_lengths,
    model_positions,
    open_tokens,
    padding_id,
    write_tokens,
)
from tests.encoders.tiny import save_llama, save_roberta
from tests.finetune.training_sets import prepared_for, random_data, sentence, write_set
from tests.processes import PATIENCE_S


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYCURATE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def roberta(tmp_path_factory) -> str:
    return save_roberta(tmp_path_factory.mktemp("roberta"))


def how_of(model: str, max_length: int = 8) -> TextTokens:
    return TextTokens(EncoderOptions(model=model), EmbeddingContract.from_checkpoint(model), max_length)


def test_tokens_equal_the_models_own_tokenizer(roberta, tmp_path):
    from transformers import AutoTokenizer

    prompts = {"query": "a bird ", "document": "the "}
    made = prepared_for(roberta, random_data(tmp_path), prompts=prompts, query_max_length=6, passage_max_length=9)
    data = random_data(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(roberta)
    questions = ["a bird " + q for q in data.table["question"].to_pylist()]
    assert [made.queries[i].tolist() for i in range(90)] == tokenizer(questions, truncation=True, max_length=6)[
        "input_ids"
    ]
    texts = ["the " + t for t in data.corpora[0].texts_of(made.passages.row_of)]
    expected = tokenizer(texts, truncation=True, max_length=9)["input_ids"]
    assert [made.documents[i].tolist() for i in range(len(texts))] == expected
    assert made.cut["questions"] == sum(len(q.split()) + 2 > 6 for q in questions) > 0
    assert made.cut["documents"] == sum(len(t.split()) + 2 > 9 for t in texts) > 0
    assert made.pad_id == 1 and made.positions == 64


def test_several_processes_write_the_same_files(roberta, tmp_path):
    draw = random.Random(1)
    texts = [sentence(draw) for _ in range(3 * CHUNK + 100)]
    chunks = [texts[first : first + CHUNK] for first in range(0, len(texts), CHUNK)]
    found = []
    for name, processes in (("alone", 1), ("two", 2)):
        cut = write_tokens(tmp_path, name, iter(chunks), how_of(roberta), count=len(texts), processes=processes)
        tokens = open_tokens(tmp_path, name)
        found.append((cut, tokens.ids.tobytes(), tokens.offsets.tobytes()))
    assert found[0] == found[1]
    assert len(open_tokens(tmp_path, "two")) == len(texts) and open_tokens(tmp_path, "two").lengths.max() == 8


def test_only_documents_that_training_reads_are_tokenised(roberta, tmp_path):
    documents = {f"d{i}": "bird " * (i + 1) for i in range(10)}
    rows = [
        {"question": "rain", "pos_doc": ["d7", "d1"], "neg_doc": ["d3", "d2", "d4"]},
        {"question": "stone", "pos_doc": ["d3"], "neg_doc": ["d9"]},
    ]
    data = read_training_data(write_set(tmp_path, rows, documents))
    rows_used = {n: prepared_for(roberta, data, n).passages.row_of.tolist() for n in (1, 2, 3, 9)}
    assert rows_used == {1: [3, 7], 2: [3, 7, 9], 3: [2, 3, 7, 9], 9: [2, 3, 4, 7, 9]}
    assert prepared_for(roberta, data, 1, cycle_positives=True).passages.row_of.tolist() == [1, 3, 7]


def test_two_processes_read_the_same_mapped_tokens(roberta, tmp_path):
    made = prepared_for(roberta, random_data(tmp_path))
    program = (
        "import sys, hashlib; from raycurate.training.batches.prepared import Prepared; p = Prepared(sys.argv[1]);"
        "print(type(p.documents.ids).__name__, hashlib.sha256(p.documents.ids.tobytes()).hexdigest(), p.ids_of([3])[0])"
    )
    expected = f"memmap {hashlib.sha256(made.documents.ids.tobytes()).hexdigest()} q3"
    runs = [
        subprocess.Popen([sys.executable, "-c", program, made.folder], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [run.communicate(timeout=PATIENCE_S)[0].strip() for run in runs] == [expected] * 2


def test_the_same_data_are_tokenised_once_and_any_change_anew(roberta, tmp_path, monkeypatch):
    calls = []
    write = prepared_module.write_tokens

    def counted(*args, **options):
        calls.append(args[1])
        return write(*args, **options)

    monkeypatch.setattr(prepared_module, "write_tokens", counted)
    data = random_data(tmp_path)
    first = prepared_for(roberta, data)
    assert calls == ["questions", "documents"]
    assert prepared_for(roberta, read_training_data(str(tmp_path / "c.json"))).folder == first.folder
    assert calls == ["questions", "documents"]
    folders = {
        first.folder,
        prepared_for(roberta, data, n_passages=2).folder,
        prepared_for(roberta, data, cycle_positives=True).folder,
        prepared_for(roberta, data, passage_max_length=10).folder,
        prepared_for(roberta, data, prompts={"query": "the "}).folder,
        prepared_for(roberta, data, dataset_instructions=True, prompts={"query": "old "}).folder,
        prepared_for(roberta, random_data(tmp_path / "b", seed=1)).folder,
    }
    # the last two: no instructions in the metadata are no prefixes, which is what the first has
    assert len(folders) == 6
    assert not list((tmp_path / "cache" / "tokens").glob(".*-*"))  # nothing half made


def test_of_processes_that_begin_together_one_makes_the_tokens(roberta, tmp_path, monkeypatch):
    made = []
    write = prepared_module.write_tokens

    def slow(*args, **options):
        made.append(args[1])
        time.sleep(0.2)
        return write(*args, **options)

    monkeypatch.setattr(prepared_module, "write_tokens", slow)
    data = random_data(tmp_path)
    with ThreadPoolExecutor(3) as pool:  # the lock is one of open files, so threads meet it as processes do
        folders = {p.folder for p in pool.map(lambda _: prepared_for(roberta, data), range(3))}
    assert len(folders) == 1 and made == ["questions", "documents"]


def test_a_cache_that_cannot_be_written_is_named(roberta, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RaycurateError, match=r"the cache cannot be written.*RAYCURATE_CACHE"):
        prepared_for(roberta, random_data(tmp_path), data_cache=str(tmp_path / "file"))


def test_the_instructions_of_each_corpus_take_the_prompts_place(roberta, tmp_path):
    rows = [{"question": "rain falls", "pos_doc": ["x"], "neg_doc": ["y"]}]
    documents = {"x": "stone", "y": "dawn"}
    paths = [
        write_set(tmp_path, rows, documents, "one", query_instruction="old bird", passage_instruction="the"),
        write_set(tmp_path, rows, documents, "two"),
    ]
    data = read_training_data(paths)
    words = {i: w for w, i in json.loads((Path(roberta) / "tokenizer.json").read_text())["model"]["vocab"].items()}

    def texts(tokens) -> list[str]:
        return [" ".join(words[i] for i in tokens[row]) for row in range(len(tokens))]

    made = prepared_for(roberta, data, 2, prompts={"query": "at "}, dataset_instructions=True)
    assert texts(made.queries) == ["<s> old bird rain falls </s>", "<s> rain falls </s>"]
    assert texts(made.documents) == ["<s> the stone </s>", "<s> the dawn </s>", "<s> stone </s>", "<s> dawn </s>"]
    made = prepared_for(roberta, data, 2, prompts={"query": "at "})
    assert texts(made.queries) == ["<s> at rain falls </s>"] * 2
    assert made.corpus_of.tolist() == [0, 1]


def test_lengths_beyond_the_models_positions_are_refused(roberta, tmp_path):
    assert model_positions(roberta) == 64  # 66 in config.json, two of them before the first token
    assert check_lengths(roberta, query_max_length=64, passage_max_length=10) == 64
    with pytest.raises(ConfigError, match=r"passage_max_length=512: the model has positions for 64 tokens.*1 to 64"):
        check_lengths(roberta, query_max_length=64, passage_max_length=512)
    with pytest.raises(ConfigError, match=r"query_max_length=65 and passage_max_length=0"):
        check_lengths(roberta, query_max_length=65, passage_max_length=0)
    with pytest.raises(ConfigError, match="passage_max_length=0"):
        PrepareOptions.parse({"passage_max_length": 0}, where="test")
    data = random_data(tmp_path)
    with pytest.raises(ConfigError, match=r"query_max_length=65 and passage_max_length=66"):
        prepared_for(roberta, data, query_max_length=65, passage_max_length=66)


def test_a_tokenizer_without_padding_token_is_refused_unless_one_is_named(tmp_path):
    llama = save_llama(tmp_path / "llama")
    assert padding_id(EncoderOptions(model=llama)) == 1
    without = tmp_path / "without"
    shutil.copytree(llama, without)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (without / name).is_file():
            values = json.loads((without / name).read_text())
            values.pop("pad_token")
            (without / name).write_text(json.dumps(values))
    options = EncoderOptions(model=str(without))
    with pytest.raises(ConfigError, match=r"has no padding token. Set pad_token=eos \(its '</s>'\)"):
        padding_id(options)
    assert padding_id(options, "eos") == 2 and padding_id(options, "bird") == 5
    with pytest.raises(ConfigError, match="has no token '<nowhere>'"):
        padding_id(options, "<nowhere>")
    with pytest.raises(ConfigError, match="no padding token"):
        prepared_for(str(without), random_data(tmp_path))


def test_a_text_without_a_token_is_refused(roberta, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(roberta, bare)
    values = json.loads((bare / "tokenizer.json").read_text())
    values["post_processor"] = None
    (bare / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match="text 2 of the documents gives no token"):
        write_tokens(tmp_path, "documents", iter([["bird"], ["a", " "]]), how_of(str(bare)), count=3, processes=1)


def test_a_real_tokenizer_and_its_file(minilm, tmp_path):
    from transformers import AutoTokenizer

    texts = ["naïve café", "日本語のテキスト", "word " * 400, "def f(x):\n    return x"]
    how = how_of(minilm, 32)
    assert write_tokens(tmp_path, "texts", iter([texts[:1], texts[1:]]), how, count=4) == 1
    tokens = open_tokens(tmp_path, "texts")
    own = AutoTokenizer.from_pretrained(minilm)(texts, truncation=True, max_length=32)["input_ids"]
    assert [row.tolist() for row in tokens] == own and tokens.ids.dtype == np.int32 and tokens.offsets.dtype == np.int64
