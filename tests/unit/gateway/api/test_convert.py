"""Tokens of pages."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api.convert import page_start, page_token
from services.runtime.errors import InvalidFields
from services.runtime.validation import Check


@given(st.text())
def test_a_page_begins_after_the_name_that_its_token_was_made_of(name: str) -> None:
    check = Check()
    assert page_start(page_token(name), check) == name
    check.done()


@pytest.mark.parametrize("token", ["no token!", "é", "\x00", "YQ", "=", "_w==", "gICA"])
def test_any_other_token_is_refused_by_the_name_of_its_field(token: str) -> None:
    check = Check()
    assert page_start(token, check) == ""
    with pytest.raises(InvalidFields) as raised:
        check.done()
    assert [field for field, _ in raised.value.violations] == ["page_token"]
