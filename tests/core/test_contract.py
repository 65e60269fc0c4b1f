"""EmbeddingContract: read from files, compared field by field, stored in Parquet schemas."""

import hashlib
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from raycurate.core.errors import ContractError, InputError
from raycurate.models.contract import POOLINGS, SCHEMA_KEY, EmbeddingContract, contract_from_schema
from tests.encoders.tiny import save_llama, save_roberta


@pytest.fixture
def light(minilm, tmp_path) -> Path:
    """MiniLM's folder with its files linked, so that single files can be replaced."""
    shutil.copytree(minilm, tmp_path / "m", copy_function=lambda s, d: Path(d).symlink_to(s))
    return tmp_path / "m"


def write(path: Path, value: object) -> None:
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value))


def test_reads_minilm_from_its_own_files(minilm):
    contract = EmbeddingContract.from_checkpoint(minilm)
    assert contract.weights == hashlib.sha256((Path(minilm) / "model.safetensors").read_bytes()).hexdigest()
    assert (contract.pooling, contract.normalize, contract.attention) == ("mean", True, "bidirectional")
    assert (contract.max_length, contract.dimension, contract.modules) == (256, 384, ())


def test_explicit_arguments_win(minilm):
    contract = EmbeddingContract.from_checkpoint(
        minilm, pooling="weighted_avg", normalize=False, max_length=99, prompts={"query": "q: "}
    )
    assert (contract.pooling, contract.normalize, contract.max_length) == ("weighted_mean", False, 99)
    assert contract.prompt_for("query") == "q: "
    assert contract.prompt_for("document") == ""
    with pytest.raises(ContractError, match="max_length=600 is more than the model's 512 positions"):
        EmbeddingContract.from_checkpoint(minilm, max_length=600)
    with pytest.raises(ContractError, match="did you mean 'mean'"):
        EmbeddingContract.from_checkpoint(minilm, pooling="maen")


def test_prompts_are_literal_and_passage_is_a_documents_prompt(light):
    write(
        light / "config_sentence_transformers.json", {"prompts": {"query": "query: ", "passage": "passage: ", "x": ""}}
    )
    contract = EmbeddingContract.from_checkpoint(str(light))
    assert contract.prompts == {"query": "query: ", "passage": "passage: "}
    assert contract.prompt_for("document") == "passage: "


@pytest.mark.parametrize(
    ("file", "value", "message"),
    [
        ("modules.json", [{"type": "sentence_transformers.models.Transformer", "path": ""},
                          {"type": "sentence_transformers.models.LSTM", "path": "1_LSTM"}], "module 1 is .*LSTM"),
        ("modules.json", [{"type": "sentence_transformers.models.Transformer", "path": ""},
                          {"type": "custom.Pooling", "path": "1_Pooling"}], "module 1 is 'custom.Pooling'"),
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True, "pooling_mode_cls_token": True},
         r"pooling \['cls', 'max'\] is not supported"),
        ("1_Pooling/config.json", {"pooling_mode_mean_tokens": True, "include_prompt": False}, "include_prompt"),
        ("config_sentence_transformers.json", {"truncate_dim": 64}, "truncate_dim"),
    ],
)  # fmt: skip
def test_what_cannot_be_reproduced_is_an_error_that_names_it(light, file, value, message):
    write(light / file, value)
    with pytest.raises(ContractError, match=message):
        EmbeddingContract.from_checkpoint(str(light))


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("avg", "mean"), ("mean_pooling", "mean"), ("last_token", "last"), ("lasttoken", "last"), ("cls_token", "cls"),
     ("weighted_avg", "weighted_mean"), ("weightedmean", "weighted_mean"), ("colbert", "multi_vector"),
     ("mean_sqrt_len_tokens", "mean_sqrt_len"), *zip(POOLINGS, POOLINGS, strict=True)],
)  # fmt: skip
def test_other_tools_names_of_poolings_are_known(minilm, theirs, ours):
    assert EmbeddingContract.from_checkpoint(minilm, pooling=theirs).pooling == ours


def test_the_default_prompt_is_none_of_a_role(light):
    """encode_query and encode_document of sentence-transformers do not ask it; its plain encode does."""
    settings = light / "config_sentence_transformers.json"
    write(settings, {"prompts": {"passage": "p: ", "x": "x: "}, "default_prompt_name": "x"})
    contract = EmbeddingContract.from_checkpoint(str(light))
    assert [contract.prompt_for(role) for role in ("query", "document", "x")] == ["", "p: ", "x: "]
    write(settings, {"prompts": {"passage": "p: ", "document": ""}})
    assert EmbeddingContract.from_checkpoint(str(light)).prompt_for("document") == ""
    write(settings, {"prompts": {"x": "x: "}, "default_prompt_name": "y"})
    with pytest.raises(ContractError, match="default_prompt_name 'y' is none of its prompts"):
        EmbeddingContract.from_checkpoint(str(light))


@pytest.mark.parametrize("build", [save_roberta, save_llama])
def test_a_text_is_cut_to_the_positions_that_there_are(tmp_path, build):
    """RoBERTa's table has 66 rows, of which 64 can be used; a Llama has no table."""
    folder = tmp_path / "m"
    build(folder)
    write(folder / "sentence_bert_config.json", {"max_seq_length": 100})
    write(folder / "modules.json", [{"type": "sentence_transformers.models.Transformer", "path": ""},
                                    {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}])  # fmt: skip
    write(folder / "1_Pooling" / "config.json", {"pooling_mode": "mean"})
    roberta = build is save_roberta
    assert EmbeddingContract.from_checkpoint(str(folder)).max_length == (64 if roberta else 100)
    if roberta:
        with pytest.raises(ContractError, match="max_length=65 is more than the model's 64 positions"):
            EmbeddingContract.from_checkpoint(str(folder), max_length=65)
        with pytest.raises(ContractError, match="max_length=65 is more"):
            (folder / "modules.json").unlink()
            EmbeddingContract.from_checkpoint(str(folder), max_length=65)


def test_lengths_by_role_want_the_users_word(light):
    write(light / "sentence_bert_config.json", {"query_length": 32, "document_length": 180})
    with pytest.raises(ContractError, match=r"query_length=32 and document_length=180.*Set max_length"):
        EmbeddingContract.from_checkpoint(str(light))
    assert EmbeddingContract.from_checkpoint(str(light), max_length=180).max_length == 180


def test_without_modules_json_encoders_are_mean_and_decoders_last(tmp_path):
    roberta = EmbeddingContract.from_checkpoint(save_roberta(tmp_path / "r"))
    assert (roberta.pooling, roberta.attention, roberta.normalize) == ("mean", "bidirectional", False)
    assert roberta.max_length == 64  # 66 rows in the position table, two of them never used
    causal = EmbeddingContract.from_checkpoint(save_llama(tmp_path / "c"))
    assert (causal.pooling, causal.attention) == ("last", "causal")
    both = EmbeddingContract.from_checkpoint(save_llama(tmp_path / "b", causal=False))
    assert (both.pooling, both.attention) == ("mean", "bidirectional")
    bidirec = EmbeddingContract.from_checkpoint(save_llama(tmp_path / "n", model_type="llama_bidirec"))
    assert (bidirec.pooling, bidirec.attention) == ("mean", "bidirectional")


def test_identity_sees_weights_and_tokenizer_and_not_provenance(light):
    one = EmbeddingContract.from_checkpoint(str(light))
    same = one.with_provenance(engine="vllm", dtype="bfloat16", padding_side="none", versions={"vllm": "0"})
    assert one.fingerprint() == same.fingerprint()
    one.require_same(same, here="a", there="b")
    weights = bytearray((light / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (light / "model.safetensors").unlink()
    (light / "model.safetensors").write_bytes(weights)
    write(light / "tokenizer_config.json", {"model_max_length": 512})
    other = EmbeddingContract.from_checkpoint(str(light), normalize=False)
    assert set(one.differences(other)) == {"weights", "tokenizer", "normalize"}
    with pytest.raises(ContractError) as error:
        one.require_same(other, here="the index", there="the model")
    assert "normalize is True in the index and False in the model" in str(error.value)
    assert one.weights in str(error.value)
    assert other.weights in str(error.value)


def test_json_and_schema_round_trips(minilm):
    contract = EmbeddingContract.from_checkpoint(minilm, prompts={"query": "问: "})
    assert EmbeddingContract.from_json(contract.to_json()) == contract
    schema = pa.schema([("id", pa.string())], metadata={"other": "kept", SCHEMA_KEY: contract.to_json()})
    assert contract_from_schema(schema) == contract
    assert schema.metadata[b"other"] == b"kept"
    assert contract_from_schema(pa.schema([])) is None
    with pytest.raises(ContractError, match="not an embedding contract"):
        EmbeddingContract.from_json('{"weights": 1}')


def test_a_folder_that_is_no_model_says_so(tmp_path):
    with pytest.raises(InputError, match=r"no config\.json"):
        EmbeddingContract.from_checkpoint(str(tmp_path))
