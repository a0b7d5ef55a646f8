"""config.json of an encoder: read as transformers reads it, or refused by key."""

from typing import Any

import pytest

from services.engine.errors import CheckpointError
from services.engine.models.encoder.config import EncoderConfig

RAW: dict[str, Any] = {
    "model_type": "bert", "architectures": ["BertModel"], "vocab_size": 100, "hidden_size": 48, "intermediate_size": 80,
    "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 512, "pad_token_id": 0,
}  # fmt: skip


def parse(**changes: Any) -> EncoderConfig:
    raw = {**RAW, **changes}
    return EncoderConfig.parse({key: value for key, value in raw.items() if value is not None})


def test_defaults_are_those_of_transformers() -> None:
    from transformers import BertConfig

    config, theirs = parse(), BertConfig()
    assert config.layer_norm_eps == theirs.layer_norm_eps
    assert config.activation == theirs.hidden_act
    assert config.type_vocab_size == theirs.type_vocab_size
    assert config.head_dim == 12
    assert not config.classifies


@pytest.mark.parametrize(
    ("kind", "stem", "padding", "first"),
    [
        ("bert", "Bert", 0, 0),
        ("bert", "Bert", 3, 0),
        ("roberta", "Roberta", 1, 2),
        ("xlm-roberta", "XLMRoberta", 0, 1),
        ("xlm-roberta", "XLMRoberta", None, 2),
    ],
)
def test_positions_begin_behind_the_padding_token_of_a_roberta(
    kind: str, stem: str, padding: int | None, first: int
) -> None:
    config = parse(model_type=kind, architectures=[f"{stem}Model"], max_position_embeddings=514, pad_token_id=padding)
    assert (config.first_position, config.max_position_embeddings) == (first, 514 - first)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"position_embedding_type": "relative_key"}, "position_embedding_type = 'relative_key' is not supported"),
        ({"position_embedding_type": "rotary"}, "position_embedding_type = 'rotary' is not supported"),
        ({"hidden_act": "quick_gelu"}, "hidden_act = 'quick_gelu' is not supported"),
        ({"is_decoder": True}, "is_decoder = True is not supported"),
        ({"add_cross_attention": True}, "add_cross_attention = True is not supported"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ({"num_attention_heads": 5}, "hidden_size is not a multiple of num_attention_heads"),
        ({"num_hidden_layers": 0}, "must each be at least 1"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"vocab_size": "many"}, "invalid literal"),
        ({"architectures": ["BertForTokenClassification"]}, r"architectures = \['BertForTokenClassification'\] is not"),
        ({"architectures": ["RobertaModel"]}, "only BertModel, BertForMaskedLM and BertForSequenceClassification"),
        ({"architectures": ["BertForSequenceClassification"]}, "the classifier has 2 labels; only rerankers with one"),
        (
            {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "a", "1": "b", "2": "c"}},
            "has 3 labels",
        ),
    ],
)
def test_what_would_be_computed_otherwise_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        parse(**changes)


def test_a_classifier_of_one_label_is_a_reranker() -> None:
    assert parse(architectures=["BertForSequenceClassification"], id2label={"0": "LABEL_0"}).classifies
