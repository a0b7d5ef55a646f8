import pytest

from bench.texts import WORDS
from bench.vocabulary import tokenizer


@pytest.mark.parametrize("model_type", ["bert", "xlm-roberta"])
def test_the_words_of_the_benches_are_a_token_each_and_others_are_spelled(model_type: str) -> None:
    made = tokenizer(model_type)
    text = " ".join([*WORDS, WORDS[0].capitalize()])
    assert len(made.encode(text, add_special_tokens=False).ids) == len(WORDS) + 1
    assert len(made.encode("xyzzy", add_special_tokens=False).ids) >= len("xyzzy")
    assert made.decode(made.encode("the xyzzy").ids) == "the xyzzy"


def test_pairs_are_framed_as_in_the_published_tokenizers() -> None:
    pair = tokenizer("bert").encode("river", "sea")
    assert pair.tokens == ["[CLS]", "river", "[SEP]", "s", "##e", "##a", "[SEP]"]
    assert pair.type_ids == [0, 0, 0, 1, 1, 1, 1]
    pair = tokenizer("xlm-roberta").encode("river", "river")
    assert pair.tokens == ["<s>", "▁river", "</s>", "</s>", "▁river", "</s>"]
    assert pair.ids[0] == 0
    assert pair.ids[-1] == 2
    assert not any(pair.type_ids)
