"""The file of callers: what it may hold, what is said of a wrong one, and that it is read again."""

from pathlib import Path

import pytest

from gateway.callers.methods import READ, WRITE
from gateway.callers.policies import Policies, Policy
from tests.support.certificates import replace

GOOD = """
[default]
methods = ["read"]
collections = ["public-"]

[callers.search]
tokens_per_second = 1000

[callers."spiffe://example.org/ns/ingest/sa/ingest"]  # in quotes: it has slashes
methods = ["write", "GetModel"]
collections = ["docs-", "notes"]
tokens_per_second = 50_000
burst_tokens = 500_000
tokens_in_flight = 100_000
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "callers.toml"


def test_a_caller_has_its_own_table_over_the_default(path: Path) -> None:
    path.write_text(GOOD)
    policies = Policies(path)
    search = policies.of("search")
    assert (search.allows("Search"), search.allows("DeleteCollection")) == (True, False)
    assert (search.sees("public-1"), search.sees("docs-1")) == (True, False)
    assert (search.tokens_per_second, search.burst, search.tokens_in_flight) == (1000, 1000, None)
    ingest = policies.of("spiffe://example.org/ns/ingest/sa/ingest")
    assert {method for method in READ | WRITE if ingest.allows(method)} == WRITE | {"GetModel"}
    assert [ingest.sees(name) for name in ("docs-1", "docs", "notes", "notes-2", "public-1")] == [
        True,
        False,
        True,
        True,
        False,
    ]
    assert (ingest.burst, ingest.tokens_in_flight) == (500_000, 100_000)


@pytest.mark.parametrize("name", ["", "stranger", "default", "callers"])
def test_all_others_have_the_default(path: Path, name: str) -> None:
    path.write_text(GOOD)
    policies = Policies(path)
    assert policies.of(name).tokens_per_second is None
    assert policies.of(name).allows("Search")
    assert not policies.of(name).allows("UpsertDocuments")
    assert not policies.lists(name)
    assert policies.lists("search")


@pytest.mark.parametrize("text", [None, "", "# nothing yet\n"])
def test_without_rules_nobody_is_limited(path: Path, text: str | None) -> None:
    if text is not None:
        path.write_text(text)
    policy = Policies(path if text is not None else None).of("anyone")
    assert policy == Policy()
    assert policy.allows("DeleteCollection")
    assert policy.sees("anything")


def test_an_empty_list_allows_nothing(path: Path) -> None:
    path.write_text("[default]\nmethods = []\ncollections = []\n")
    policy = Policies(path).of("")
    assert not policy.allows("GetModel")
    assert not policy.sees("docs")


WRONG = {
    "not TOML": ("[default\n", "line 1"),
    "another table": ("[default]\n\n[caller.search]\n", "line 3: caller is neither"),
    "a key outside": ('methods = ["read"]\n', "line 1: methods is neither"),
    "an unknown key": (
        "[default]\n\n[callers.a]\n# more\ntoken_per_second = 1\n",
        "line 5: callers.a.token_per_second is",
    ),
    "the nearest key": ("[default]\ntoken_per_second = 1\n", "did you mean tokens_per_second?"),
    "an unknown method": (
        '[callers."a b"]\nmethods = ["read", "Serch"]\n',
        'line 2: callers."a b".methods there is no',
    ),
    "the nearest method": ('[default]\nmethods = ["Serch"]\n', 'did you mean "Search"?'),
    "a list over lines": ('[default]\nmethods = [\n  "read",\n  "rite",\n]\n', "line 2: default.methods there is no"),
    "a text for a number": ('[callers.a]\ntokens_in_flight = "1"\n', "line 2: callers.a.tokens_in_flight Input should"),
    "a text for a list": ('[callers.a]\nmethods = "read"\n', "line 2: callers.a.methods Input should"),
    "no tokens": ("[callers.a]\n\ntokens_per_second = 0\n", "line 3: callers.a.tokens_per_second Input should"),
    "infinitely many": ("[callers.a]\ntokens_per_second = inf\n", "line 2: callers.a.tokens_per_second Input should"),
    "a burst of nothing": ("[default]\n[callers.a]\nburst_tokens = 9\n", "line 2: callers.a burst_tokens needs"),
    "no name": ('[callers.a]\n[callers.""]\n', "line 2: callers has no name"),
    "a caller that is no table": ("[callers]\na = 1\n", "line 2: callers.a must be a table"),
    "callers that are no table": ("callers = 1\n", "line 1: callers must be tables"),
}


@pytest.mark.parametrize(("text", "said"), WRONG.values(), ids=WRONG)
def test_a_wrong_file_is_refused_with_the_line_at_fault(path: Path, text: str, said: str) -> None:
    path.write_text(text)
    with pytest.raises(ValueError) as error:
        Policies(path)
    assert said in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_text_or_not_there(path: Path) -> None:
    with pytest.raises(OSError):
        Policies(path)
    path.write_bytes(b"[default]\n# \xff")
    with pytest.raises(ValueError, match="not UTF-8"):
        Policies(path)


def test_it_is_read_again_and_a_wrong_one_changes_nothing(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.write_text("[callers.search]\ntokens_per_second = 1\n")
    policies = Policies(path)
    replace(path, b"[callers.search]\ntokens_per_second = 2\n")
    assert policies.of("search").tokens_per_second == 2
    replace(path, b"[callers.search]\ntokens_per_minute = 3\n")
    for _ in range(3):
        assert policies.of("search").tokens_per_second == 2
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "line 2" in caplog.text
    path.unlink()
    assert policies.of("search").tokens_per_second == 2
    path.write_text("[callers.other]\n")
    assert policies.of("search") == Policy()
    assert not policies.lists("search")
