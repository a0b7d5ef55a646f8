"""Files of bearer tokens: what they may hold, and that they are read again."""

from pathlib import Path

import pytest

from services.runtime.bearer_tokens import BearerTokens
from tests.support.certificates import replace


def test_tokens_are_read_by_line(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text("# who may call\n\nsecret-one\nsearch secret-two\n")
    tokens = BearerTokens(path)
    assert tokens.name_of("secret-one") == ""
    assert tokens.name_of("secret-two") == "search"
    for unknown in ("", "search", "secret-", "secret-one\nsecret-two", "#"):
        assert tokens.name_of(unknown) is None


def test_a_changed_file_of_tokens_is_picked_up_and_a_missing_one_is_survived(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text("old")
    tokens = BearerTokens(path)
    replace(path, b"new")
    assert tokens.name_of("old") is None
    assert tokens.name_of("new") == ""
    path.unlink()
    assert tokens.name_of("new") == ""


def test_a_file_without_tokens_stops_the_start(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text("# none yet\n")
    with pytest.raises(ValueError, match="no token"):
        BearerTokens(path)


BAD = {
    "empty": b"",
    "only comments": b"# none\n  # yet\n\n",
    "not UTF-8": b"name \xff\xfesecret",
    "UTF-16": "name secret".encode("utf-16"),
    "white space within the token": b"name sec ret\n",
    "a control character": b"name sec\x1cret\n",
    "a zero byte": b"good\nsec\x00ret",
    "not ASCII": "name sécret".encode(),
    "a no-break space": "name\u00a0secret".encode(),
    "a lone line separator": "sec\u2028ret".encode(),
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD)
def test_a_bad_file_of_tokens_stops_the_start_and_is_not_quoted(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokens"
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        BearerTokens(path)
    assert str(path) in str(error.value)
    for quoted in ("ret", "sec", "0xff"):
        assert quoted not in str(error.value).replace("tokens", "")


@pytest.mark.parametrize("content", [*BAD.values(), None], ids=[*BAD, "gone"])
def test_while_the_file_of_tokens_is_bad_the_last_good_ones_hold(
    tmp_path: Path, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "tokens"
    path.write_text("search secret")
    tokens = BearerTokens(path)
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    for _ in range(3):
        assert tokens.name_of("secret") == "search"
        assert tokens.name_of("ret") is None
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    replace(path, b"search renewed")
    assert tokens.name_of("secret") is None
    assert tokens.name_of("renewed") == "search"


def test_what_editors_leave_in_a_file_of_tokens_is_no_part_of_a_token(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_bytes(b"\xef\xbb\xbfsearch  secret \r\n\r\n\tfetch\tother\r\n")
    tokens = BearerTokens(path)
    assert (tokens.name_of("secret"), tokens.name_of("other")) == ("search", "fetch")
