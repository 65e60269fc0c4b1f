"""What other tools call an option, for the message about a key that is unknown here.

The names are those of NeMo AutoModel, of the `nemotron embed` recipe, of NeMo Curator and of sentence-transformers.
`raycurate import-config` translates whole files; this is for the one name that a hand types.
"""

from __future__ import annotations

from collections.abc import Iterable

OTHER_NAMES: dict[str, tuple[str, ...]] = {
    # theirs -> ours, in the order of preference; the first that the stage has is named
    "base_model": ("model",),
    "model_name_or_path": ("model",),
    "pretrained_model_name_or_path": ("model",),
    "model_identifier": ("model",),
    "model_id": ("model",),
    "input_path": ("input",),
    "input_dir": ("input",),
    "corpus_dir": ("input",),
    "sdg_input_path": ("input",),
    "eval_data_path": ("input",),
    "train_qa_file_path": ("input",),
    "output_dir": ("output",),
    "output_path": ("output",),
    "checkpoint_dir": ("output",),
    "train_file_output_path": ("output",),
    "train_data_path": ("train",),
    "data_dir_list": ("train",),
    "val_data_path": ("val",),
    "finetuned_model_path": ("finetuned",),
    "train_n_passages": ("n_passages",),
    "q_max_len": ("query_max_length",),
    "p_max_len": ("passage_max_length",),
    "max_seq_length": ("max_length", "query_max_length"),
    "embedding_max_seq_length": ("max_length",),
    "embedding_max_chars": ("max_chars",),
    "embedding_pooling": ("pooling",),
    "embedding_padding_side": ("padding_side",),
    "embedding_model_inference_batch_size": ("batch_tokens",),
    "document_prefix": ("passage_prefix", "prefix"),
    "l2_normalize": ("normalize",),
    "normalize_embeddings": ("normalize",),
    "is_causal": ("bidirectional",),
    "share_encoder": ("separate_encoders",),
    "use_liger_kernel": ("liger",),
    "torch_dtype": ("dtype", "precision"),
    "attn_implementation": ("attention",),
    "do_distributed_inbatch_negative": ("loss",),
    "do_shuffle": ("shuffle",),
    "use_dataset_instruction": ("dataset_instructions",),
    "add_bos_token": ("add_bos",),
    "add_eos_token": ("add_eos",),
    "tokenizer_name_or_path": ("tokenizer",),
    "lr": ("learning_rate",),
    "min_lr": ("min_learning_rate",),
    "lr_warmup_steps": ("warmup_steps",),
    "lr_decay_style": ("schedule",),
    "lr_scheduler_type": ("schedule",),
    "ckpt_every_steps": ("checkpoint_every_steps",),
    "save_steps": ("checkpoint_every_steps",),
    "val_every_steps": ("validate_every_steps",),
    "eval_steps": ("validate_every_steps",),
    "max_recent_checkpoints": ("keep_last",),
    "num_train_epochs": ("num_epochs",),
    "per_device_train_batch_size": ("local_batch_size",),
    "cache_embeddings_dir": ("cache",),
    "groups_json": ("groups",),
    "conversion_seed": ("seed",),
    "n_negatives": ("hard_negatives_to_mine",),
    "num_negatives": ("hard_negatives_to_mine",),
    "use_query_prefix": ("query_prefix",),
    "input_file_extensions": ("file_extensions",),
    "id_column": ("id_field",),
    "text_column": ("text_field",),
    "embedding_column": ("embedding_field",),
    "random_seed": ("random_state", "seed"),
    "n_init_clusters": ("n_clusters",),
    "num_clusters": ("n_clusters",),
    "pairwise_batch_size": ("tile_rows",),
    "clear_output": ("overwrite",),
}
INVERTED = {"is_causal": "bidirectional", "share_encoder": "separate_encoders"}


def called_here(name: str, known: Iterable[str]) -> str | None:
    """What the option that another tool calls `name` is called here, as a sentence; None where nobody knows.

    Args:
        known: the options there are where it stood.
    """
    options = set(known)
    for ours in OTHER_NAMES.get(name, ()):
        if ours in options:
            return f"here it is '{ours}'" + (", the other way round" if INVERTED.get(name) == ours else "")
    return None
