"""The harness of `bench chaos`, in short: rows run and tell what they should. No speed is asserted."""

import json
import subprocess
import sys
from typing import Any

import pytest

from deploy.local.stack import ROOT

pytestmark = pytest.mark.timeout(170)


def chaos(*words: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "bench", "chaos", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=160,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    for line in lines:
        assert list(line) == ["bench", "row", "case", "asked", "missed", "measured", "run", "date", "machine"]
        assert line["asked"].keys() <= line["measured"].keys()
        assert set(line["missed"]) <= line["asked"].keys()
    return lines


def sound(line: dict[str, Any]) -> bool:
    """Every call ended as the contract says, and every answer that was computed once more was the same."""
    measured = line["measured"]
    calls = sum(measured["codes"].values())
    return bool(calls == measured["calls"] > 0 and measured["unexplained"] == 0 and measured["wrong"] == 0)


def test_overload() -> None:
    lines = chaos("overload", "--seconds", "1", "--kinds", "search", "--factors", "3", "--deadlines", "1,5")
    assert [line["case"] for line in lines] == [f"search 3 x, deadline {seconds} s" for seconds in (1, 5)]
    assert all(sound(line) and line["measured"]["capacity"] > 0 for line in lines)


def test_one_of_three_is_killed() -> None:
    [line] = chaos("kill", "--seconds", "2")
    assert sound(line)
    assert 0 <= line["measured"]["success"] <= 1
    assert line["measured"]["checked"] > 0


def test_redis_stops_beside_other_calls() -> None:
    lines = chaos("redis-freeze", "--seconds", "2")
    assert [line["case"].rpartition(", ")[2] for line in lines] == ["searches", "embed beside", "rerank beside"]
    assert all(sound(line) for line in lines)
    assert lines[1]["measured"]["success"] == 1  # they need no Redis


def test_a_stranger_is_refused() -> None:
    [line] = chaos("empty-texts", "--seconds", "2", "--texts", "200000")
    assert line["measured"]["answers"] == ["UNAUTHENTICATED"] * 3
    assert sound(line)


def test_a_caller_gets_its_quota() -> None:
    [line] = chaos("quotas", "--seconds", "2")
    assert sound(line)
    measured = line["measured"]
    # A slow machine answers less; never more. The ends of the two seconds cut calls in two.
    assert 0 < measured["tokens_per_second"] <= 1.05 * 2000 + 100
    assert measured["refusals"] > 0
    assert (measured["quota_failure"], measured["retry_info"], measured["failed_otherwise"]) == (1, 1, 0)


def test_unknown_rows_are_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench", "chaos", "sharks"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "sharks unknown: overload, " in done.stderr
