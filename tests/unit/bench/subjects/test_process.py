import os
from collections.abc import Sequence

import numpy as np
import pytest

from bench.subjects import Computed, SubjectError, Vectors
from bench.subjects.process import Process

HERE = "tests.unit.bench.subjects.test_process"


class Lengths:
    """A model that is quick to load."""

    def __init__(self, format: str) -> None:
        if format not in ("float32", "int8"):
            raise ValueError(f"{format} is unknown\nand more")
        self.format, self.computed = format, Computed()

    def embed(self, texts: Sequence[str], queries: bool, batch_size: int) -> Vectors:
        if "" in texts:
            raise ValueError("an empty text")
        if "end" in texts:
            os._exit(3)
        print("what a subject prints stays out of the bench's output")
        self.computed = Computed(tokens=batch_size, texts=len(texts))
        return np.array([[len(text), os.getpid(), queries] for text in texts], np.float32)

    def close(self) -> None:
        pass


def test_calls_go_to_another_process(capfd: pytest.CaptureFixture[str]) -> None:
    process = Process(f"{HERE}:Lengths", {"format": "int8"})
    try:
        assert process.format == "int8"
        [[length, pid, queries]] = process.embed(["word"], True, 7).tolist()
        assert (length, queries) == (4, 1)
        assert pid != np.float32(os.getpid())
        assert process.computed == Computed(tokens=7, texts=1)
        # A failed call is told, and the next one works.
        with pytest.raises(SubjectError, match="ValueError: an empty text"):
            process.embed([""], False, 1)
        assert process.embed(["a", "bc"], False, 1)[:, 0].tolist() == [1, 2]
    finally:
        process.close()
    assert capfd.readouterr().out == ""


def test_a_model_that_does_not_load_is_told_in_one_line() -> None:
    with pytest.raises(SubjectError, match=r"float12 is unknown$"):
        Process(f"{HERE}:Lengths", {"format": "float12"})


def test_a_process_that_ends_is_told() -> None:
    process = Process(f"{HERE}:Lengths", {"format": "float32"})
    with pytest.raises(SubjectError, match="ended with status 3"):
        process.embed(["end"], False, 1)
    process.close()
