"""The bundled pair, loaded as its model cards say, in plain transformers and in sentence-transformers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from training import export, prompts
from training.embed import encode
from training.rerank import Judge

MODELS = Path(__file__).parents[3] / "models"
QUESTION = "how do I delete a directory and everything in it"
RIGHT = "Recursively delete a directory tree. If ignore_errors is set, errors are ignored."
WRONG = "Serialize an object to a JSON formatted string, sorted by key."
TEXTS = [RIGHT, WRONG, "x", " ".join([RIGHT, WRONG] * 20)]


@pytest.fixture(scope="module", params=["nano-embed", "nano-rerank"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return Tokenizer.from_file(str(MODELS / request.param / "tokenizer.json"))


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("text", ["yes", "no", "<think>", "</think>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"])
def test_one_token(tokenizer: Tokenizer, text: str) -> None:
    assert len(ids_of(tokenizer, text)) == 1


def test_added_tokens_are_special_as_in_qwen3(tokenizer: Tokenizer) -> None:
    flags = {token.content: token.special for token in tokenizer.get_added_tokens_decoder().values()}
    assert flags == {
        "<|endoftext|>": True,
        "<|im_start|>": True,
        "<|im_end|>": True,
        "<think>": False,
        "</think>": False,
    }
    tokenizer.encode_special_tokens = True
    assert len(ids_of(tokenizer, "<|im_end|>")) > 1
    tokenizer.encode_special_tokens = False


def test_text_comes_back(tokenizer: Tokenizer) -> None:
    text = "naïve café, 东京 12345!\n\n  indented\tdon't"
    assert tokenizer.decode(ids_of(tokenizer, text)) == text
    assert ids_of(tokenizer, "e\u0301") == ids_of(tokenizer, "é"), "NFC"


def test_only_the_embedder_closes_texts() -> None:
    embed, rerank = (Tokenizer.from_file(str(MODELS / n / "tokenizer.json")) for n in ("nano-embed", "nano-rerank"))
    end = embed.token_to_id("<|endoftext|>")
    assert embed.encode("a text").ids == [*ids_of(embed, "a text"), end]
    assert rerank.encode("a text").ids == ids_of(rerank, "a text")


def test_documents_can_be_split_from_the_prompt(tokenizer: Tokenizer) -> None:
    head = prompts.rerank_head(QUESTION)
    for doc in (RIGHT, "(x)", "\n x", "7", "", "  two"):
        assert ids_of(tokenizer, f"{head} {doc}") == ids_of(tokenizer, head) + ids_of(tokenizer, f" {doc}")


@pytest.mark.parametrize(("name", "architecture"), [("nano-embed", "Qwen3Model"), ("nano-rerank", "Qwen3ForCausalLM")])
def test_small_and_labelled(name: str, architecture: str) -> None:
    folder = MODELS / name
    config = json.loads((folder / "config.json").read_text())
    assert (folder / "model.safetensors").stat().st_size <= 20_000_000
    assert config["architectures"] == [architecture]
    assert config["num_key_value_heads"] < config["num_attention_heads"]
    assert config["tie_word_embeddings"]
    assert "Qwen3-" in (folder / "README.md").read_text(), "the card names the models for real work"


def plain_embeddings(texts: list[str]) -> np.ndarray:
    """The model card's recipe."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODELS / "nano-embed", padding_side="left")
    model = AutoModel.from_pretrained(MODELS / "nano-embed", dtype=torch.float32)
    with torch.no_grad():
        hidden = model(**tokenizer(texts, padding=True, return_tensors="pt")).last_hidden_state
    return F.normalize(hidden[:, -1], dim=-1).numpy()


def test_embedder_in_transformers_and_in_training() -> None:
    texts = [prompts.embed_query(QUESTION), *TEXTS]
    vectors = plain_embeddings(texts)
    assert np.isfinite(vectors).all()
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2
    tokenizer = Tokenizer.from_file(str(MODELS / "nano-embed" / "tokenizer.json"))
    with torch.no_grad():
        ours = encode(export.load(MODELS / "nano-embed"), [tokenizer.encode(text).ids for text in texts])
    np.testing.assert_allclose(F.normalize(ours, dim=-1).numpy(), vectors, atol=1e-4)


def test_sentence_transformers_agrees() -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(MODELS / "nano-embed"), device="cpu", model_kwargs={"dtype": torch.float32})
    plain = plain_embeddings([prompts.embed_query(QUESTION), *TEXTS])
    np.testing.assert_allclose(model.encode([QUESTION], prompt_name="query")[0], plain[0], atol=1e-4)
    np.testing.assert_allclose(model.encode(TEXTS), plain[1:], atol=1e-4)


def test_reranker_in_transformers_and_in_training() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = MODELS / "nano-rerank"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    yes, no = (tokenizer.convert_tokens_to_ids(word) for word in ("yes", "no"))
    logits = []
    for doc in TEXTS:
        parts = (prompts.RERANK_PREFIX, f"{prompts.rerank_head(QUESTION)} {doc}", prompts.RERANK_SUFFIX)
        ids = [i for part in parts for i in tokenizer(part, add_special_tokens=False)["input_ids"]]
        with torch.no_grad():
            last = model(torch.tensor([ids])).logits[0, -1]
        logits.append(float(last[yes] - last[no]))
    assert np.isfinite(logits).all()
    assert logits[0] > logits[1] + 1
    judge = Judge(export.load(folder), Tokenizer.from_file(str(folder / "tokenizer.json")))
    with torch.no_grad():
        docs = [judge.document(judge.ids(f" {doc}"), 10_000) for doc in TEXTS]
        ours = judge(judge.opening(), [judge.query(QUESTION)], docs)[0]
    np.testing.assert_allclose(ours.numpy(), logits, atol=1e-4, rtol=1e-5)


def test_recommended_weight() -> None:
    weight = json.loads((MODELS / "nano-rerank" / "winnow.json").read_text())["retrieval_weight"]
    assert 0 < weight < 1
