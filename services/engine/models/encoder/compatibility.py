"""Whether a folder is what a worker serves: what the files beside the weights say of texts."""

import json
import re
from typing import Any

from services.engine.checkpoint.checkpoint import Checkpoint
from services.engine.checkpoint.sentence_transformers import Described, optional_json
from services.engine.checkpoint.tensors import Tensors
from services.engine.errors import CheckpointError
from services.engine.models.encoder.config import EncoderConfig
from services.engine.text.tokenizer import Tokenizer

# transformers' tokenizers that give a model no types. Its version 4's PreTrainedTokenizerFast, with which those BERTs
# were trained that name it, did; version 5's own is called TokenizersBackend.
_UNTYPED = re.compile(r"Roberta|DistilBert|TokenizersBackend")
# What transformers' BertTokenizer is told, and what tokenizer.json calls it.
_SAID_TWICE = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}


def check_embedder(checkpoint: Checkpoint, config: EncoderConfig, tensors: Tensors) -> None:
    """Raises CheckpointError for a model that makes scores."""
    if config.classifies or any(name in tensors for name in ("classifier.weight", "classifier.out_proj.weight")):
        raise CheckpointError(
            f"{checkpoint.name}: config.json: this is a reranker with a classifier, not an embedding model; serve it by"
            " the rerank worker"
        )


def check_reranker(checkpoint: Checkpoint, config: EncoderConfig, described: Described) -> None:
    """Raises CheckpointError for a model that makes no scores, or is given more than the pair."""
    name, settings = checkpoint.name, described.settings
    if not config.classifies:
        raise CheckpointError(
            f"{name}: config.json: architectures names no ForSequenceClassification: this is no reranker; serve an"
            " embedding model by the embed worker"
        )
    if described.modules and described.kinds != ["Transformer"]:
        raise CheckpointError(f"{name}: modules.json: {', '.join(described.kinds)} is not served, only Transformer")
    if described.prompts.get(default := settings.get("default_prompt_name")):
        raise CheckpointError(
            f"{name}: config_sentence_transformers.json: default_prompt_name = {default!r} puts a prompt before every"
            " query, which is not served"
        )


def check_text(checkpoint: Checkpoint, tokenizer: Tokenizer) -> None:
    """Raises CheckpointError if texts are read in another way than tokenizer.json alone says."""
    name, folder = checkpoint.name, checkpoint.folder
    before, after = tokenizer.framed()
    if not len(before) or not len(after):
        raise CheckpointError(
            f"{name}: tokenizer.json: no post_processor puts tokens like [CLS] and [SEP] around a text; save it by"
            " transformers (save_pretrained of the tokenizer)"
        )
    if token := tokenizer.forgeable([*before, *after]):
        raise CheckpointError(
            f"{name}: tokenizer.json: {token!r}, which frames a text, is also a word of its vocabulary, so any text"
            " could forge it"
        )
    normalizers = _normalizers(checkpoint)
    lowers = any(part.get("type") == "Lowercase" or part.get("lowercase") for part in normalizers)
    if optional_json(folder / "sentence_bert_config.json").get("do_lower_case") and not lowers:
        raise CheckpointError(
            f"{name}: sentence_bert_config.json: do_lower_case is true, but tokenizer.json keeps capitals; give its"
            " normalizer a Lowercase"
        )
    said = optional_json(folder / "tokenizer_config.json")
    for part in normalizers:
        if part.get("type") != "BertNormalizer":
            continue
        for key, own in _SAID_TWICE.items():
            if said.get(key) is not None and part.get(own) is not None and bool(said[key]) != bool(part[own]):
                raise CheckpointError(
                    f"{name}: tokenizer_config.json: {key} is {said[key]!r}, tokenizer.json says {part[own]!r};"
                    " one of the two is stale: save the tokenizer anew"
                )


def has_types(checkpoint: Checkpoint, config: EncoderConfig) -> bool:
    """Whether the model is told which of a pair's texts a token belongs to, as transformers' tokenizer would."""
    said = optional_json(checkpoint.folder / "tokenizer_config.json")
    if isinstance(names := said.get("model_input_names"), list):
        return config.type_vocab_size > 1 and "token_type_ids" in names
    return config.type_vocab_size > 1 and not _UNTYPED.search(str(said.get("tokenizer_class")))


def _normalizers(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """The parts of tokenizer.json's normalizer."""
    normalizer = json.loads(checkpoint.tokenizer_file.read_text("utf-8")).get("normalizer") or {}
    return list(normalizer.get("normalizers") or [normalizer])
