"""What a line of a file may be, and what is said about one that may not."""

import json
from pathlib import Path

import pytest

from winnow_cli.errors import CommandError
from winnow_cli.jsonl import read_documents


def read(folder: Path, content: bytes) -> list[tuple[str, str, object]]:
    file = folder / "file.jsonl"
    file.write_bytes(content)
    return [(d.id, d.text, json.loads(d.metadata_json)) for d in read_documents(str(file))]


def test_a_byte_order_mark_blank_lines_and_numbers_are_taken(tmp_path: Path) -> None:
    content = (
        b'\xef\xbb\xbf{"id": 7, "text": "a"}\r\n\n  \n{"id": 1.5, "text": "b", "metadata": {"city": "M\\u00fcnchen"}}'
    )
    assert read(tmp_path, content) == [("7", "a", {}), ("1.5", "b", {"city": "München"})]


def test_metadata_are_sent_as_unicode(tmp_path: Path) -> None:
    (tmp_path / "f").write_text('{"id": "a", "text": "b", "metadata": {"city": "M\\u00fcnchen"}}')
    [document] = read_documents(str(tmp_path / "f"))
    assert document.metadata_json == '{"city": "München"}'


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"id": "a", "text": "b", "meta": {}, "x": 1}', 'unknown key "meta", "x"; known are id, text, metadata'),
        (b'{"id": null, "text": "b"}', "id must be a string or a number, not null"),
        (b'{"id": true, "text": "b"}', "id must be a string or a number, not a boolean"),
        (b'{"id": ["a"], "text": "b"}', "id must be a string or a number, not a list"),
        (b'{"id": {}, "text": "b"}', "id must be a string or a number, not an object"),
        (b'{"id": NaN, "text": "b"}', "NaN"),
        (b'{"id": 1e999, "text": "b"}', "1e999"),
        (b'{"id": "a", "text": null}', "text must be a string, not null"),
        (b'{"id": "a", "text": 5}', "text must be a string, not a number"),
        (b'{"id": "a"}', "text missing"),
        (b"{}", "id and text missing"),
        (b'{"id": "a", "text": "b", "metadata": null}', "metadata must be an object, not null"),
        (b'{"id": "a", "text": "b", "metadata": "c"}', "metadata must be an object, not a string"),
        (b'{"id": "a", "text": "b", "metadata": {"year": Infinity}}', "Infinity"),
        (b'{"id": "a", "text": "b", "text": "c"}', 'key "text" stands twice'),
        (b'{"id": "a", "text": "b", "metadata": {"k": 1, "k": 2}}', 'key "k" stands twice'),
        (b'["a", "b"]', "wants an object"),
        (b'"a"', "wants an object"),
        (b'{"id": "a", "text": "b"', "is not JSON"),
        (b"id,text", "is not JSON"),
        (b'{"id": "a", "text": "\\ud800"}', "surrogate"),
        (b'{"id": "a", "text": "b", "metadata": {"k": "\\ud800"}}', "surrogate"),
        (b'{"id": "a", "text": "caf\xe9"}', "is not UTF-8: byte 0xe9 at position 25"),
        (b'{"id": "a", "text": "b", "metadata": ' + b"[" * 100_000, "is nested too deeply"),
        (b'{"id": ' + b"9" * 5000 + b', "text": "b"}', "digits"),
        (b'{"id": "a", "text": "' + b"x" * (33 << 20) + b'"}', "is longer than 32 MiB"),
    ],
    ids=lambda value: value[:40].decode(errors="replace") if isinstance(value, bytes) else "",
)
def test_any_other_line_is_refused_by_number(tmp_path: Path, line: bytes, reason: str) -> None:
    with pytest.raises(CommandError) as error:
        read(tmp_path, b'{"id": "first", "text": "fine"}\n\n' + line + b"\n")
    assert str(error.value).startswith(f"{tmp_path / 'file.jsonl'}, line 3: ")
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_is_read_line_by_line(tmp_path: Path) -> None:
    file = tmp_path / "file.jsonl"
    file.write_text('{"id": "a", "text": "b"}\nrubbish\n')
    documents = read_documents(str(file))
    assert next(documents).id == "a"  # before anybody has looked at the second line
