"""Plain prompts: the tokens are the tokenizer's own, frames are never cut, and what a model has not is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken
from tokenizers import Tokenizer as Fast

from services.engine.errors import CheckpointError, InvalidInput
from services.engine.text.templates import PlainPrompts, Wording
from services.engine.text.tokenizer import Tokenizer
from services.engine.types import Failure, InputType, Truncation
from tests.support.encoders import KINDS, TOKENIZERS

INSTRUCT = Wording(query="Instruct: {instruction}\nQuery: ", instruction="Find it", symmetric="Compare")
FIXED = Wording(query="query: ", document="passage: ", symmetric=None)
TEXT = "The capital of China, café, is Beijing"


def words(folder: Path, made: Fast) -> Tokenizer:
    made.save(str(folder / "tokenizer.json"))
    return Tokenizer(folder / "tokenizer.json")


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Tokenizer:
    return words(tmp_path, TOKENIZERS[request.param]())


def build(prompts: PlainPrompts, text: str = TEXT, **how: Any) -> Any:
    how = {
        "input_type": InputType.DOCUMENT,
        "instruction": None,
        "truncation": Truncation.END,
        "max_tokens": 999,
        **how,
    }
    return prompts.build([text], **how)[0]


@pytest.mark.parametrize(
    ("wording", "how", "whole"),
    [
        (FIXED, {}, f"passage: {TEXT}"),
        (FIXED, {"input_type": InputType.QUERY}, f"query: {TEXT}"),
        (INSTRUCT, {}, TEXT),
        (INSTRUCT, {"input_type": InputType.QUERY}, f"Instruct: Find it\nQuery: {TEXT}"),
        (INSTRUCT, {"input_type": InputType.SYMMETRIC}, f"Instruct: Compare\nQuery: {TEXT}"),
        (INSTRUCT, {"input_type": InputType.QUERY, "instruction": "{x} {"}, f"Instruct: {{x}} {{\nQuery: {TEXT}"),
        (INSTRUCT, {"input_type": InputType.SYMMETRIC, "instruction": "So"}, f"Instruct: So\nQuery: {TEXT}"),
        (Wording(symmetric="s: "), {"input_type": InputType.SYMMETRIC}, f"s: {TEXT}"),
    ],
)
def test_the_tokens_are_those_of_the_whole(
    tokenizer: Tokenizer, wording: Wording, how: dict[str, Any], whole: str
) -> None:
    prompts = PlainPrompts(tokenizer, wording)
    prompts.check()
    assert np.array_equal(build(prompts, **how).tokens, tokenizer.reference(whole)[0])


@pytest.mark.parametrize("room", [0, 1, 5])
def test_the_end_is_cut_and_the_frame_is_not(tokenizer: Tokenizer, room: int) -> None:
    prompts = PlainPrompts(tokenizer, FIXED)
    whole = build(prompts)
    _, end = tokenizer.framed()
    limit = len(whole.tokens) - 6 + room
    cut = build(prompts, max_tokens=limit)
    assert cut.truncated
    assert np.array_equal(cut.tokens, [*whole.tokens[: limit - len(end)], *end])


def test_the_start_is_cut_behind_the_prompt(tokenizer: Tokenizer) -> None:
    prompts = PlainPrompts(tokenizer, FIXED)
    first, _ = tokenizer.framed()
    head = tokenizer.encode(["passage: "])[0]
    whole = build(prompts, TEXT * 9).tokens
    cut = build(prompts, TEXT * 9, truncation=Truncation.START, max_tokens=30)
    assert cut.truncated
    tail = 30 - len(first) - len(head)
    assert np.array_equal(cut.tokens, [*first, *head, *whole[len(whole) - tail :]])


def test_a_text_that_is_too_long_fails_alone(tokenizer: Tokenizer) -> None:
    prompts = PlainPrompts(tokenizer, FIXED)
    long, short = prompts.build(
        [TEXT * 9, "a"],
        input_type=InputType.DOCUMENT, instruction=None, truncation=Truncation.ERROR, max_tokens=30,
    )  # fmt: skip
    assert isinstance(long, Failure)
    assert "exceed the limit of 30" in str(long.error)
    assert not isinstance(short, Failure)


@pytest.mark.parametrize(
    ("wording", "how", "field"),
    [
        (FIXED, {"instruction": "Find it"}, "instruction: this model takes no instructions"),
        (FIXED, {"instruction": "Find it", "input_type": InputType.QUERY}, "instruction: this model takes no"),
        (FIXED, {"input_type": InputType.SYMMETRIC}, "input_type: this model has no prompt for SYMMETRIC"),
        (INSTRUCT, {"instruction": "Find it"}, "instruction: documents are embedded without one"),
        (
            INSTRUCT,
            {"instruction": "so " * 50, "input_type": InputType.QUERY, "max_tokens": 20},
            "instruction: .* no room",
        ),
        (FIXED, {"max_tokens": 3}, "max_tokens: .* leave no room"),
        (INSTRUCT, {"instruction": "\ud800", "input_type": InputType.QUERY}, "instruction: is not valid Unicode"),
    ],
)
def test_what_a_model_has_not_is_refused(
    tokenizer: Tokenizer, wording: Wording, how: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidInput, match=field):
        build(PlainPrompts(tokenizer, wording), **how)


def test_an_added_token_that_parts_a_prompt_is_found(tmp_path: Path) -> None:
    made = TOKENIZERS["bert"]()
    made.add_special_tokens([AddedToken("uer", special=True, normalized=False)])
    with pytest.raises(CheckpointError, match="self-check failed: the tokens of 'query: what is gravity"):
        PlainPrompts(words(tmp_path, made), FIXED).check()


@pytest.mark.parametrize("change", [{"query": "q: "}, {"document": "d: "}, {"symmetric": None}, {"instruction": "x"}])
def test_a_version_changes_with_the_prompts(change: dict[str, Any]) -> None:
    assert Wording(**change).version != Wording().version


@pytest.mark.parametrize("special", ["[SEP]", "</s>", "<mask>"])
def test_a_caller_s_special_token_is_plain_text(tokenizer: Tokenizer, special: str) -> None:
    prompts = PlainPrompts(tokenizer, Wording())
    first, end = tokenizer.framed()
    ids = {int(id) for id in build(prompts, f"a {special} b").tokens[len(first) : -len(end)]}
    assert not ids & {int(id) for id in (*first, *end)}


@pytest.mark.parametrize("length", [1, 70_000, 400_000])
@pytest.mark.parametrize("truncation", [Truncation.END, Truncation.START])
def test_a_long_text_is_read_as_it_would_be_whole(
    tokenizer: Tokenizer, length: int, truncation: Truncation, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (TEXT + "\n naïve 中文 3.14  ") * (length // 50 + 1)
    (whole,) = tokenizer.encode([text])
    (ends,) = tokenizer.encode_ends([text], 60, 60, lambda: None)
    assert np.array_equal(ends[:60], whole[:60])
    assert np.array_equal(ends[-60:], whole[-60:])
