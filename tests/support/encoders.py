"""Tiny random encoders in Hugging Face's and sentence-transformers' layout, each with a tokenizer of its own kind."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from tests.support.checkpoints import CORPUS

KINDS = ["bert", "roberta", "xlm-roberta"]
POSITIONS = 320
HIDDEN = 48
_SHAPE: dict[str, Any] = {
    "hidden_size": HIDDEN, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
}  # fmt: skip
_MORE = ["Schöne Grüße aus München, café, naïve", "中文 的 首都", "query: passage: 3.14 don't", "é à ü ß"]
_BERT, _ROBERTA = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


def word_piece() -> Tokenizer:
    """As BERT's, without capitals."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=list(_BERT), show_progress=False)
    made.train_from_iterator([*CORPUS, *_MORE], trainer)
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return made


def byte_level() -> Tokenizer:
    """As RoBERTa's."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(_ROBERTA),
        show_progress=False,
    )
    made.train_from_iterator([*CORPUS, *_MORE], trainer)
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return made


def unigram() -> Tokenizer:
    """As XLM-RoBERTa's."""
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence([normalizers.NFKC()])
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    trainer = trainers.UnigramTrainer(
        vocab_size=400, special_tokens=list(_ROBERTA), unk_token="<unk>", show_progress=False
    )
    made.train_from_iterator([*CORPUS, *_MORE], trainer)
    made.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True)])
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return made


TOKENIZERS = {"bert": word_piece, "roberta": byte_level, "xlm-roberta": unigram}


def save(
    folder: Path, kind: str = "bert", *, classifies: bool = False, dtype: torch.dtype = torch.float32, **overrides: Any
) -> Path:
    """Writes a model and its tokenizer: one that makes hidden states, or one that `classifies` pairs with one label."""
    import transformers

    stem = {"bert": "Bert", "roberta": "Roberta", "xlm-roberta": "XLMRoberta"}[kind]
    words = TOKENIZERS[kind]()
    config = getattr(transformers, f"{stem}Config")(
        **{
            "vocab_size": words.get_vocab_size() + 3,
            "max_position_embeddings": POSITIONS + (0 if kind == "bert" else 2),
            "type_vocab_size": 2 if kind == "bert" else 1,
            "layer_norm_eps": 1e-12 if kind == "bert" else 1e-5,
            "pad_token_id": 0 if kind == "bert" else 1,
            **({"num_labels": 1} if classifies else {}),
            **_SHAPE,
            **overrides,
        }
    )
    model = getattr(transformers, f"{stem}ForSequenceClassification" if classifies else f"{stem}Model")(config)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # Larger than the usual start, so that attention is far from uniform and errors show.
            weight.normal_(1.0 if "LayerNorm.weight" in name else 0.0, 0.2)
    model.to(dtype)
    model.save_pretrained(folder)
    words.save(str(folder / "tokenizer.json"))
    pad, unk, first, sep, mask = _BERT if kind == "bert" else (*("<pad>", "<unk>", "<s>", "</s>"), "<mask>")
    write(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "BertTokenizer" if kind == "bert" else "PreTrainedTokenizerFast",
            "model_max_length": POSITIONS,
            "pad_token": pad, "unk_token": unk, "cls_token": first, "sep_token": sep, "mask_token": mask,
        },
    )  # fmt: skip
    return folder


def describe(
    folder: Path,
    *,
    pooling: str | Sequence[str] = "mean",
    dense: Sequence[tuple[int, str]] = (),
    normalizes: bool = True,
    **settings: Any,
) -> Path:
    """Adds what sentence-transformers writes. `dense`: width and activation of each layer."""
    modules = [("Transformer", "")]
    _module(folder, modules, "Pooling", {"embedding_dimension": HIDDEN, "pooling_mode": pooling})
    width = HIDDEN
    for out, activation in dense:
        config = {"in_features": width, "out_features": out, "bias": True, "activation_function": activation}
        at = _module(folder, modules, "Dense", config)
        random = torch.Generator().manual_seed(len(modules))
        weights = {"linear.weight": torch.randn(out, width, generator=random), "linear.bias": torch.randn(out)}
        save_file({name: weight * width**-0.5 for name, weight in weights.items()}, at / "model.safetensors")
        width = out
    if normalizes:
        _module(folder, modules, "Normalize", None)
    listed = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (kind, path) in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    write(folder / "config_sentence_transformers.json", settings)
    return folder


def write(file: Path, value: object) -> None:
    """Writes a JSON file."""
    file.write_text(json.dumps(value))


def _module(folder: Path, modules: list[tuple[str, str]], kind: str, config: dict[str, Any] | None) -> Path:
    path = folder / f"{len(modules)}_{kind}"
    path.mkdir(exist_ok=True)
    if config is not None:
        write(path / "config.json", config)
    modules.append((kind, path.name))
    return path
