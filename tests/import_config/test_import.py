"""Files as users of the three tools have them, turned into recipes that raycurate itself accepts."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
import yaml

from raycurate.cli import main
from raycurate.core.config import load_recipe
from raycurate.core.errors import ConfigError, InputError
from raycurate.core.other_names import OTHER_NAMES, called_here
from raycurate.import_config import import_config
from raycurate.pipeline import STAGES, config_of

AUTOMODEL = """
recipe: TrainBiEncoderRecipe
seed: 42
temperature: 0.02
step_scheduler: {global_batch_size: 128, local_batch_size: 4, ckpt_every_steps: 500, val_every_steps: 250,
  num_epochs: 1}
dist_env: {backend: nccl, timeout_minutes: 30}
model:
  _target_: nemo_automodel.NeMoAutoModelBiEncoder.from_pretrained
  pretrained_model_name_or_path: meta-llama/Llama-3.2-1B
  pooling: avg
  l2_normalize: true
  is_causal: false
  share_encoder: true
  use_liger_kernel: true
  torch_dtype: bfloat16
  do_distributed_inbatch_negative: false
tokenizer: {pretrained_model_name_or_path: meta-llama/Llama-3.2-1B, add_eos_token: false}
dataset:
  _target_: nemo_automodel.components.datasets.llm.retrieval_dataset.RetrievalDatasetConfig
  data_dir_list: [hf://nvidia/embed-nemotron-dataset-v1/FEVER, own/train.json]
  n_passages: 5
  do_shuffle: true
validation_dataset: {data_dir_list: own/val.json, max_train_samples: 1000}
dataloader:
  collate_fn: {q_max_len: 128, p_max_len: 512, query_prefix: "query:", passage_prefix: "", pad_to_multiple_of: 8}
  shuffle: true
  num_workers: 8
peft: {target_modules: ["*.q_proj"], dim: 16, alpha: 32}
optimizer: {_target_: FusedAdam, lr: 5e-6, weight_decay: 0.01}
lr_scheduler: {lr_warmup_steps: 100}
checkpoint: {enabled: true, checkpoint_dir: ./output/encoder/checkpoints}
distributed: {strategy: fsdp2, dp_size: none, tp_size: 1}
of_tomorrow: {key: 1}
"""
PREP = """
run: {env: {container: image}}
artifact_root: ./output/embed
corpus_id: mine
sdg_input_path: ${artifact_root}/stage0_sdg/mine.jsonl
output_dir: ${artifact_root}/stage1_data_prep
base_model: nvidia/llama-nemotron-embed-1b-v2
quality_threshold: 7.0
train_ratio: 0.8
val_ratio: 0
test_ratio: 0.2
conversion_seed: 42
groups_json: null
hard_negatives_to_mine: 5
hard_neg_margin: 0.95
query_prefix: "query: "
passage_prefix: "passage: "
"""
FINETUNE = """
artifact_root: ./output/embed
base_model: ${oc.env:BASE,nvidia/llama-nemotron-embed-1b-v2}
train_data_path: ${artifact_root}/stage1_data_prep/train_mined.automodel_unrolled.json
checkpoint_dir: ${artifact_root}/stage2_finetune/checkpoints
num_epochs: 3
max_steps: null
global_batch_size: 128
learning_rate: 1e-5
lr_warmup_steps: 5
lr_decay_style: cosine
train_n_passages: 5
pooling: weighted_avg
l2_normalize: true
query_prefix: "query: "
passage_prefix: "passage: "
"""
EVAL = """
artifact_root: ./output/embed
base_model: nvidia/llama-nemotron-embed-1b-v2
finetuned_model_path: ${artifact_root}/stage2_finetune/checkpoints/LATEST/model/consolidated
eval_data_path: ${artifact_root}/stage1_data_prep/eval_beir
output_dir: ${artifact_root}/stage3_eval
k_values: [1, 5, 10, 100]
batch_size: 4
eval_nim: false
nim_url: http://localhost:8000
"""
CURATOR = """
from nemo_curator.stages.deduplication.semantic import SemanticDeduplicationWorkflow
here = "/data"
workflow = SemanticDeduplicationWorkflow(
    input_path="/data/embeddings", output_path="/data/out", cache_path=here, n_clusters=1000, id_field="uid",
    embedding_field="vec", eps=0.05, which_to_keep="easy", random_state=7, distance_metric="cosine",
    read_kwargs={"storage_options": {"anon": True}}, clear_output=True,
)
workflow.run()
"""


def write(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def checked(recipe, folder: Path, *stages: str) -> dict:
    """The checked options of stages, from the text as a user would save it."""
    assert recipe.problem is None
    path = write(folder, "recipe.yaml", recipe.text)
    loaded = load_recipe(path, [], stages=STAGES)
    assert loaded.values == recipe.values
    return {stage: config_of(stage, loaded) for stage in stages}


def left(recipe) -> dict[str, str]:
    return {key: reason for key, _, reason in recipe.left}


def test_a_training_of_automodel(tmp_path):
    recipe = import_config(write(tmp_path, "automodel.yaml", AUTOMODEL))
    options = checked(recipe, tmp_path, "finetune")["finetune"]
    assert options.model == "meta-llama/Llama-3.2-1B"
    assert options.train == ["hf://nvidia/embed-nemotron-dataset-v1/FEVER", "own/train.json"]
    assert options.val == [{"path": "own/val.json", "num_samples": 1000}]
    assert (options.query_max_length, options.passage_max_length, options.n_passages) == (128, 512, 5)
    assert (options.query_prefix, options.passage_prefix) == ("query: ", "")  # their collator puts the space
    assert (options.pooling, options.normalize, options.bidirectional) == ("mean", True, True)
    assert options.separate_encoders is False
    assert (options.checkpoint_every_steps, options.validate_every_steps) == (500, 250)
    assert (options.learning_rate, options.min_learning_rate) == (5e-6, 5e-8)
    assert (options.schedule, options.warmup_steps) == ("cosine", 100)  # the schedule is their default
    assert options.output == "./output/encoder"
    assert (options.lora.dim, options.lora.alpha) == (16, 32)
    assert "num_workers" not in recipe.values["finetune"]
    assert "training workers" in left(recipe)["dataloader.num_workers"]
    assert "no such key" in left(recipe)["of_tomorrow.key"]
    assert any("its space included" in trap for trap in recipe.traps)


def test_every_line_of_a_file_is_taken_or_left_out_with_a_reason(tmp_path):
    recipe = import_config(write(tmp_path, "automodel.yaml", AUTOMODEL))
    told = recipe.text.replace("\n#    ", " ")
    for line in (
        "model.pooling",
        "model.share_encoder",
        "dataloader.collate_fn.q_max_len",
        "optimizer.lr",
        "optimizer._target_",
        "distributed.dp_size",
        "peft.target_modules",
        "validation_dataset.data_dir_list",
        "of_tomorrow.key",
    ):
        assert line in told, line


def test_stages_of_the_nemotron_recipe_become_one(tmp_path):
    files = [write(tmp_path, f"{name}.yaml", text) for name, text in
             (("prep", PREP), ("finetune", FINETUNE), ("eval", EVAL))]  # fmt: skip
    recipe = import_config(files)
    options = checked(recipe, tmp_path, "prep", "finetune", "eval")
    assert recipe.values["workdir"] == "./output/embed"
    assert options["prep"].input == "./output/embed/stage0_sdg/mine.jsonl"
    assert options["prep"].output == "./output/embed/stage1_data_prep"
    assert (options["prep"].val_ratio, options["prep"].corpus_id) == (0, "mine")
    assert options["finetune"].train == f"{options['prep'].output}/train_mined.automodel_unrolled.json"
    assert options["finetune"].output == options["eval"].finetuned == "./output/embed/stage2_finetune"
    assert options["finetune"].pooling == "mean"
    assert any("weighted_avg" in trap and "plain sum" in trap for trap in recipe.traps)
    assert options["finetune"].min_learning_rate == pytest.approx(1e-7)
    assert options["eval"].input == f"{options['prep'].output}/eval_beir"
    assert recipe.text.splitlines()[1].endswith("--from prep --to eval")


def test_a_reference_to_the_environment_keeps_its_default(tmp_path):
    assert import_config(write(tmp_path, "f.yaml", FINETUNE)).values["model"] == (
        "${env:BASE,nvidia/llama-nemotron-embed-1b-v2}"
    )


@pytest.mark.parametrize("form", ["python", "json"])
def test_arguments_of_curator(tmp_path, form):
    if form == "python":
        path = write(tmp_path, "dedup.py", CURATOR)
    else:
        call = ast.parse(CURATOR).body[2].value
        arguments = {
            word.arg: "/data" if word.arg == "cache_path" else ast.literal_eval(word.value) for word in call.keywords
        }
        path = write(tmp_path, "dedup.json", json.dumps(arguments))
    recipe = import_config(path)
    kmeans, dedup = recipe.values["kmeans"], recipe.values["dedup"]
    assert (kmeans["input"], kmeans["n_clusters"], kmeans["id_field"]) == ("/data/embeddings", 1000, "uid")
    assert kmeans["random_state"] == dedup["random_state"] == 7
    assert (dedup["eps"], dedup["which_to_keep"], dedup["decision"]) == (0.05, "easy", "earlier")
    assert dedup["id_field"] == "uid"
    assert "overwrite=true" in left(recipe)["clear_output"]
    assert recipe.values["workdir"] == "/data/out"


def test_without_eps_nothing_is_removed(tmp_path):
    recipe = import_config(write(tmp_path, "a.json", json.dumps({"input_path": "e", "n_clusters": 3})))
    assert recipe.values["dedup"] == {"decision": "earlier", "eps": None}


def test_the_command_prints_or_writes_and_never_over_a_file(tmp_path, capsys):
    source = write(tmp_path, "prep.yaml", PREP)
    assert main(["import-config", source]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["prep"]["hard_negatives_to_mine"] == 5
    target = tmp_path / "recipe.yaml"
    assert main(["import-config", source, "--out", str(target)]) == 0
    assert "keys left out" in capsys.readouterr().out
    before = target.read_text()
    assert main(["import-config", source, "--out", str(target)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert target.read_text() == before


def test_what_raycurate_would_refuse_is_said_at_once(tmp_path, capsys):
    source = write(tmp_path, "big.yaml", AUTOMODEL.replace("num_epochs: 1", "num_epochs: 0"))
    assert main(["import-config", source]) == 2
    said = capsys.readouterr()
    assert "num_epochs=0" in said.err
    assert "num_epochs: 0" in said.out  # the recipe is there to be put right


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", "recipe: TrainCrossEncoderRecipe\nstep_scheduler: {num_epochs: 1}\n", "trains bi-encoders"),
        ("a.yaml", "a: 1\n", "it is not a NeMo AutoModel YAML"),
        ("a.yaml", "- 1\n", "a mapping of options is expected"),
        ("a.yaml", "{a: [", "neither YAML nor JSON"),
        ("a.yaml", "1: 2\n", "a mapping of options is expected"),
        ("a.py", "print(1)\n", "it calls none of"),
        ("a.py", "def (", "it is not Python"),
    ],
)  # fmt: skip
def test_other_files_are_refused_by_name(tmp_path, name, text, message):
    with pytest.raises((ConfigError, InputError), match=message):
        import_config(write(tmp_path, name, text))
    with pytest.raises(InputError, match="no such file"):
        import_config(str(tmp_path / "absent.yaml"))
    (tmp_path / "latin.yaml").write_bytes(b"a: \xff")
    with pytest.raises(InputError, match="cannot be read"):
        import_config(str(tmp_path / "latin.yaml"))


def test_a_python_file_is_read_and_not_run(tmp_path):
    text = f"open({str(tmp_path / 'ran')!r}, 'w')\nKMeansStage(n_clusters=3, input_path=f'{{x}}/e')\n"
    recipe = import_config(write(tmp_path, "a.py", text))
    assert not (tmp_path / "ran").exists()
    assert recipe.values["kmeans"]["n_clusters"] == 3


@pytest.mark.parametrize("theirs", OTHER_NAMES)
def test_a_name_of_another_tool_is_no_option_here_and_its_hint_is_one(theirs):
    options = {name: set(stage.Config.model_fields) for name, stage in STAGES.items()}
    assert any(called_here(theirs, known) for known in options.values())


def test_the_hint_reaches_the_message(capsys):
    assert main(["finetune", "base_model=m", "share_encoder=true", "model=m", "train=t", "output=o"]) == 2
    said = capsys.readouterr().err
    assert "unknown key 'base_model'; here it is 'model'" in said
    assert "here it is 'separate_encoders', the other way round" in said
