"""Cache keys: two different inputs never share one, the same input always does."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.cache.keys import CacheKeys
from services.api.options import EmbedOptions, RerankOptions
from winnow.common.v1 import common_pb2
from winnow.embed.v1 import embed_pb2

EmbedInputs = tuple[str, str, "embed_pb2.InputType", str, int, "common_pb2.Truncation", str]
RerankInputs = tuple[str, str, str, str, int, "common_pb2.Truncation", str]

# Short and of few letters, so that shifting a letter over a border between fields is among the examples.
words = st.text(alphabet="ab:\x00{", max_size=3)
truncations = st.sampled_from(common_pb2.Truncation.values())
embed_inputs = st.tuples(
    words,  # salt
    words,  # fingerprint
    st.sampled_from(embed_pb2.InputType.values()),
    words,  # instruction
    st.integers(0, 20),  # max_tokens
    truncations,
    words,  # text
)
rerank_inputs = st.tuples(words, words, words, words, st.integers(0, 20), truncations, words)


def embed_key(
    salt: str,
    fingerprint: str,
    input_type: embed_pb2.InputType,
    instruction: str,
    max_tokens: int,
    truncation: common_pb2.Truncation,
    text: str,
) -> bytes:
    options = EmbedOptions(input_type, instruction, truncation, max_tokens)
    [key] = CacheKeys(salt).keys("embed", fingerprint, options.identity(), [text])
    return key


def rerank_key(
    salt: str,
    fingerprint: str,
    query: str,
    instruction: str,
    max_tokens: int,
    truncation: common_pb2.Truncation,
    text: str,
) -> bytes:
    options = RerankOptions(query, instruction, truncation, max_tokens)
    [key] = CacheKeys(salt).keys("rerank", fingerprint, options.identity(), [text])
    return key


@given(embed_inputs, embed_inputs)
def test_embed_keys_are_equal_exactly_where_all_fields_are(one: EmbedInputs, other: EmbedInputs) -> None:
    assert (embed_key(*one) == embed_key(*other)) == (one == other)


@given(rerank_inputs, rerank_inputs)
def test_rerank_keys_are_equal_exactly_where_all_fields_are(one: RerankInputs, other: RerankInputs) -> None:
    assert (rerank_key(*one) == rerank_key(*other)) == (one == other)


@given(embed_inputs, st.data())
def test_every_field_counts(inputs: EmbedInputs, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(inputs) - 1))
    kinds = st.sampled_from(embed_pb2.InputType.values())
    strategies: list[st.SearchStrategy[Any]] = [words, words, kinds, words, st.integers(0, 20), truncations, words]
    other = data.draw(strategies[position].filter(lambda value: value != inputs[position]))
    changed: Any = (*inputs[:position], other, *inputs[position + 1 :])
    assert embed_key(*changed) != embed_key(*inputs)


@given(embed_inputs, rerank_inputs)
def test_vectors_and_scores_never_meet(one: EmbedInputs, other: RerankInputs) -> None:
    assert embed_key(*one) != rerank_key(*other)


@given(st.lists(words, max_size=4))
def test_a_list_gives_the_keys_of_its_texts(texts: list[str]) -> None:
    keys = CacheKeys("salt")
    for max_tokens in (8, 9):
        identity = EmbedOptions(max_tokens=max_tokens).identity()
        assert keys.keys("embed", "f", identity, texts) == [
            keys.keys("embed", "f", identity, [text])[0] for text in texts
        ]


def test_a_key_names_kind_and_model_and_hides_the_text() -> None:
    key = embed_key("", "0123abcd", embed_pb2.INPUT_TYPE_QUERY, "task", 8, common_pb2.TRUNCATION_END, "secret")
    head, digest = key[:-40], key[-40:]
    assert head == b"winnow:e:0123abcd:"
    assert len(bytes.fromhex(digest.decode())) == 20
    assert rerank_key("", "0123abcd", "q", "i", 8, common_pb2.TRUNCATION_END, "d").startswith(b"winnow:s:0123abcd:")


@pytest.mark.parametrize("text", ["", "\x00", "🜁", "a" * 100_000])
def test_any_text_has_a_key(text: str) -> None:
    def key(text: str) -> bytes:
        return embed_key("", "f", embed_pb2.INPUT_TYPE_DOCUMENT, "", 1, common_pb2.TRUNCATION_END, text)

    assert len(key(text)) == len(key("b"))
