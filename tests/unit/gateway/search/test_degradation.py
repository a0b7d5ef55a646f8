"""The reasons of a degraded answer are those on the list that alerts and callers know, and each of them is given."""

import itertools
import re
from pathlib import Path

import pytest

from gateway.index.store import Read
from gateway.index.vector_search import Found
from gateway.search.degradation import items_failed, shards_missing, stage_failed
from gateway.search.types import Degradation, Stage
from services.runtime.errors import (
    DeadlineTooShort,
    DeviceMemory,
    Internal,
    PoolSaturated,
    Problem,
    QuotaExceeded,
    UpstreamUnavailable,
)
from services.runtime.telemetry.names import DegradedReason, DegradedStage

ROOT = Path(__file__).resolve().parents[4]
PROBLEMS = (
    DeadlineTooShort(),
    PoolSaturated(1.0),
    QuotaExceeded("a", "a limit", 1.0),
    DeviceMemory(),
    UpstreamUnavailable("worker"),
    Internal(),
)
FOUND = [
    Found([], missing, incomplete, overloaded)
    for missing, incomplete, overloaded in itertools.product((0, 2), (0, 1), (False, True))
]
READ = [Read({}, missing, damaged) for missing, damaged in itertools.product((0, 1), (False, True))]


def every_degradation() -> list[Degradation]:
    stages = (Stage.EMBED, Stage.RERANK)
    whole = [stage_failed(stage, problem) for stage, problem in itertools.product(stages, PROBLEMS)]
    parts = [items_failed(stage, "some") for stage in stages]
    shards = [one for found, read in itertools.product(FOUND, READ) for one in shards_missing(4, found, read)]
    return whole + parts + shards


def test_every_reason_is_given_and_no_other() -> None:
    assert {one.reason for one in every_degradation()} == set(DegradedReason)


def test_the_pipeline_makes_its_degradations_here() -> None:
    sources = {path.name: path.read_text("utf-8") for path in (ROOT / "gateway").rglob("*.py")}
    assert [name for name, source in sources.items() if re.search(r"(?<!pb2\.)\bDegradation\(", source)] == [
        "degradation.py"
    ]


def test_stages_have_one_name() -> None:
    assert {stage.value for stage in Stage} == set(DegradedStage)


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        (DeadlineTooShort(), DegradedReason.EMBED_DEADLINE),
        (PoolSaturated(1.0), DegradedReason.EMBED_OVERLOADED),
        (DeviceMemory(), DegradedReason.EMBED_OVERLOADED),
        (UpstreamUnavailable("embed worker"), DegradedReason.EMBED_UNAVAILABLE),
    ],
)
def test_a_failed_stage_says_why(problem: Problem, reason: DegradedReason) -> None:
    assert stage_failed(Stage.EMBED, problem).reason is reason


def test_an_index_that_answered_whole_is_no_degradation() -> None:
    assert shards_missing(4, Found([], 0, 0), Read({}, 0)) == []
