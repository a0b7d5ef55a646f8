"""A folder that is used in another way than ours is refused by file and key."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Fast
from tokenizers import normalizers, pre_tokenizers

from services.engine.engine import EmbedEngine, RerankEngine
from services.engine.errors import CheckpointError
from services.engine.types import EngineSettings, Score
from tests.support import encoders
from tests.support.checkpoints import edit_config


@pytest.fixture
def embedder(tmp_path: Path) -> Path:
    return encoders.describe(encoders.save(tmp_path, "bert"))


@pytest.fixture
def reranker(tmp_path: Path) -> Path:
    return encoders.save(tmp_path, "bert", classifies=True)


def load(folder: Path, *, embeds: bool = True) -> Any:
    return (EmbedEngine if embeds else RerankEngine).load(EngineSettings(str(folder), threads=1)).info


def retokenize(folder: Path, change: Callable[[Fast], None]) -> None:
    words = Fast.from_file(str(folder / "tokenizer.json"))
    change(words)
    words.save(str(folder / "tokenizer.json"))


def test_a_reranker_is_no_embedding_model(reranker: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"this is a reranker with a classifier, .* serve it by the rerank worker"
    ):
        load(reranker)


def test_a_classifier_that_no_architecture_names_is_found(reranker: Path) -> None:
    edit_config(reranker, architectures=None)
    with pytest.raises(CheckpointError, match="this is a reranker with a classifier"):
        load(reranker)


def test_an_embedding_model_is_no_reranker(embedder: Path) -> None:
    with pytest.raises(CheckpointError, match="architectures names no ForSequenceClassification: this is no reranker"):
        load(embedder, embeds=False)


def test_a_prompt_before_every_query_of_a_reranker_is_refused(reranker: Path) -> None:
    said = {"model_type": "CrossEncoder", "prompts": {"s": "Say: "}, "default_prompt_name": "s"}
    encoders.write(reranker / "config_sentence_transformers.json", said)
    with pytest.raises(CheckpointError, match="default_prompt_name = 's' puts a prompt before every query"):
        load(reranker, embeds=False)


def test_a_reranker_with_modules_of_its_own_is_refused(reranker: Path) -> None:
    encoders.describe(reranker)
    with pytest.raises(CheckpointError, match=r"modules\.json: Transformer, Pooling, Normalize is not served"):
        load(reranker, embeds=False)


def test_an_activation_of_its_own_is_refused(reranker: Path) -> None:
    edit_config(reranker, sentence_transformers={"activation_fn": "torch.nn.modules.activation.Tanh"})
    with pytest.raises(CheckpointError, match=r"activation_fn = 'torch\.nn\.modules\.activation\.Tanh' is not served"):
        load(reranker, embeds=False)


def test_the_score_of_a_saved_cross_encoder(reranker: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    import torch
    from sentence_transformers import CrossEncoder

    saved = tmp_path_factory.mktemp("saved")
    CrossEncoder(str(reranker), device="cpu", activation_fn=torch.nn.Identity()).save_pretrained(str(saved))
    assert load(saved, embeds=False).capabilities.score is Score.LOGIT
    CrossEncoder(str(reranker), device="cpu").save_pretrained(str(saved))
    assert load(saved, embeds=False).capabilities.score is Score.PROBABILITY


def test_a_saved_sentence_transformer_is_served(embedder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    from sentence_transformers import SentenceTransformer

    saved = tmp_path_factory.mktemp("saved")
    SentenceTransformer(str(embedder), device="cpu").save_pretrained(str(saved))
    assert load(saved).dimensions == encoders.HIDDEN


@pytest.mark.parametrize("embeds", [True, False])
def test_a_tokenizer_that_adds_nothing_is_refused(tmp_path: Path, embeds: bool) -> None:
    folder = encoders.save(tmp_path, "bert", classifies=not embeds)
    words = json.loads((folder / "tokenizer.json").read_text())
    words["post_processor"] = None
    encoders.write(folder / "tokenizer.json", words)
    with pytest.raises(
        CheckpointError, match=r"tokenizer\.json: no post_processor puts tokens like \[CLS\] and \[SEP\]"
    ):
        load(folder, embeds=embeds)


def test_lower_case_is_obeyed_or_refused(embedder: Path) -> None:
    encoders.write(embedder / "sentence_bert_config.json", {"do_lower_case": True})
    assert load(embedder).dimensions == encoders.HIDDEN

    def keep(words: Fast) -> None:
        words.normalizer = normalizers.BertNormalizer(lowercase=False)

    retokenize(embedder, keep)
    with pytest.raises(CheckpointError, match=r"do_lower_case is true, but tokenizer\.json keeps capitals"):
        load(embedder)

    def lower(words: Fast) -> None:
        words.normalizer = normalizers.Sequence([normalizers.Lowercase(), words.normalizer])

    retokenize(embedder, lower)
    assert load(embedder).dimensions == encoders.HIDDEN


@pytest.mark.parametrize(
    "said", [{"do_lower_case": False}, {"strip_accents": False}, {"tokenize_chinese_chars": False}]
)
def test_a_tokenizer_of_which_two_files_say_different_things_is_refused(embedder: Path, said: dict[str, Any]) -> None:
    def settle(words: Fast) -> None:
        words.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=True, handle_chinese_chars=True)

    retokenize(embedder, settle)
    encoders.write(embedder / "tokenizer_config.json", said)
    (key,) = said
    with pytest.raises(
        CheckpointError, match=re.escape(f"tokenizer_config.json: {key} is False, tokenizer.json says True")
    ):
        load(embedder)


def test_a_frame_that_a_text_could_forge_is_refused(embedder: Path) -> None:
    def whole_words(words: Fast) -> None:
        words.normalizer = None
        words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()

    retokenize(embedder, whole_words)
    with pytest.raises(CheckpointError, match=re.escape("'[CLS]', which frames a text, is also a word")):
        load(embedder)


@pytest.mark.parametrize(
    ("said", "typed"),
    [
        ({}, True),
        ({"tokenizer_class": "BertTokenizerFast"}, True),
        ({"tokenizer_class": "DistilBertTokenizer"}, False),
        ({"tokenizer_class": "TokenizersBackend"}, False),
        ({"model_input_names": ["input_ids", "attention_mask"]}, False),
        ({"tokenizer_class": "DistilBertTokenizer", "model_input_names": ["input_ids", "token_type_ids"]}, True),
    ],
)
def test_a_pair_has_types_if_its_tokenizer_gives_them(reranker: Path, said: dict[str, Any], typed: bool) -> None:
    from services.engine.checkpoint.checkpoint import Checkpoint
    from services.engine.models.encoder.compatibility import has_types
    from services.engine.models.encoder.config import EncoderConfig

    encoders.write(reranker / "tokenizer_config.json", said)
    checkpoint = Checkpoint.open(str(reranker))
    assert has_types(checkpoint, EncoderConfig.parse(checkpoint.raw_config)) == typed


@pytest.mark.parametrize(
    ("file", "said", "why"),
    [
        ("config.json", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"quantised \(GPTQ, 4 bits\)"),
        ("config.json", {"auto_map": {"AutoModel": "modeling.My"}}, "needs code of its own, which is never run"),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": "x"}}, "auto_map: its own code is never run"),
    ],
)
def test_what_no_family_serves_is_refused(embedder: Path, file: str, said: dict[str, Any], why: str) -> None:
    encoders.write(embedder / file, {**json.loads((embedder / file).read_text()), **said})
    with pytest.raises(CheckpointError, match=why):
        load(embedder)
