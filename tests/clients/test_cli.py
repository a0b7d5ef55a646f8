"""The `winnow` command, against a real stack."""

import json
from pathlib import Path

import pytest

from clients.cli import main
from deploy.local.stack import Stack

ANIMALS = {
    "cat": "A small domesticated carnivore with soft fur that purrs and catches mice.",
    "whale": "A very large marine mammal that breathes air through a blowhole.",
    "eagle": "A large bird of prey with a hooked beak and keen sight.",
}


def test_ingest_search_and_drop(stack: Stack, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "animals.jsonl"
    rows = (
        {"id": name, "text": text, "metadata": {"legs": 4 if name == "cat" else 0}} for name, text in ANIMALS.items()
    )
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    address = ["--address", stack.addresses["gateway"]]

    assert main([*address, "ingest", "animals", str(file)]) == 0
    assert "3 created" in capsys.readouterr().out
    assert main([*address, "ingest", "animals", str(file)]) == 0
    assert "3 unchanged" in capsys.readouterr().out

    assert main([*address, "--json", "search", "marine mammal", "--collection", "animals"]) == 0
    hits = json.loads(capsys.readouterr().out)["hits"]
    assert hits[0]["id"] == "whale"
    assert main([*address, "--json", "search", "animal", "--collection", "animals", "--filter", ".legs == 4"]) == 0
    assert [hit["id"] for hit in json.loads(capsys.readouterr().out)["hits"]] == ["cat"]

    assert main([*address, "collections"]) == 0
    assert "animals: 3 documents" in capsys.readouterr().out
    assert main([*address, "drop", "animals"]) == 0
    assert main([*address, "search", "whale", "--collection", "animals"]) == 1
    assert capsys.readouterr().err.startswith("NOT_FOUND: ")


def test_inline_search_embed_and_rerank(stack: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    address = ["--address", stack.addresses["gateway"]]
    assert main([*address, "search", "bird of prey", "--inline", *ANIMALS.values()]) == 0
    table = capsys.readouterr().out
    assert "first stage" in table
    assert "rerank" in table
    assert main([*address, "embed", "--dimensions", "64", ANIMALS["cat"]]) == 0
    assert "64 dimensions" in capsys.readouterr().out
    assert main([*address, "rerank", "bird of prey", *ANIMALS.values()]) == 0
    assert capsys.readouterr().out.splitlines()[0].endswith(ANIMALS["eagle"])


def test_nobody_there_is_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--address", "127.0.0.1:1", "--timeout", "5", "embed", "text"]) == 1
    assert capsys.readouterr().err.startswith("UNAVAILABLE: ")
    assert len(capsys.readouterr().err.splitlines()) <= 1
