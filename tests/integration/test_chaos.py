"""The harness of `bench chaos`, in short: rows run and tell what they should. No speed is asserted."""

import json
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import pytest

from bench.chaos import ROWS
from bench.reliability.fleet import EMBED_PACE, Fleet
from bench.reliability.rows.quotas import CALLER, callers_file
from bench.reliability.run import Run
from bench.reliability.tokens import tokens_file

pytestmark = pytest.mark.timeout(170)


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """With TLS and a token."""
    with Fleet(embed=[EMBED_PACE] * 2, secure=True) as started:
        yield started


@pytest.fixture(scope="module")
def callers_fleet() -> Iterator[Fleet]:
    """Known to two callers, one of whom has a quota."""
    with tokens_file("good", CALLER) as tokens, callers_file() as callers:
        started = Fleet(rerank=[], settings={**tokens, **callers})
        with started:
            yield started


def row(name: str, fleet: Fleet, **words: Any) -> list[Mapping[str, Any]]:
    """The lines of a row, of a fleet that others use too."""
    lines: list[Mapping[str, Any]] = []
    seed = 1000 * list(ROWS).index(name)  # the texts of another row are in the cache
    ROWS[name](Run(lines.append, start=lambda **_: nullcontext(fleet), seed=seed, **words))
    for line in lines:
        assert list(line) == ["bench", "row", "case", "asked", "missed", "measured"]
        assert line["asked"].keys() <= line["measured"].keys()
        assert set(line["missed"]) <= line["asked"].keys()
        json.dumps(line)
    return lines


def sound(line: Mapping[str, Any]) -> bool:
    """Every call ended as the contract says, and every answer that was computed once more was the same."""
    measured = line["measured"]
    calls = sum(measured["codes"].values())
    return bool(calls == measured["calls"] > 0 and measured["unexplained"] == 0 and measured["wrong"] == 0)


def test_overload_with_certificates_that_are_renewed(fleet: Fleet) -> None:
    lines = row("overload", fleet, given_seconds=1.0, kinds=("embed",), factors=(3.0,), deadlines=(1.0,))
    assert [line["case"] for line in lines] == ["embed 3 x, deadline 1 s"]
    assert all(sound(line) and line["measured"]["capacity"] > 0 for line in lines)


def test_redis_stops_beside_other_calls(fleet: Fleet) -> None:
    lines = row("redis-freeze", fleet, given_seconds=2.0)
    assert [line["case"].rpartition(", ")[2] for line in lines] == ["searches", "embed beside", "rerank beside"]
    assert all(sound(line) for line in lines)
    assert lines[1]["measured"]["success"] == 1  # they need no Redis


def test_one_of_the_workers_is_killed(fleet: Fleet) -> None:
    [line] = row("kill", fleet, given_seconds=2.0)
    assert sound(line)
    assert 0 <= line["measured"]["success"] <= 1
    assert line["measured"]["checked"] > 0


def test_a_stranger_is_refused(callers_fleet: Fleet) -> None:
    [line] = row("empty-texts", callers_fleet, given_seconds=2.0, texts=200_000)
    assert line["measured"]["answers"] == ["UNAUTHENTICATED"] * 3
    assert sound(line)


def test_a_caller_gets_its_quota(callers_fleet: Fleet) -> None:
    [line] = row("quotas", callers_fleet, given_seconds=2.0)
    assert sound(line)
    measured = line["measured"]
    assert 0 < measured["share_of_most"] <= 1.05  # a slow machine answers less; never more
    assert measured["refusals"] > 0
    assert (measured["quota_failure"], measured["retry_info"], measured["failed_otherwise"]) == (1, 1, 0)
