from collections.abc import Mapping
from typing import Any

import pytest

from bench.reliability.run import Run, meets


@pytest.mark.parametrize(
    ("value", "bound", "met"),
    [
        (0.9, ">= 0.9", True), (0.89, ">= 0.9", False), (50, "< 50", False), (0, "== 0", True), (1.0, "<= 1", True),
        (None, "<= 1", False), ("1", "<= 1", False),
    ],
)  # fmt: skip
def test_a_figure_is_held_against_its_bound(value: object, bound: str, met: bool) -> None:
    assert meets(value, bound) is met


def test_a_line_has_what_is_asked_beside_what_was_measured() -> None:
    lines: list[Mapping[str, Any]] = []
    Run(lines.append).line(
        "kill", "one of three", {"success": 0.99871234, "codes": {"OK": 5}, "back_s": None},
        {"success": ">= 0.999", "back_s": "<= 1", "unexplained": "== 0"},
    )  # fmt: skip
    assert lines == [
        {
            "bench": "chaos", "row": "kill", "case": "one of three",
            "asked": {"success": ">= 0.999", "back_s": "<= 1", "unexplained": "== 0"},
            "missed": ["success", "back_s", "unexplained"],
            "measured": {"success": 0.9987, "codes": {"OK": 5}, "back_s": None},
        }
    ]  # fmt: skip
