"""Cutting a text changes no token: against the tokenizer on the whole text."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Fast

from services.engine.models.qwen3.prompts import EmbedPrompts, RerankPrompts
from services.engine.text import ends
from services.engine.text.cuts import Cuts
from services.engine.text.ends import encode_ends
from services.engine.text.prompts import Prompt
from services.engine.text.tokenizer import Tokenizer
from services.engine.types import Failure, Ids, InputType, Truncation
from tests.support import checkpoints as tiny

NANO = Path(__file__).parents[4] / "models" / "nano-embed" / "tokenizer.json"

# Runs, and whatever may join over a boundary: white space of all kinds, marks that compose, contractions, added tokens.
FRAGMENTS = [
    "a", "Word", "word's", "'s", "'LL", "'\u017f", "é", "e\u0301", "\u0301", "\u0338", "=", "<", " ", "   ", "\t",
    "\n", "\r\n", "\n\n", "\x0b", "\x85", "\u2028", "\u3000", "\u00a0", "\u180e", "\u200b", "\x00", "\x1f", "0", "42",
    "٣", "²", ".", "...", "--", "(", "}", "_", "<think>", "</think>", "<tool_call>", "<|im_end|>", "<|endoftext|>",
    "中", "文字", "，", "。", "「", "か\u3099", "ガ", "ー", "가", "\u1100", "\u1161", "\u11a8", "😀", "👩\u200d👧",
    "🇩🇪", "\u20e3", "ब", "\u09c7", "\u09be", "ไทย", "\u212a", "\u037e", "\u2000", "aaaaaaaa", "        ", "\n\n\n\n",
    "1111",
]  # fmt: skip
fragments = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.characters(exclude_categories=["Cs"])), max_size=30)
texts = fragments.map("".join)
_WORDS: Tokenizer
examples = settings(max_examples=300, deadline=None)


@pytest.fixture(scope="module", params=["tiny", "nano"], autouse=True)
def _share_words(request: pytest.FixtureRequest, checkpoints: Callable[..., Path]) -> None:
    global _WORDS  # noqa: PLW0603 - hypothesis tests take no fixtures of narrower scope
    _WORDS = Tokenizer(NANO if request.param == "nano" else checkpoints() / "tokenizer.json")


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts of some hundred characters are long ones."""
    monkeypatch.setattr(ends, "WHOLE", 40)
    monkeypatch.setattr(ends, "_PIECE", 16)


def whole(text: str) -> list[int]:
    tokens: list[int] = _WORDS.encode([text])[0].tolist()
    return tokens


def never() -> None:
    pass


@examples
@given(texts)
def test_the_parts_have_the_tokens_of_the_whole(text: str) -> None:
    cuts, expected, position = Cuts(_WORDS._fast), whole(text), 0
    while (position := cuts.after(text, position + 1)) < len(text):
        assert whole(text[:position]) + whole(text[position:]) == expected
        assert cuts.after(text, position) == position
        assert 0 < cuts.before(text, position) <= position


@settings(max_examples=200, deadline=None)
@given(
    fragments.map(lambda parts: "".join(parts[:4])),
    st.sampled_from("a w.-=('<_~\n\r\t/}Z"),
    st.integers(1, 1500),
    fragments.map(lambda parts: "".join(parts[:4])),
    st.integers(0, 1600),
)
def test_long_runs_can_be_cut_too(head: str, character: str, length: int, tail: str, position: int) -> None:
    text = head + character * length + tail
    cuts, expected = Cuts(_WORDS._fast), whole(text)
    for cut in (cuts.after(text, position), cuts.before(text, min(position, len(text)))):
        assert whole(text[:cut]) + whole(text[cut:]) == expected


@pytest.mark.parametrize("text", ["some words here", "Zeile\nZeile", "x = 1", "中文，文字", "    deep\n    deeper\n"])
def test_ordinary_texts_can_be_cut(text: str) -> None:
    cuts = Cuts(_WORDS._fast)
    assert 0 < cuts.after(text, 1) < len(text)
    assert 0 < cuts.before(text, len(text) - 1) < len(text)


def test_a_cut_is_found_however_far_it_is() -> None:
    cuts = Cuts(_WORDS._fast)
    for run in (8191, 8192, 8193, 20_000):
        text = ("ab" * run)[:run] + " " + ("cd" * run)[:run]
        assert cuts.after(text, 1) == cuts.before(text, len(text)) == run
    for character in "a -\n":
        assert 25_000 <= cuts.after(character * 50_000, 25_000) < 26_000
        assert 24_000 < cuts.before(character * 50_000, 25_000) <= 25_000
    # Of several letters without a boundary none is known.
    assert cuts.after("ab" * 25_000, 5) == 50_000
    assert cuts.before("ab" * 25_000, 49_000) == 0


@pytest.mark.usefixtures("small_pieces")
@examples
@given(st.lists(texts.map(lambda text: text * 3), max_size=4), st.integers(0, 60), st.integers(0, 60))
def test_the_ends_are_those_of_the_whole(many: list[str], first: int, last: int) -> None:
    read: list[str] = []

    def encode(batch: list[str]) -> list[Ids]:
        read.extend(batch)
        return _WORDS.encode(batch)

    for text, ids in zip(many, encode_ends(encode, Cuts(_WORDS._fast), many, first, last, never), strict=True):  # type: ignore[arg-type]
        expected, got = whole(text), ids.tolist()
        assert len(got) <= len(expected)
        if len(expected) <= first + last:
            assert got == expected
            continue
        assert len(got) > first + last
        assert got[:first] == expected[:first]
        assert got[len(got) - last :] == expected[len(expected) - last :]
    assert sum(map(len, read)) <= sum(map(len, many))


@pytest.mark.usefixtures("small_pieces")
@examples
@given(
    texts.map(lambda text: text * 4),
    st.sampled_from(Truncation),
    st.sampled_from(InputType),
    st.integers(1, 120),
)
def test_prompts_are_cut_as_if_read_whole(text: str, truncation: Truncation, input_type: InputType, room: int) -> None:
    """Tokens and `truncated` of long texts are the same as with a tokenizer that reads all of them."""

    def of(tokenizer: Tokenizer) -> list[Prompt | Failure]:
        how = {"truncation": truncation, "instruction": None}
        _, pairs = RerankPrompts(tokenizer).build("q", [text], max_tokens=300 + room, **how)  # type: ignore[arg-type]
        return [
            *EmbedPrompts(tokenizer).build([text], input_type=input_type, max_tokens=120 + room, **how),  # type: ignore[arg-type]
            *pairs,
        ]

    for ours, expected in zip(of(_WORDS), of(_Patient(_WORDS)), strict=True):
        assert type(ours) is type(expected)
        if isinstance(ours, Prompt) and isinstance(expected, Prompt):
            assert np.array_equal(ours.tokens, expected.tokens)
            assert ours.truncated == expected.truncated


class _Patient(Tokenizer):
    """Reads every text to its end."""

    def __init__(self, other: Tokenizer) -> None:
        vars(self).update(vars(other))

    def encode_ends(self, texts, first, last, pause):  # type: ignore[no-untyped-def]
        return self.encode(texts)


@pytest.mark.parametrize(
    "unit", ["some words here ", "中文字符，", "line\n", "    x = 12\n", "é\u0301 ", "a1", "a", " ", "\n", "-"]
)
@pytest.mark.parametrize("truncation", [Truncation.END, Truncation.START])
def test_of_four_mebibytes_only_the_kept_end_is_read(
    unit: str, truncation: Truncation, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = unit * ((4 << 20) // len(unit.encode()))
    read = 0
    encode = Tokenizer.encode

    def counted(self: Tokenizer, batch: list[str]) -> list[Ids]:
        nonlocal read
        read += sum(map(len, batch))
        return encode(self, batch)

    monkeypatch.setattr(Tokenizer, "encode", counted)
    prompts = EmbedPrompts(_WORDS)
    (prompt,) = prompts.build(
        [text], input_type=InputType.QUERY, instruction=None, truncation=truncation, max_tokens=8192
    )
    assert isinstance(prompt, Prompt)
    assert (len(prompt.tokens), prompt.truncated) == (8192, True)
    assert read < (100_000 if len(unit) > 1 else 600_000)  # up to 32 spaces or hyphens are one token


def test_an_endless_instruction_or_query_is_read_only_until_it_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    from services.engine.errors import InvalidInput

    read: list[int] = []
    encode = Tokenizer.encode

    def counted(self: Tokenizer, batch: list[str]) -> list[Ids]:
        read.append(sum(map(len, batch)))
        return encode(self, batch)

    monkeypatch.setattr(Tokenizer, "encode", counted)
    endless = "what which where " * 200_000
    how = {"truncation": Truncation.END, "max_tokens": 8192}
    with pytest.raises(InvalidInput, match="instruction"):
        EmbedPrompts(_WORDS).build(["a"], input_type=InputType.QUERY, instruction=endless, **how)  # type: ignore[arg-type]
    rerank = RerankPrompts(_WORDS)
    with pytest.raises(InvalidInput, match="query"):
        rerank.build(endless, ["a"], instruction=None, **how)  # type: ignore[arg-type]
    assert sum(read) < 300_000


def other(change: Callable[[Fast], None]) -> Fast:
    fast = tiny.tokenizer()
    change(fast)
    return fast


def _triples(fast: Fast) -> None:
    pattern = Regex(tiny.PATTERN.replace(r"\p{N}|", r"\p{N}{1,3}|"))
    fast.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pattern, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


@pytest.mark.parametrize(
    "change",
    [
        _triples,
        lambda fast: setattr(fast, "normalizer", normalizers.NFKC()),
        lambda fast: setattr(fast, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True)),
        lambda fast: setattr(fast.model, "dropout", 0.5),
        lambda fast: fast.add_tokens([AddedToken("two words", normalized=False)]),
        lambda fast: fast.add_tokens([AddedToken("<tag>", normalized=False, lstrip=True)]),
    ],
    ids=["other pattern", "other normaliser", "prefix space", "dropout", "token with a space", "token that strips"],
)
def test_a_tokenizer_of_another_kind_is_never_cut(change: Callable[[Fast], None]) -> None:
    cuts = Cuts(other(change))
    assert cuts.after("some words here", 1) == len("some words here")
    assert cuts.before("some words here", 8) == 0
