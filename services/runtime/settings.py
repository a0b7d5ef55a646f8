"""One frozen settings object per process, read once from environment variables under the process's prefix.

A process subclasses `ProcessSettings` with its `env_prefix`; `load` reads it or ends the process with one line for
each wrong variable. A variable under the prefix that names no setting stops the start: a misspelt name must not go
unnoticed. White space around a value is dropped.
"""

from __future__ import annotations

import argparse
import difflib
import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.runtime.bearer_tokens import VISIBLE

# Up to the last "@" of a word: a password may contain unescaped special characters.
_USER_INFO = re.compile(r"(?<=://)\S*@")
_SECRET_OPTION = re.compile(
    r"(?i)(?<=[?&;])([^=&;\s]*(?:user|pass|pw|token|secret|key|auth|cred|sig)[^=&;\s]*)=[^&;\s]*"
)


def blank_is_none(value: object) -> object:
    """For BeforeValidator: a blank variable counts as unset."""
    return None if isinstance(value, str) and not value.strip() else value


def _host_port(value: object) -> object:
    if isinstance(value, str):
        host, colon, port = _visible(value).rpartition(":")
        if not (colon and host and port.isdigit() and int(port) < 65536):
            raise ValueError("must be HOST:PORT, as in [::]:50051 or 127.0.0.1:0 (0: any free port)")
    return value


def _visible(value: str) -> str:
    if not VISIBLE.fullmatch(value):
        raise ValueError("must be visible ASCII characters, without white space inside")
    return value


def _target(value: str) -> str:
    if value.startswith(("http://", "https://")):
        raise ValueError("must be a gRPC target, HOST:PORT or dns:///HOST:PORT, without http")
    return _visible(value)


def _token(value: SecretStr) -> SecretStr:
    _visible(value.get_secret_value())
    return value


Listen = Annotated[str, BeforeValidator(_host_port)]
"""HOST:PORT; port 0 is any free one, which is logged."""
OptionalListen = Annotated[Listen | None, BeforeValidator(blank_is_none)]
"""The same; empty turns it off."""
Target = Annotated[str, AfterValidator(_target)]
"""A gRPC target: HOST:PORT, dns:///HOST:PORT, unix:PATH."""
Token = Annotated[SecretStr, AfterValidator(_token)]
"""A bearer token, which goes into a header; empty is none."""
OptionalPath = Annotated[Path | None, BeforeValidator(blank_is_none)]
"""A file; empty is none."""
OptionalText = Annotated[str | None, BeforeValidator(blank_is_none)]
"""A text; empty is none."""


class ProcessSettings(BaseSettings):
    """Settings of every process. Each field is the variable PREFIX + its name in capitals."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    passed_names: ClassVar[bool] = False
    """Whether the process's own peers may name the caller that they work for."""

    listen: Listen = Field(description="address of the gRPC port")
    metrics_listen: OptionalListen = Field(description="address of the Prometheus endpoint; empty: none")
    health_listen: OptionalListen = Field(
        None, description="address of a plaintext port with the health service only, for probes if TLS is mutual"
    )
    reflection: bool = Field(True, description="serve gRPC reflection")
    max_message_bytes: int = Field(
        64 << 20, ge=1 << 16, le=1 << 30, description="maximum size of one message, sent or received"
    )
    max_items: int = Field(2048, ge=1, description="maximum texts, documents or ids in one request")
    max_calls: int = Field(
        10_000, ge=1, description="maximum calls in progress; one more is refused with RESOURCE_EXHAUSTED"
    )
    drain_seconds: float = Field(30.0, ge=0, le=3600, description="time limit for accepted calls after SIGTERM")
    connection_age_seconds: float = Field(
        300.0,
        ge=0,
        description="seconds after which clients are asked to reconnect, so that they find new replicas; 0: never",
    )
    tls_cert: OptionalPath = Field(None, description="certificate chain (PEM); enables TLS on the gRPC port")
    tls_key: OptionalPath = Field(None, description="private key (PEM) of the certificate")
    tls_ca: OptionalPath = Field(None, description="CA (PEM); clients must present a certificate signed by it")
    auth_tokens_file: OptionalPath = Field(
        None, description='file of bearer tokens, one "name token" or "token" a line; read again when it changes'
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="minimum level of log lines")
    log_format: Literal["plain", "json"] = Field("plain", description="format of the log on stderr")

    @field_validator("*", mode="before")
    @classmethod
    def _trimmed(cls, value: object) -> object:
        """A Secret made from a file ends in a line feed; a control character inside a value is a mistake."""
        if not isinstance(value, str):
            return value
        value = value.strip()
        if any(ord(character) < 0x20 or ord(character) == 0x7F for character in value):
            raise ValueError("has a control character inside, such as a line feed")
        return value

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key are needed together")
        if self.tls_ca is not None and self.tls_cert is None:
            raise ValueError("tls_ca needs tls_cert and tls_key")
        return self


Settings = TypeVar("Settings", bound=ProcessSettings)


def load(kind: type[Settings], arguments: Sequence[str] = ()) -> Settings:
    """The settings, or the end of the process (status 2) with a line for each wrong variable on stderr.

    `arguments` of the command line: only `--help` is known; it prints the settings.
    """
    prefix = kind.model_config.get("env_prefix", "")
    parser = argparse.ArgumentParser(
        description="Settings are environment variables:",
        epilog="\n".join(f"{name}={default}\n    {text}" for name, default, text in described(kind)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args(list(arguments))
    wrong = list(_unknown(kind, prefix))
    try:
        settings = kind()  # the environment gives the values
    except ValidationError as error:
        for item in error.errors(include_url=False, include_input=False):
            name = prefix + "_".join(str(part) for part in item["loc"][:1]).upper() if item["loc"] else prefix + "TLS_*"
            wrong.append(f"{name}: {item['msg'].removeprefix('Value error, ')}")
    if wrong:
        print("\n".join(f"wrong setting: {line}" for line in wrong), file=sys.stderr, flush=True)
        raise SystemExit(2)
    return settings


def _unknown(kind: type[ProcessSettings], prefix: str) -> Iterator[str]:
    known = [prefix + name.upper() for name in kind.model_fields]
    for name in sorted(os.environ):
        if not name.upper().startswith(prefix) or name.upper() in known:
            continue
        close = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.0)
        hint = f"did you mean {close[0]}?"
        if re.search(r"_SERVICE_(HOST|PORT)|_PORT(_|$)", name):
            hint = "Kubernetes adds such names for a Service; set enableServiceLinks: false in the pod"
        yield f"{name}: there is no such setting; {hint}"


def described(kind: type[ProcessSettings]) -> list[tuple[str, str, str]]:
    """(variable, default as it would be set, help text) of every setting, in the order of declaration."""
    prefix = kind.model_config.get("env_prefix", "")
    return [
        (prefix + name.upper(), str(_redacted(field.get_default())), field.description or "")
        for name, field in kind.model_fields.items()
    ]


def redacted(settings: ProcessSettings) -> dict[str, Any]:
    """Variable name → value, for the log: secrets and passwords within URLs are replaced."""
    prefix = settings.model_config.get("env_prefix", "")
    return {prefix + name.upper(): _redacted(value) for name, value in settings}


def log_settings(settings: ProcessSettings, log: logging.Logger) -> None:
    """One line with all of them, at start."""
    values = redacted(settings)
    log.info("settings %s", " ".join(f"{name}={value}" for name, value in values.items()), extra={"settings": values})


def _redacted(value: object) -> Any:
    if isinstance(value, SecretStr):
        return "***" if value.get_secret_value() else ""
    if value is None:
        return ""
    if isinstance(value, bool | int | float):
        return value
    return _SECRET_OPTION.sub(r"\1=***", _USER_INFO.sub("***@", str(value)))
