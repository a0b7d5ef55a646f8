"""Names of callers: from certificates, within a task, and on the way to a worker."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.runtime import callers
from services.runtime.callers import Caller, calling


@pytest.mark.parametrize(
    ("shown", "name"),
    [
        ({}, ""),
        ({"transport_security_type": [b"ssl"]}, ""),
        ({"x509_common_name": [b"search"]}, "search"),
        ({"x509_common_name": [b"search"], "peer_spiffe_id": [b"spiffe://a/b"]}, "spiffe://a/b"),
        ({"x509_common_name": []}, ""),
        ({"x509_common_name": [b"\xff" * 300]}, "\ufffd" * 256),
    ],
)
def test_the_name_in_a_certificate(shown: dict[str, list[bytes]], name: str) -> None:
    assert callers.certificate_name(shown) == name


async def test_tasks_inherit_the_caller_and_it_ends_with_the_block() -> None:
    async def seen() -> str:
        return callers.current().name

    with calling(Caller("a")):
        task = asyncio.create_task(seen())
        with calling(Caller("b")):
            assert await seen() == "b"
        assert callers.current() == Caller("a")
    assert await task == "a"
    assert callers.current() == Caller()


@settings(deadline=None)  # the machine may be slow
@given(st.text(min_size=1, max_size=256))
def test_any_name_can_be_passed_on(name: str) -> None:
    with calling(Caller(name)):
        [(key, value)] = callers.passed_on()
    assert value.isascii()
    assert value.isprintable()
    assert " " not in value
    assert callers.passed_name([("a", "b"), (key, value)]) == name


def test_without_a_name_nothing_is_passed_on() -> None:
    assert callers.passed_on() == ()
    assert callers.passed_name([("winnow-caller-bin", b"x")]) == ""
