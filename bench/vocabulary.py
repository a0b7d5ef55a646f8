"""Tokenizers of random encoders. The benches' own words are a token each, as common words are in the published
vocabularies; other words are spelled."""

import math
import string

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from bench.texts import WORDS

BERT_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
XLM_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]  # with the ids that position numbers depend on
_SPELLED = string.ascii_letters + string.digits + string.punctuation
_SPELLED_COST = -20.0  # less likely than any word


def tokenizer(model_type: str) -> Tokenizer:
    """WordPiece for BERT, a unigram model for XLM-RoBERTa, with their special tokens around a text and a pair."""
    return _wordpiece() if model_type == "bert" else _unigram()


def _wordpiece() -> Tokenizer:
    pieces = [*BERT_SPECIAL, *_SPELLED, *(f"##{sign}" for sign in _SPELLED), *WORDS]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )  # fmt: skip
    made.add_special_tokens(BERT_SPECIAL)
    return made


def _unigram() -> Tokenizer:
    words = [f"▁{form}" for word in WORDS for form in (word, word.capitalize())]
    costs = dict.fromkeys(XLM_SPECIAL, 0.0)
    costs |= {word: -math.log(rank + 2.0) for rank, word in enumerate(dict.fromkeys(words))}
    costs |= dict.fromkeys(("▁", *_SPELLED), _SPELLED_COST)
    made = Tokenizer(models.Unigram(list(costs.items()), unk_id=XLM_SPECIAL.index("<unk>")))
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    made.decoder = decoders.Metaspace()
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>",
        special_tokens=[(token, XLM_SPECIAL.index(token)) for token in ("<s>", "</s>")],
    )  # fmt: skip
    made.add_special_tokens(XLM_SPECIAL)
    return made
