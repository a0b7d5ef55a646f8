import logging
from pathlib import Path

import pytest
from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import SettingsConfigDict

from services.runtime.settings import (
    Listen,
    OptionalListen,
    ProcessSettings,
    Target,
    Token,
    load,
    log_settings,
    redacted,
)


class Settings(ProcessSettings):
    model_config = SettingsConfigDict(env_prefix="SAMPLE_")

    listen: Listen = "[::]:50051"
    metrics_listen: OptionalListen = "[::]:9091"
    redis_url: str = "redis://localhost"
    token: Token = SecretStr("")
    target: Target = "localhost:50051"
    items: int = Field(5, ge=1)


def refusal(capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as end:
        load(Settings)
    assert end.value.code == 2
    return capsys.readouterr().err


def test_variables_are_read_and_the_rest_has_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMPLE_ITEMS", "7")
    monkeypatch.setenv("SAMPLE_LISTEN", "127.0.0.1:0")
    monkeypatch.setenv("SAMPLE_METRICS_LISTEN", "")
    monkeypatch.setenv("SAMPLE_TLS_CERT", "")
    monkeypatch.setenv("OTHER_ITEMS", "8")
    settings = load(Settings)
    assert (settings.items, settings.listen, settings.metrics_listen, settings.tls_cert) == (
        7,
        "127.0.0.1:0",
        None,
        None,
    )
    assert settings.drain_seconds == 30


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Settings().items = 3  # type: ignore[misc]


def test_an_unknown_variable_stops_the_start_and_names_the_nearest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SAMPLE_ITEM", "7")
    assert "SAMPLE_ITEM: there is no such setting; did you mean SAMPLE_ITEMS?" in refusal(capsys)


def test_a_variable_of_a_kubernetes_service_is_explained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SAMPLE_PORT_50051_TCP_ADDR", "10.0.0.1")
    assert "enableServiceLinks: false" in refusal(capsys)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ITEMS", "0"),
        ("ITEMS", "many"),
        ("LISTEN", "50051"),
        ("LISTEN", "host:port"),
        ("LISTEN", "[::]:70000"),
        ("METRICS_LISTEN", "nowhere"),
        ("MAX_MESSAGE_BYTES", "12"),
        ("LOG_LEVEL", "LOUD"),
        ("DRAIN_SECONDS", "-1"),
        ("LISTEN", "local host:1"),
        ("LISTEN", "[::]:٥٠٠٥"),
        ("TOKEN", "two words"),
        ("TOKEN", "line\nfeed"),
        ("TOKEN", "schlüssel"),
        ("TOKEN", "\ufeffbyte-order-mark"),
        ("TARGET", "host :50051"),
        ("TARGET", "ipv4:10.0.0.1:1, 10.0.0.2:1"),
        ("TARGET", "höst:50051"),
        ("TARGET", "http://host:50051"),
        ("TLS_CERT", "/some\tfile"),
        ("REDIS_URL", "redis://host\n/0"),
    ],
)
def test_a_wrong_value_stops_the_start_by_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, value: str
) -> None:
    monkeypatch.setenv(f"SAMPLE_{name}", value)
    assert refusal(capsys).startswith(f"wrong setting: SAMPLE_{name}: ")


@pytest.mark.parametrize("around", ["{}\n", " {}", "{}\r\n", "\t{}\t"])
def test_white_space_around_a_value_is_dropped(monkeypatch: pytest.MonkeyPatch, around: str) -> None:
    values = {"TOKEN": "hush", "TARGET": "host:1", "LISTEN": "[::]:1", "TLS_CA": "", "LOG_LEVEL": "DEBUG", "ITEMS": "3"}
    for name, value in values.items():
        monkeypatch.setenv(f"SAMPLE_{name}", around.format(value))
    settings = load(Settings)
    assert settings.token.get_secret_value() == "hush"
    assert (settings.target, settings.listen, settings.tls_ca) == ("host:1", "[::]:1", None)
    assert (settings.log_level, settings.items) == ("DEBUG", 3)


@pytest.mark.parametrize("value", ["hush hush", "hush\nhush", "hüsh", "hush\x7f!"])
def test_a_refused_secret_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    monkeypatch.setenv("SAMPLE_TOKEN", value)
    said = refusal(capsys)
    assert said.startswith("wrong setting: SAMPLE_TOKEN: ")
    assert value[:2] not in said.removeprefix("wrong setting: ")


def test_all_wrong_variables_are_named_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SAMPLE_ITEMS", "0")
    monkeypatch.setenv("SAMPLE_LISTEN", "x")
    monkeypatch.setenv("SAMPLE_NONE", "x")
    assert len(refusal(capsys).splitlines()) == 3


@pytest.mark.parametrize("names", [("TLS_CERT",), ("TLS_KEY",), ("TLS_CA",)])
def test_half_of_tls_stops_the_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], names: tuple[str]
) -> None:
    for name in names:
        monkeypatch.setenv(f"SAMPLE_{name}", "/some/file")
    assert "tls_cert and tls_key" in refusal(capsys)


def test_what_is_told_holds_no_secret(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("SAMPLE_TOKEN", "hush")
    monkeypatch.setenv("SAMPLE_REDIS_URL", "redis://me:hush@host:6379/0")
    settings = load(Settings)
    values = redacted(settings)
    assert values["SAMPLE_TOKEN"] == "***"
    assert values["SAMPLE_REDIS_URL"] == "redis://***@host:6379/0"
    with caplog.at_level(logging.INFO):
        log_settings(settings, logging.getLogger("sample"))
    assert "hush" not in caplog.text
    assert "SAMPLE_ITEMS=5" in caplog.text


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:pa/hush@host:6379/0", "redis://***@host:6379/0"),
        ("https://me:hu@sh@hub/model", "https://***@hub/model"),
        ("redis://host?db=1&password=hush", "redis://host?db=1&password=***"),
        ("https://host?api_key=hush&x=1", "https://host?api_key=***&x=1"),
        ("https://host/path@main", "https://***@main"),
        ("dns:///workers:50051", "dns:///workers:50051"),
    ],
)
def test_urls_are_told_without_what_may_be_a_secret(monkeypatch: pytest.MonkeyPatch, url: str, shown: str) -> None:
    monkeypatch.setenv("SAMPLE_REDIS_URL", url)
    assert redacted(load(Settings))["SAMPLE_REDIS_URL"] == shown


def test_every_setting_is_described() -> None:
    from services.embed.settings import EmbedSettings
    from services.rerank.settings import RerankSettings

    for kind in (EmbedSettings, RerankSettings):
        assert [name for name, field in kind.model_fields.items() if not field.description] == []
        assert (
            Path(kind().model).name
            == {"EMBED_": "nano-embed", "RERANK_": "nano-rerank"}[kind.model_config["env_prefix"]]
        )
