"""Cutting a text at spaces changes no token: against the tokenizer on the whole text."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Fast

from services.engine.text.spaces import Spaces, parts_at_spaces
from services.engine.text.tokenizer import Tokenizer
from tests.support import checkpoints
from tests.support.encoders import KINDS, TOKENIZERS

FRAGMENTS = [
    "a", "Word", "word's", "'s", "é", "e\u0301", "\u0301", " ", " ", " ", "  ", "\t", "\n", "\x00", "\u00a0", "0", "42",
    ".", "--", "</s>", "[SEP]", "<mask>", "中", "文字", "か\u3099", "가", "\u1100", "\u1161", "👩\u200d👧", "\u200b",
    "ﬁ", "①", "▁", "Σ", "ς", "İ", "##a", "Ġ",
]  # fmt: skip
texts = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.characters(exclude_categories=["Cs"])), max_size=30).map(
    "".join
)


def words(folder: Path, made: Fast) -> Tokenizer:
    made.save(str(folder / "tokenizer.json"))
    return Tokenizer(folder / "tokenizer.json")


@pytest.fixture(scope="module", params=[*KINDS, "Metaspace alone"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    made = TOKENIZERS.get(request.param, TOKENIZERS["xlm-roberta"])()
    if request.param not in KINDS:
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    assert parts_at_spaces(made)
    return words(tmp_path_factory.mktemp("words"), made)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts, st.integers(0, 60))
def test_the_parts_have_the_tokens_of_the_whole(tokenizer: Tokenizer, text: str, position: int) -> None:
    (whole,) = tokenizer.encode([text])
    for cut in (Spaces().after(text, position), Spaces().before(text, min(position, len(text)))):
        parts = tokenizer.encode([text[:cut], text[cut:]])
        assert [*parts[0], *parts[1]] == [*whole]


def test_a_cut_is_a_space_between_words_near_by() -> None:
    text = "a b. c d" + "x" * 20_000 + " e f"
    assert Spaces().after(text, 2) == 6
    assert Spaces().after(text, 7) == 20_008
    assert Spaces().before(text, 20_000) in (1, 6)
    assert Spaces().before(text, 5) == 1
    assert Spaces().before(text, 20_009) == 20_008
    assert Spaces().before(text, 0) == 0
    assert Spaces().after("中文 中文", 1) == 5


def test_of_a_long_text_only_the_kept_end_is_read(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    encode = tokenizer.encode

    def counting(parts: list[str]) -> list[object]:
        read.append(sum(map(len, parts)))
        return list(encode(parts))

    text = "the capital of China is Beijing " * 100_000
    (whole,) = tokenizer.encode([text])
    monkeypatch.setattr(tokenizer, "encode", counting)
    (first,) = tokenizer.encode_ends([text], 500, 0, lambda: None)
    (last,) = tokenizer.encode_ends([text], 0, 500, lambda: None)
    assert [*first[:500]] == [*whole[:500]]
    assert [*last[-500:]] == [*whole[-500:]]
    assert sum(read) < 100_000


def add(*tokens: AddedToken) -> Callable[[Fast], object]:
    return lambda words: words.add_tokens(list(tokens))


def put(part: str, value: object) -> Callable[[Fast], object]:
    return lambda words: setattr(words, part, value)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("bert", add(AddedToken("new york"))),
        ("bert", add(AddedToken("york", lstrip=True))),
        ("bert", put("pre_tokenizer", pre_tokenizers.Whitespace())),
        ("bert", put("pre_tokenizer", None)),
        ("bert", put("normalizer", normalizers.Replace("a b", "ab"))),
        ("roberta", put("pre_tokenizer", pre_tokenizers.ByteLevel(use_regex=False))),
        ("xlm-roberta", put("pre_tokenizer", pre_tokenizers.Metaspace(prepend_scheme="first"))),
        ("xlm-roberta", put("pre_tokenizer", pre_tokenizers.Metaspace(split=False))),
        ("xlm-roberta", put("normalizer", normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(" ", "")]))),
    ],
)
def test_a_tokenizer_of_another_kind_is_never_cut(kind: str, change: Callable[[Fast], object]) -> None:
    made = TOKENIZERS[kind]()
    change(made)
    assert not parts_at_spaces(made)


def test_qwen_s_has_cuts_of_its_own() -> None:
    assert not parts_at_spaces(checkpoints.tokenizer())
