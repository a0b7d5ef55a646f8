import argparse

import pytest

from bench.compare import run_name


@pytest.mark.parametrize(
    ("model", "name"), [("0.6b", "embed"), ("minilm", "embed-minilm"), ("some/folder", "embed-folder")]
)
def test_runs_of_different_models_are_kept_apart(model: str, name: str) -> None:
    assert run_name("embed", argparse.Namespace(model=model)) == name
