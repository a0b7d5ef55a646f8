"""The files that transformers and sentence-transformers read beside a checkpoint."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from bench.shapes import Role, is_encoder
from bench.vocabulary import BERT_SPECIAL, XLM_SPECIAL
from services.engine.checkpoint.sentence_transformers import Described
from services.engine.models.qwen3.prompts import (
    DEFAULT_INSTRUCTION,
    EMBED_END,
    EMBED_QUERY,
    RERANK_PREFIX,
    RERANK_SUFFIX,
)

# The prompt of Qwen3-Reranker as a chat template, as sentence-transformers requires.
_CHAT_TEMPLATE = (
    "{%- set ns = namespace(query='', document='', task='" + DEFAULT_INSTRUCTION + "') -%}"
    "{%- for message in messages -%}"
    "{%- if message.role == 'query' -%}{%- set ns.query = message.content -%}{%- endif -%}"
    "{%- if message.role == 'document' -%}{%- set ns.document = message.content -%}{%- endif -%}"
    "{%- endfor -%}"
    "{{- " + json.dumps(RERANK_PREFIX) + " -}}"
    "{{- '<Instruct>: ' + ns.task + '\\n<Query>: ' + ns.query + '\\n<Document>: ' + ns.document -}}"
    "{{- " + json.dumps(RERANK_SUFFIX) + " -}}"
)
_QWEN3_TOKENIZER = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "model_max_length": 131072,
    "pad_token": EMBED_END,
    "eos_token": "<|im_end|>",
    "clean_up_tokenization_spaces": False,
}
_TRANSFORMER: dict[Role, dict[str, Any]] = {
    "embed": {"max_seq_length": 32768, "do_lower_case": False},
    "rerank": {
        "transformer_task": "text-generation",
        "modality_config": {
            "text": {"method": "forward", "method_output_name": "logits"},
            "message": {"method": "forward", "method_output_name": "logits", "format": "flat"},
        },
        "module_output_name": "causal_logits",
    },
}
_ST = "sentence_transformers.models"
_EMBED_MODULES = [f"{_ST}.Transformer", f"{_ST}.Pooling", f"{_ST}.Normalize"]
_RERANK_MODULES = [
    "sentence_transformers.base.modules.Transformer",
    "sentence_transformers.cross_encoder.modules.LogitScore",
]
# Of all-MiniLM-L6-v2 and of bge-m3: where a text is cut, and what makes one vector of its tokens'.
_BERT_TOKENS, _XLM_TOKENS = 256, 8192


def complete(folder: Path, role: Role, tokenizer: Tokenizer) -> None:
    """Adds them to a folder with config.json and tokenizer.json."""
    config = json.loads((folder / "config.json").read_text())
    if is_encoder(config):
        _complete_encoder(folder, role, config)
    elif role == "embed":
        _complete_embedder(folder, config)
    else:
        _complete_reranker(folder, tokenizer)


def query_prompt(folder: Path) -> str:
    """What is put before a query, as the folder says."""
    return Described(folder).prompts.get("query", "")


def _complete_embedder(folder: Path, config: dict[str, Any]) -> None:
    """Qwen3-Embedding."""
    _write(folder / "tokenizer_config.json", _QWEN3_TOKENIZER)
    _write(folder / "sentence_bert_config.json", _TRANSFORMER["embed"])
    prompts = {"query": EMBED_QUERY.format(instruction=DEFAULT_INSTRUCTION), "document": ""}
    _write(folder / "config_sentence_transformers.json", {"prompts": prompts, "similarity_fn_name": "cosine"})
    _write_modules(folder, _EMBED_MODULES, [_pooling(config, "lasttoken"), None])


def _complete_reranker(folder: Path, tokenizer: Tokenizer) -> None:
    """Qwen3-Reranker."""
    _write(folder / "tokenizer_config.json", _QWEN3_TOKENIZER)
    _write(folder / "sentence_bert_config.json", _TRANSFORMER["rerank"])
    ids = {"true_token_id": tokenizer.token_to_id("yes"), "false_token_id": tokenizer.token_to_id("no")}
    _write(folder / "config_sentence_transformers.json", {"model_type": "CrossEncoder"})
    _replace(folder / "chat_template.jinja", _CHAT_TEMPLATE)
    _write_modules(folder, _RERANK_MODULES, [ids])


def _complete_encoder(folder: Path, role: Role, config: dict[str, Any]) -> None:
    """all-MiniLM-L6-v2, bge-m3, or a classifier, which needs no modules."""
    bert = config["model_type"] == "bert"
    names = ("pad", "unk", "cls", "sep", "mask") if bert else ("cls", "pad", "sep", "unk")
    special = dict(zip(names, BERT_SPECIAL if bert else XLM_SPECIAL, strict=True))
    tokens = _BERT_TOKENS if bert else _XLM_TOKENS
    _write(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": tokens}
        | {f"{name}_token": token for name, token in special.items()},
    )
    if role == "embed":
        _write(folder / "sentence_bert_config.json", {"max_seq_length": tokens, "do_lower_case": False})
        _write_modules(folder, _EMBED_MODULES, [_pooling(config, "mean_tokens" if bert else "cls_token"), None])


def _pooling(config: dict[str, Any], mode: str) -> dict[str, Any]:
    modes = {f"pooling_mode_{name}": name == mode for name in ("cls_token", "mean_tokens", "lasttoken")}
    return {"word_embedding_dimension": config["hidden_size"], **modes}


def _write_modules(folder: Path, kinds: Sequence[str], configs: Sequence[dict[str, Any] | None]) -> None:
    """`configs`: of all modules but the first, whose files lie in the folder itself."""
    names = ["", *(f"{index}_{kind.rpartition('.')[2]}" for index, kind in enumerate(kinds) if index)]
    for name, config in zip(names[1:], configs, strict=True):
        (folder / name).mkdir(exist_ok=True)
        if config:
            _write(folder / name / "config.json", config)
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": kind}
        for index, (kind, path) in enumerate(zip(kinds, names, strict=True))
    ]
    # Written last: its presence marks the folder as complete.
    _write(folder / "modules.json", modules)


def _write(path: Path, value: object) -> None:
    _replace(path, json.dumps(value, indent=2))


def _replace(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)  # never write through a link
    path.write_text(text)
