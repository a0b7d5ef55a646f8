"""URLs of Redis: refused at the start where redis-py would refuse or misread them, shown without their secrets."""

import json
import logging
from typing import Literal

import pytest
from pydantic import ValidationError

from gateway.redis.url import RedisUrl
from gateway.settings import GatewaySettings
from services.runtime.settings import load, log_settings, redacted
from services.runtime.telemetry.logs import configure

SECRET = "s3cr3t"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://host", "redis://host"),
        ("redis://", "redis://"),
        ("redis://host:6380/3", "redis://host:6380/3"),
        (" redis://host\n", "redis://host"),
        ("redis://host/", "redis://host/"),
        ("REDIS://host", "redis://host"),
        (f"redis://:{SECRET}@host:1", "redis://***@host:1"),
        (f"redis://me:{SECRET}@host", "redis://***@host"),
        (f"redis://{SECRET}@host", "redis://***@host"),
        (f"redis://:a@{SECRET}@host", "redis://***@host"),
        (f"redis://:%2F%40{SECRET}@host/1", "redis://***@host/1"),
        (f"redis://host?password={SECRET}", "redis://host?password=***"),
        (f"redis://host?username={SECRET}&password={SECRET}&db=2", "redis://host?username=***&password=***&db=2"),
        (f"rediss://:{SECRET}@[::1]:6379/0", "rediss://***@[::1]:6379/0"),
        ("rediss://host?ssl_cert_reqs=none", "rediss://host?ssl_cert_reqs=***"),
        (f"redis+cluster://:{SECRET}@a_b.c-d:7000/0", "redis+cluster://***@a_b.c-d:7000/0"),
        (f"rediss+cluster://:{SECRET}@host", "rediss+cluster://***@host"),
        ("unix:///run/redis.sock", "unix:///run/redis.sock"),
        (f"unix://me:{SECRET}@/run/redis.sock?db=1", "unix://***@/run/redis.sock?db=1"),
        (f"unix:///run/redis.sock?password={SECRET}", "unix:///run/redis.sock?password=***"),
    ],
)
def test_good_urls_and_how_they_are_shown(url: str, shown: str) -> None:
    read = RedisUrl(url)
    assert read.get_secret_value() == url.strip()
    assert (str(read), f"{read}", repr(read)) == (shown, shown, f"RedisUrl('{shown}')")


@pytest.mark.parametrize(
    "url",
    [
        f"http://:{SECRET}@host",
        SECRET,
        f"redis:{SECRET}@host",
        f"redis:/{SECRET}",
        f"{SECRET}://host",
        f"redis://host:{SECRET}",
        f"redis://host/{SECRET}",
        f"redis://:pa/{SECRET}@host",
        f"redis://:1/{SECRET}@host",
        f"redis://:pa#{SECRET}@host",
        f"redis://:1#{SECRET}@host",
        f"redis://:pa?{SECRET}@host",
        f"redis://:1?{SECRET}@host",
        f"redis://:50%{SECRET}@host",
        f"redis://:a {SECRET}@host",
        f"redis://:{SECRET}@host:0",
        f"redis://:{SECRET}@host:99999",
        f"redis://:{SECRET}@[::1",
        f"redis://:{SECRET}@one,two",
        f"redis://:{SECRET}@host/-1",
        f"redis://:{SECRET}@host/0/1",
        f"redis://:{SECRET}@host/99999999999999",
        f"redis://:{SECRET}@host/1?db=2",
        f"redis://:{SECRET}@host?db=abc",
        f"redis://:{SECRET}@host?db=-1",
        f"redis://:{SECRET}@host?unknown=1",
        f"redis://:{SECRET}@host?ssl_cert_reqs=none",
        f"rediss://:{SECRET}@host?ssl_cert_reqs=perhaps",
        f"redis://:{SECRET}@host?max_connections=3",
        f"redis://:{SECRET}@host?socket_timeout=100",
        f"redis://host?password={SECRET}&password=other",
        f"redis://host?password=a+{SECRET}",
        "redis://host?password=",
        f"redis://host?{SECRET}",
        f"redis+cluster://:{SECRET}@host/1",
        f"redis+cluster://:{SECRET}@host?db=1",
        "unix://",
        f"unix://{SECRET}/redis.sock",
        f"unix+cluster:///{SECRET}",
    ],
)
def test_bad_urls_stop_the_start_without_a_word_of_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], url: str
) -> None:
    monkeypatch.setenv("GATEWAY_INDEX_URL", url)
    with pytest.raises(SystemExit):
        load(GatewaySettings)
    said = capsys.readouterr().err
    assert said.startswith("wrong setting: GATEWAY_INDEX_URL: ")
    assert len(said.splitlines()) == 1
    assert SECRET not in said
    with pytest.raises(ValidationError) as raised:
        GatewaySettings(redis_url=url)
    assert SECRET not in str(raised.value)


def test_what_is_special_has_to_be_encoded(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("GATEWAY_REDIS_URL", "redis://:pa/ss@host")
    with pytest.raises(SystemExit):
        load(GatewaySettings)
    assert "percent-encode" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["plain", "json"])
def test_the_line_of_settings_holds_no_secret(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], form: Literal["plain", "json"]
) -> None:
    monkeypatch.setenv("GATEWAY_REDIS_URL", f"redis://:a@{SECRET}@host/1?username={SECRET}")
    settings = load(GatewaySettings)
    assert redacted(settings)["GATEWAY_REDIS_URL"] == "redis://***@host/1?username=***"
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        configure("INFO", form)
        log_settings(settings, logging.getLogger("sample"))
        root.handlers[0].flush()
    finally:
        root.handlers[:], root.level = handlers, level
    said = capsys.readouterr().err
    assert "GATEWAY_REDIS_URL" in said
    assert SECRET not in said
    if form == "json":
        json.loads(said.splitlines()[-1])
    assert SECRET not in repr(settings.redis_url)
