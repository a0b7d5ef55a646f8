"""The training forward pass is transformers' Qwen3, prefixes shared or not."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from training import nano_embed, nano_rerank
from training.embed import encode
from training.model import Qwen3, Shape, pad
from training.queries import QueryWriter
from training.rows import Row
from training.static import pool

SHAPE = Shape(vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
              num_key_value_heads=2, head_dim=32)  # fmt: skip


@pytest.fixture(scope="module")
def models() -> tuple[Qwen3, torch.nn.Module]:
    from transformers import Qwen3Config, Qwen3Model

    torch.manual_seed(0)
    ours = Qwen3(SHAPE)
    theirs = Qwen3Model(Qwen3Config(**SHAPE.config())).eval()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@torch.no_grad()
def test_padded_rows(models: tuple[Qwen3, torch.nn.Module]) -> None:
    ours, theirs = models
    ids, lengths = torch.randint(300, (3, 20)), torch.tensor([20, 7, 1])
    expected = theirs(ids).last_hidden_state[torch.arange(3), lengths - 1]
    torch.testing.assert_close(ours(ids, lengths)[0], expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_shared_prefixes(models: tuple[Qwen3, torch.nn.Module]) -> None:
    ours, theirs = models
    head, queries, docs = torch.randint(300, (1, 5)), torch.randint(300, (2, 4)), torch.randint(300, (6, 8))
    short, long = torch.tensor([4, 2]), torch.tensor([8, 3, 5, 8, 1, 2])
    first = ours(head, torch.tensor([5]), keep=True)[1]
    second = ours(queries, short, [first], keep=True)[1]
    hidden = ours(docs, long, [first, second])[0]
    for i in range(6):
        whole = torch.cat([head[0], queries[i // 3, : short[i // 3]], docs[i, : long[i]]])
        expected = theirs(whole[None]).last_hidden_state[0, -1]
        torch.testing.assert_close(hidden[i], expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_nano_embed_scores_like_the_bag_of_tokens() -> None:
    torch.manual_seed(0)
    shape = replace(Shape(), vocab_size=300)
    table = torch.randn(300, 384) * torch.rand(300, 1)
    model = nano_embed.embedder(table, shape, opens=297, query=298, end=299)
    texts = [torch.randint(290, (n,)).tolist() for n in (3, 8, 20, 30)]
    prompt = [297, 5, 6, 7, 8, 9, 298, 10]
    raw = encode(model, [[*t, 299] for t in texts])
    asked = encode(model, [[*prompt, *t, 299] for t in texts])
    bag = F.cosine_similarity(pool(table, texts)[:, None], pool(table, texts)[None], dim=-1)
    ours = F.cosine_similarity(asked[:, None], raw[None], dim=-1)
    assert (ours.argmax(-1) == torch.arange(4)).all()
    assert (ours - bag).abs().max() < 0.25


@torch.no_grad()
def test_nano_rerank_adds_similarity_and_words_found() -> None:
    """Its logit is a + b·cosine + c·(rarity of the shared words, each once) / (tokens of the document + about 700)."""
    torch.manual_seed(0)
    shape = replace(Shape(), vocab_size=300, num_hidden_layers=4, intermediate_size=384)
    table = torch.randn(300, 384)
    codes = F.normalize(torch.randn(300, *nano_rerank.CODE), dim=-1).flatten(1) / nano_rerank.CODE[0] ** 0.5
    rarity = torch.rand(300)
    tokens = {name: 299 - i for i, name in enumerate(nano_rerank.MARKS)}
    model = nano_rerank.reranker(table, codes, rarity, shape, tokens)
    words = torch.arange(tokens[nano_rerank.MARKS[-1]])

    def prompt(query: list[int], doc: list[int]) -> list[int]:
        head: tuple[str | int, ...]
        middle: tuple[str | int, ...]
        head = ("<|im_start|>", "system", "\n", 0, 1, 2, "<|im_end|>", "\n", "<|im_start|>", 3, "\n", "<Instruct", ">:")
        middle = (4, 5, "\n", "<Query", ">:", *query, "\n", "<Document", ">:", *doc)
        tail = ("<|im_end|>", "\n", "<|im_start|>", "assistant", "\n", "<think>", "\n\n", "</think>", "\n\n")
        return [tokens[part] if isinstance(part, str) else part for part in (*head, *middle, *tail)]

    pairs = []
    for _ in range(40):
        query = words[torch.randperm(len(words))[:6]].tolist()
        doc = words[torch.randint(len(words), (int(torch.randint(20, 200, ())),))].tolist()
        pairs.append((query, doc + query[: int(torch.randint(7, ()))] * 2))
    ids, lengths = pad([prompt(query, doc) for query, doc in pairs])
    hidden = model(ids, lengths)[0]
    weight = model.embed_tokens.weight
    logits = hidden @ (weight[tokens["yes"]] - weight[tokens["no"]])

    content = table[:, :186]
    cosine = F.cosine_similarity(pool(content, [q for q, _ in pairs]), pool(content, [d for _, d in pairs]), dim=-1)
    shared = torch.stack([rarity[sorted({*query} & {*doc})].sum() / (len(doc) + 700) for query, doc in pairs])
    features = torch.stack([cosine, shared, torch.ones(len(pairs))], 1)
    fitted = torch.linalg.lstsq(features, logits[:, None]).solution
    assert (fitted[:2] > 0).all()
    assert (features @ fitted)[:, 0].sub(logits).abs().max() < 0.1 * (logits.max() - logits.min())


def test_queries_are_written_from_rows() -> None:
    import random

    writer = QueryWriter({"directory": ["folder"]})
    line = "Recursively delete a directory tree"
    row = Row("docstring", "shelf", "shelf.remove_tree", line, "shelf.remove_tree\nErrors are ignored on request.")
    rng = random.Random(0)
    texts = {writer.write(row, rng) for _ in range(200)}
    assert line in texts
    assert len(texts) > 30
    assert all(texts)
    assert writer.question("Return the size of a file", random.Random(1)) != "Return the size of a file"
    assert "folder" in writer.reword(line, random.Random(0), 1.0)


def test_documents_meet_the_head_at_a_token_boundary() -> None:
    tokenizer = Tokenizer.from_file("models/nano-rerank/tokenizer.json")
    assert tokenizer.encode("<Document>: x", add_special_tokens=False).tokens[0] == "<Document"
