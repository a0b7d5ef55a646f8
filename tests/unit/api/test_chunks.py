"""How a stream's messages are cut: by count, by estimated tokens and by key."""

import pytest

from services.api.chunks import chunks, estimated_tokens


@pytest.mark.parametrize(
    ("text", "tokens"), [("", 8), ("ab", 8), ("abc", 9), ("x" * 300, 108), ("\N{SNOWMAN}" * 6, 10)]
)
def test_a_text_has_a_token_for_three_characters_and_eight_for_its_prompt(text: str, tokens: int) -> None:
    assert estimated_tokens(text) == tokens


def test_nothing_makes_no_chunk() -> None:
    assert list(chunks([], [], 100)) == []


def test_a_chunk_has_at_most_64_items() -> None:
    items = list(range(130))
    cut = list(chunks(items, [1] * 130, 1_000_000))
    assert [(first, list(part), cost) for first, part, cost in cut] == [
        (0, items[:64], 64),
        (64, items[64:128], 64),
        (128, items[128:], 2),
    ]


def test_a_chunk_costs_at_most_a_quarter_of_the_window() -> None:
    assert list(chunks("abcd", [10, 15, 1, 24], 100)) == [(0, "ab", 25), (2, "cd", 25)]


def test_an_item_over_a_quarter_of_the_window_is_a_chunk_of_its_own() -> None:
    assert list(chunks("abc", [5, 900, 5], 100)) == [(0, "a", 5), (1, "b", 900), (2, "c", 5)]
    assert list(chunks("ab", [1, 1], 0)) == [(0, "a", 1), (1, "b", 1)]


def test_the_keys_of_a_chunk_are_distinct() -> None:
    assert list(chunks("abcd", [1] * 4, 100, keys=["x", "y", "x", "y"])) == [(0, "ab", 2), (2, "cd", 2)]
    assert list(chunks("abc", [1] * 3, 100, keys=["x", "x", "x"])) == [(0, "a", 1), (1, "b", 1), (2, "c", 1)]
