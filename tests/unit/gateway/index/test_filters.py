"""The filter language, beside a plain reading of it, on a real Redis."""

import json
from collections.abc import Iterator, Mapping, Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.index.filters import FilterError, attributes, translate
from tests.support.redis import RedisProcess, redis_server

# What trips one parser or another, and any character at all; a lone half of a surrogate pair is only in JSON escapes.
odd = st.sampled_from("\"'\\\n\r\t\0\x7füé🜁. -_nu0aB\u0308\U0010ff00\U0010ff22\U0010ff80\U0010ffff\ud800")
texts = st.lists(odd | st.characters(), max_size=4).map("".join)
numbers = (
    st.integers(-3, 3)
    | st.floats(-1e6, -1e-9)
    | st.floats(1e-9, 1e6)
    | st.sampled_from([1e-7, 1e300, 2**53, 0.1, -0.0])
)
scalars = texts | numbers | st.booleans()


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisProcess]:
    with redis_server() as server:
        yield server


def found(
    redis: RedisProcess, documents: Sequence[Mapping[str, object]], filter_: str, ascii_: bool = True
) -> list[int]:
    """Which documents a filter finds."""
    with redis.client() as client:
        client.flushall()
        for number, document in enumerate(documents):
            metadata = json.dumps(document, ensure_ascii=ascii_)
            client.execute_command("VADD", "v", "VALUES", 1, 1, str(number), "SETATTR", attributes(metadata))
        command = ("VSIM", "v", "VALUES", 1, 1, "COUNT", 1000, "FILTER", translate(filter_).redis)
        reply = client.execute_command(*command)
        return sorted(map(int, reply))


def selector(key: str) -> str:
    return f".[{json.dumps(key)}]"


several = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@several
@given(st.lists(st.dictionaries(texts, texts, max_size=3), min_size=1, max_size=6), st.data())
def test_a_string_is_found_where_it_is_and_nowhere_else(
    redis: RedisProcess, documents: list[dict[str, str]], data: st.DataObject
) -> None:
    key = data.draw(st.sampled_from([key for one in documents for key in one] or [""]))
    value = data.draw(st.sampled_from([value for one in documents for value in one.values()] or [""]) | texts)
    wanted = [n for n, one in enumerate(documents) if one.get(key) == value]
    for literal in (json.dumps(value), json.dumps(value, ensure_ascii=False)):
        assert found(redis, documents, f"{selector(key)} == {literal}") == wanted
        assert found(redis, documents, f"{selector(key)} in [{literal}, 'and another']") == wanted
    others = [n for n, one in enumerate(documents) if key in one and one[key] != value]
    assert found(redis, documents, f"{selector(key)} != {json.dumps(value)}") == others
    assert found(redis, documents, f"not ({selector(key)} == {json.dumps(value)})") == others


@several
@given(st.lists(st.dictionaries(st.just("k"), numbers | st.booleans()), min_size=1, max_size=6), numbers)
def test_numbers_and_booleans(redis: RedisProcess, documents: list[dict[str, bool | float]], value: float) -> None:
    known = [(n, float(one["k"])) for n, one in enumerate(documents) if "k" in one]
    for operator, holds in (("==", float.__eq__), (">=", float.__ge__), ("<", float.__lt__)):
        wanted = [n for n, it in known if holds(it, float(value))]
        assert found(redis, documents, f".k {operator} {value!r}") == wanted
    assert found(redis, documents, ".k == true") == [n for n, it in known if it == 1]
    assert found(redis, documents, ".k in [false, 3]") == [n for n, it in known if it in {0, 3}]


@several
@given(st.lists(st.lists(texts, max_size=3), min_size=1, max_size=5), texts)
def test_strings_in_lists(redis: RedisProcess, documents: list[list[str]], value: str) -> None:
    wanted = [n for n, one in enumerate(documents) if value in one]
    assert found(redis, [{"k": one} for one in documents], f"{json.dumps(value)} in .k") == wanted


@several
@given(st.lists(texts, min_size=1, max_size=5), texts)
def test_a_part_of_a_string(redis: RedisProcess, documents: list[str], value: str) -> None:
    wanted = [n for n, one in enumerate(documents) if value in one]
    assert found(redis, [{"k": one} for one in documents], f"{json.dumps(value)} in .k") == wanted


@pytest.mark.parametrize("ascii_", [True, False])
@pytest.mark.parametrize(
    "filter_",
    [
        '.city == "München"',
        '.city == "M\\u00fcnchen"',
        ".city == 'München'",
        ".größe == 1.5",
        '.["gr\\u00f6ße"] == 15e-1',
        '.["a.b"] == 1',
        '.["a b"] == 1',
        ".a-b == 1",
        '.Up == "x"',
        '.quote == "say \\"hi\\" \\\\ \'"',
        '.line == "a\\nb"',
        '.[""] == "empty"',
        ".yes == true and .no == false",
        '"ü" in .tags',
        "2 in .tags",
        ".nothing == null",
        '.star == "\\ud83c\\udf1f"',
        ".größe in [1, 1.5] and not (.größe == 1)",
    ],
)
def test_what_filters_say(redis: RedisProcess, filter_: str, ascii_: bool) -> None:
    document = {
        "city": "München", "größe": 1.5, "a.b": 1, "a b": 1, "a-b": 1, "Up": "x", "quote": "say \"hi\" \\ '",
        "line": "a\nb", "": "empty", "yes": True, "no": False, "tags": ["ü", 2, None, {"x": 1}, [3]], "nothing": None,
        "star": "🌟", "inner": {"city": "Rom"},
    }  # fmt: skip
    other = {"city": "Munchen", "größe": 2, "up": "x", "tags": [], "inner": {"größe": 1.5}}
    assert found(redis, [other, document], filter_, ascii_) == [1]


def test_what_filters_do_not_see(redis: RedisProcess) -> None:
    """Objects, and lists or objects in lists, are as if they were not there; NFC and NFD are two strings."""
    documents: list[dict[str, object]] = [{"k": {"x": 1}}, {"k": "u\u0308"}, {}]
    assert found(redis, documents, ".k != 1") == [1]
    assert found(redis, documents, '.k == "\u00fc"') == []


def test_of_a_key_twice_the_last_counts() -> None:
    assert attributes('{"k": 1, "k": 2}') == attributes('{"k": 2}')


@pytest.mark.parametrize("metadata", ["", "{}", '{"k": {"x": 1}}'])
def test_nothing_to_filter_on_is_nothing(metadata: str) -> None:
    assert attributes(metadata) == b""


@given(st.dictionaries(texts, texts | st.lists(texts), max_size=4))
def test_attributes_have_nothing_to_decode(document: dict[str, list[str] | str]) -> None:
    stored = attributes(json.dumps(document))
    assert b"\\" not in stored
    assert all(byte >= 0x20 for byte in stored)
    assert b'"' not in stored.replace(b'":', b"").replace(b'"', b"", 0) or json.loads(stored.decode(errors="replace"))


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ('.k == "x', "unterminated string"),
        (".k == 'x", "unterminated string"),
        (".k == \"x'", "unterminated string"),
        ('.k == "\\q"', "write \\\\ for a backslash"),
        ('.k == "\\u12"', "unknown escape"),
        (".a.b == 1", '.["a.b"]'),
        ('.["a"].b == 1', '.["a.b"]'),
        (".k == 1\0 and .j == 2", "outside of a string"),
        ("größe == 1", '.["any key"]'),
        (".k == 1e-300", "out of range"),
        (".k == " + "9" * 400, "out of range"),
    ],
)
def test_what_is_refused_says_what_to_do(bad: str, says: str) -> None:
    with pytest.raises(FilterError, match=r".+") as refused:
        translate(bad)
    assert says in str(refused.value)
    assert len(str(refused.value)) <= 200  # of which a status keeps so many


def test_a_refusal_of_redis_is_told_in_the_callers_words(redis: RedisProcess) -> None:
    filter_ = '.größe == "Ü" and [x]'
    translated = translate(filter_)
    with redis.client() as client:
        client.execute_command("VADD", "v", "VALUES", 1, 1, "x")
        with pytest.raises(Exception, match="FILTER") as refused:
            client.execute_command("VSIM", "v", "VALUES", 1, 1, "FILTER", translated.redis)
    said = translated.refused(str(refused.value))
    assert "near x]" in said
    assert "_c3" not in said


@given(texts, texts)
def test_keys_and_strings_are_stored_one_to_one(one: str, other: str) -> None:
    assert (attributes(json.dumps({one: other})) == attributes(json.dumps({other: one}))) == (one == other)
    assert (attributes(json.dumps({one: 1})) == attributes(json.dumps({other: 1}))) == (one == other)
    assert (attributes(json.dumps({"k": one})) == attributes(json.dumps({"k": other}))) == (one == other)
