"""The model card of a checkpoint: what it was made from, what was measured, and how to load it.

    model/consolidated/README.md

It says what no file beside it says by itself, and shows the code that gives this model's vectors, prompts and pooling
included. It plays no part in whether a checkpoint is whole: numbers that come later are written into it later.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath

from raycurate.core import storage
from raycurate.models.contract import EmbeddingContract
from raycurate.models.sentence_transformers_files import dense_names
from raycurate.training.checkpoints.checkpoints import CARD, CONSOLIDATED, Checkpoint, CheckpointStore

_CONTRACTS = ("contract.json", "document/contract.json")


@dataclass(frozen=True)
class Origin:
    """What a training is made from.

    base: the model's name, with its revision. data: the names of its training data. settings: what shaped it, by name.
    adapted: it trains adapters, so the checkpoint has them by themselves too.
    """

    base: str
    data: tuple[str, ...]
    settings: Mapping[str, object]
    adapted: bool = False


def write_card(store: CheckpointStore, checkpoint: Checkpoint, origin: Origin, *, best: bool = False) -> None:
    """Write, or write anew, the card of a checkpoint whose model is there."""
    folder = storage.join(store.path(checkpoint.name), CONSOLIDATED)
    paths = [storage.join(folder, name) for name in _CONTRACTS]
    found = next((path for path in paths if storage.exists(path)), None)
    if found is None:  # an export of another kind (a test's)
        return
    contract = EmbeddingContract.from_json(storage.read_bytes(found), where=found)
    separate = found == paths[1]
    storage.write_text(
        storage.join(store.path(checkpoint.name), CARD),
        card(checkpoint, contract, origin, separate=separate, best=best),
    )


def card(checkpoint: Checkpoint, contract: EmbeddingContract, origin: Origin, *, separate: bool, best: bool) -> str:
    """The text of the card. separate: questions and documents have an encoder each, in `query/` and `document/`."""
    parts = [
        _front(origin),
        f"# {checkpoint.name}, from {origin.base}",
        _summary(contract, best=best),
        "## Training\n\n" + _table(_training_rows(checkpoint, origin)),
        "## Measured\n\n" + _measured(checkpoint.metrics),
        "## Use\n\n" + "\n\n".join(_ways(contract, separate=separate)),
    ]
    if origin.adapted:
        parts.append(_adapter(contract, "document/adapter" if separate else "adapter"))
    return "\n\n".join(parts) + "\n"


def named_data(sources: list[str]) -> tuple[str, ...]:
    """Sources as a card names them: a hub's data set by its name, a file without the folders it lies in."""
    return tuple(dict.fromkeys(s if s.startswith("hf://") else PurePath(s).name for s in sources))


def _front(origin: Origin) -> str:
    """The YAML block that the Hugging Face hub reads."""
    hub = origin.base.partition("@")[0]
    is_hub_id = hub.count("/") == 1 and not hub.startswith((".", "/", "~", "python:"))
    base = [f"base_model: {hub}"] if is_hub_id else []
    tags = ["tags:", "- feature-extraction", "- sentence-similarity", "- raycurate"]
    return "\n".join(
        ["---", "library_name: sentence-transformers", "pipeline_tag: sentence-similarity", *base, *tags, "---"]
    )


def _summary(contract: EmbeddingContract, *, best: bool) -> str:
    chosen = " It is the best checkpoint of its training." if best else ""
    attention = "each token attends to all" if contract.attention == "bidirectional" else "causal attention"
    rows = [
        ("vector", f"{contract.dimension} numbers{', of length one' if contract.normalize else ''}"),
        ("similarity", "cosine" if contract.normalize else "dot product"),
        ("pooling", f"{contract.pooling}, {attention}"),
        ("longest text", f"{contract.max_length} tokens"),
        *((f"before a {role}", f"`{text}`") for role in ("query", "document") if (text := contract.prompt_for(role))),
    ]
    if contract.matryoshka_dims:
        rows.append(("shorter vectors", ", ".join(map(str, contract.matryoshka_dims))))
    return f"An embedding model for search, trained with raycurate.{chosen}\n\n{_table(rows)}"


def _training_rows(checkpoint: Checkpoint, origin: Origin) -> list[tuple[str, object]]:
    data = ", ".join(f"`{name}`" for name in origin.data)
    steps = f"{checkpoint.step:,} steps, {checkpoint.epoch + 1:,} epochs begun"
    return [("base model", f"`{origin.base}`"), ("data", data), ("trained", steps), *origin.settings.items()]


def _measured(metrics: Mapping[str, float]) -> str:
    rows = [(name, f"{value:.4f}") for name, value in sorted(metrics.items()) if name.startswith(("val_", "dev_"))]
    if not rows:
        return "Nothing was measured of this checkpoint: the training had no validation data."
    said = "`dev_`: search over a whole corpus; `val_`: ranking of the listed passages."
    return f"{said}\n\n{_table(rows)}"


def _table(rows: list[tuple[str, object]] | list[tuple[str, str]]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _ways(contract: EmbeddingContract, *, separate: bool) -> list[str]:
    """How to load it, each with code; FOLDER stands for the folder of this file."""
    query, document = ("FOLDER/query", "FOLDER/document") if separate else ("FOLDER", "FOLDER")
    ways = [
        "`FOLDER` is the folder of this file. The prompts are applied where a way names the role (query, document).",
        "### raycurate, on the command line\n\n"
        "```bash\nraycurate embed input=documents.jsonl output=vectors model=FOLDER role=document\n```",
        "### raycurate, in Python\n\n"
        "```python\n"
        "from raycurate.encoders.base import encode, load_encoder\n"
        "from raycurate.models.options import EncoderOptions\n\n"
        'queries = encode(load_encoder(EncoderOptions(model="FOLDER", role="query")), ["a question"])\n'
        'documents = encode(load_encoder(EncoderOptions(model="FOLDER", role="document")), ["a text"])\n```',
        f"### transformers\n\n```python\n{_transformers(contract, query, document)}\n```",
    ]
    if contract.pooling == "multi_vector":
        return [*ways, "A vector for each token: score a text by the sum, over the query's tokens, of the best match."]
    ways.append(
        "### sentence-transformers\n\n"
        "```python\n"
        "from sentence_transformers import SentenceTransformer\n\n"
        'model = SentenceTransformer("FOLDER")\n'
        'queries = model.encode_query(["a question"])\n'
        'documents = model.encode_document(["a text"])\n```'
    )
    served = (
        f"\nSend every query with `{contract.prompt_for('query')}` before it," if contract.prompt_for("query") else ""
    )
    served += f"\nevery document with `{contract.prompt_for('document')}`." if contract.prompt_for("document") else ""
    ways.append(f"### vLLM\n\n```bash\nvllm serve {document} --runner pooling\n```\n{served.rstrip(',')}".rstrip())
    return ways


def _transformers(contract: EmbeddingContract, query: str, document: str) -> str:
    """Code that makes this model's vectors with transformers alone, Dense heads included."""
    pooled = {
        "mean": "(states * mask).sum(1) / mask.sum(1)",
        "cls": "states[torch.arange(len(states)), mask[..., 0].argmax(1)]",
        "last": "states[torch.arange(len(states)), (mask[..., 0] * torch.arange(1, states.shape[1] + 1)).argmax(1)]",
        "weighted_mean": "(states * (weights := mask * mask.cumsum(1))).sum(1) / weights.sum(1)",
        "multi_vector": "states * mask",
    }[contract.pooling]
    lines = [
        "import torch",
        *(["from safetensors.torch import load_file"] if contract.modules else []),
        "from transformers import AutoModel, AutoTokenizer",
        "",
        "@torch.no_grad()",
        "def embed(folder, texts, prompt):",
        "    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()",
        f"    batch = tokenizer([prompt + text for text in texts], padding=True, truncation=True, "
        f'max_length={contract.max_length}, return_tensors="pt")',
        '    states, mask = model(**batch)[0], batch["attention_mask"][..., None]',
        f"    vectors = {pooled}",
    ]
    for place, dense in zip(dense_names(contract), contract.modules, strict=True):
        bias = ', head["linear.bias"]' if dense.bias else ""
        lines += [
            f'    head = load_file(f"{{folder}}/{place}/model.safetensors")',
            f"    vectors = torch.nn.{dense.activation}()"
            f'(torch.nn.functional.linear(vectors, head["linear.weight"]{bias}))',
        ]
    unit = "torch.nn.functional.normalize(vectors, dim=-1)" if contract.normalize else "vectors"
    lines += [
        f"    return {unit}",
        "",
        f'queries = embed("{query}", ["a question"], {contract.prompt_for("query")!r})',
        f'documents = embed("{document}", ["a text"], {contract.prompt_for("document")!r})',
    ]
    return "\n".join(lines)


def _adapter(contract: EmbeddingContract, place: str) -> str:
    both_ways = contract.attention == "bidirectional"
    needs = (
        "config.is_causal = False  # as adapter_config.json says; PEFT ignores it, with a warning" if both_ways else ""
    )
    code = [
        "import json",
        "from peft import PeftModel",
        "from transformers import AutoConfig, AutoModel",
        "",
        f'adapter = "FOLDER/{place}"',
        'base = json.load(open(f"{adapter}/adapter_config.json"))["base_model_name_or_path"]',
        "config = AutoConfig.from_pretrained(base)",
        *([needs] if needs else []),
        "model = PeftModel.from_pretrained(AutoModel.from_pretrained(base, config=config), adapter)",
    ]
    said = "The files above have the adapters worked in. By themselves, on the base model, they load so:"
    return "\n".join(["## The adapter alone", "", said, "", "```python", *code, "```"])
