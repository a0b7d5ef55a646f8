"""Pairs: the tokens and their types are the tokenizer's own, and only documents are cut."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer as Fast
from tokenizers import models, pre_tokenizers, processors

from services.engine.errors import CheckpointError, InvalidInput
from services.engine.text.pairs import PairPrompts
from services.engine.text.tokenizer import Tokenizer
from services.engine.types import Failure, Truncation
from tests.support.encoders import KINDS, TOKENIZERS

QUERY, DOCUMENT = "what is the capital of China?", "The capital of China, café, is Beijing"
APART = 1000


def words(folder: Path, made: Fast) -> Tokenizer:
    made.save(str(folder / "tokenizer.json"))
    return Tokenizer(folder / "tokenizer.json", APART)


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Tokenizer:
    return words(tmp_path, TOKENIZERS[request.param]())


def build(tokenizer: Tokenizer, *documents: str, query: str = QUERY, **how: Any) -> list[Any]:
    how = {"instruction": None, "truncation": Truncation.END, "max_tokens": 999, **how}
    shared, prompts = PairPrompts(tokenizer, APART).build(query, documents, **how)
    assert shared == 0
    return list(prompts)


SEP, CLS, S = ("[SEP]", 0), ("[CLS]", 1), ("$", 9)
PROCESSORS = {
    "BertProcessing": processors.BertProcessing(SEP, CLS),
    "RobertaProcessing": processors.RobertaProcessing(SEP, CLS),
    "TemplateProcessing": processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS]:1 [CLS] $A:1 [SEP] $B [SEP]:1", special_tokens=[SEP, CLS]
    ),
}
PROCESSORS |= {
    f"{name} in a Sequence": processors.Sequence([one, processors.ByteLevel()]) for name, one in PROCESSORS.items()
}


@pytest.mark.parametrize("kind", PROCESSORS)
def test_every_post_processor(tmp_path: Path, kind: str) -> None:
    vocabulary = {word: id for id, word in enumerate(["[SEP]", "[CLS]", "a", "b", "[UNK]", "what", "is", "gravity"])}
    made = Fast(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = PROCESSORS[kind]
    tokenizer = words(tmp_path, made)
    PairPrompts(tokenizer, APART).check()
    (prompt,) = build(tokenizer, "gravity is a b", query="what is")
    ids, types = tokenizer.reference("what is", "gravity is a b")
    assert np.array_equal(prompt.tokens, ids + APART * types)


@pytest.mark.parametrize("document", [DOCUMENT, "", "a", " b "])
def test_the_tokens_are_those_of_the_pair(tokenizer: Tokenizer, document: str) -> None:
    (prompt,) = build(tokenizer, document)
    ids, types = tokenizer.reference(QUERY, document)
    assert np.array_equal(prompt.tokens, ids + APART * types)
    assert not prompt.truncated


def test_types_may_be_left_out(tokenizer: Tokenizer) -> None:
    _, (prompt,) = PairPrompts(tokenizer, 0).build(
        QUERY, [DOCUMENT], instruction=None, truncation=Truncation.END, max_tokens=99
    )
    assert not isinstance(prompt, Failure)
    assert np.array_equal(prompt.tokens, tokenizer.reference(QUERY, DOCUMENT)[0])


@pytest.mark.parametrize("truncation", [Truncation.END, Truncation.START])
def test_only_the_document_is_cut(tokenizer: Tokenizer, truncation: Truncation) -> None:
    (whole,) = build(tokenizer, DOCUMENT)
    document = tokenizer.encode([DOCUMENT])[0]
    frame = tokenizer.framed_pair()
    (cut,) = build(tokenizer, DOCUMENT, truncation=truncation, max_tokens=len(whole.tokens) - 3)
    assert cut.truncated
    kept = document[:-3] if truncation is Truncation.END else document[3:]
    query = tokenizer.encode([QUERY])[0]
    expected = np.concatenate([frame.before, query, frame.between, kept, frame.after])
    assert np.array_equal(cut.tokens % APART, expected)
    assert np.array_equal(cut.tokens // APART, [*tokenizer.reference(QUERY, DOCUMENT)[1][: len(expected)]])


def test_a_document_that_is_too_long_fails_alone(tokenizer: Tokenizer) -> None:
    long, short, odd = build(tokenizer, DOCUMENT * 9, "a", "\ud800", truncation=Truncation.ERROR, max_tokens=60)
    assert isinstance(long, Failure)
    assert "documents[0]" in str(long.error)
    assert not isinstance(short, Failure)
    assert "documents[2]: is not valid Unicode" in str(odd.error)


def test_a_query_that_leaves_no_room_is_refused(tokenizer: Tokenizer) -> None:
    (whole,) = build(tokenizer, "")
    assert build(tokenizer, "a b c", max_tokens=len(whole.tokens) + 1)[0].truncated
    with pytest.raises(InvalidInput, match=r"query: it takes .* no room is left"):
        build(tokenizer, "a", max_tokens=len(whole.tokens))


def test_an_instruction_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidInput, match="instruction: this model takes no instructions; leave it out"):
        build(tokenizer, "a", instruction="Find it")


def test_a_token_that_the_model_has_not_fails_alone(tmp_path: Path) -> None:
    made = TOKENIZERS["bert"]()
    made.add_tokens(["beyond"])
    made.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path / "tokenizer.json", made.get_vocab_size() - 1)
    one, two = build(tokenizer, "beyond", "a")
    assert "documents[0]: holds 'beyond'" in str(one.error)
    assert not isinstance(two, Failure)
    with pytest.raises(InvalidInput, match="query: holds 'beyond'"):
        build(tokenizer, "a", query="beyond")


def test_a_frame_that_mixes_the_texts_is_refused(tmp_path: Path) -> None:
    made = TOKENIZERS["bert"]()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $B [SEP] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    with pytest.raises(CheckpointError, match="does not put the texts of a pair one after another"):
        PairPrompts(words(tmp_path, made), APART)
