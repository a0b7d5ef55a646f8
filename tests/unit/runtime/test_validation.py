"""Checks of a request: all that is wrong is reported at once, by the names of the fields."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.runtime.errors import InvalidFields
from services.runtime.validation import Check, oversized
from winnow.common.v1 import common_pb2


def violations(check: Check) -> list[str]:
    try:
        check.done()
    except InvalidFields as wrong:
        return [field for field, _ in wrong.violations]
    return []


def test_all_wrong_fields_are_reported_together_below_their_prefix() -> None:
    check = Check("options.")
    check.filled("query", " \n")
    check.within("top_n", 0, 1, 10)
    check.size("text", "fits", 4)
    check.count("documents", ["a"] * 3, 1, 2)
    assert violations(check) == ["options.query", "options.top_n", "options.documents"]


@pytest.mark.parametrize(
    ("value", "wrong"), [(0.0, False), (1.0, False), (-0.01, True), (1.01, True), (math.nan, True)]
)
def test_both_ends_of_a_range_are_allowed_and_nan_is_outside(value: float, wrong: bool) -> None:
    check = Check()
    check.within("weight", value, 0, 1)
    assert bool(violations(check)) == wrong


@pytest.mark.parametrize(("number", "wrong"), [(0, False), (2, False), (99, True), (-1, True)])
def test_a_number_that_an_enum_does_not_define_is_wrong(number: int, wrong: bool) -> None:
    check = Check()
    check.enum("truncation", number, common_pb2.Truncation)
    assert bool(violations(check)) == wrong


@given(st.text(max_size=20), st.integers(0, 30))
def test_a_text_is_oversized_by_its_bytes(text: str, limit: int) -> None:
    assert (oversized("text", text, limit) is not None) == (len(text.encode()) > limit)
