"""When the command line goes through a proxy, and what it says about a token or certificates it cannot use."""

from pathlib import Path

import pytest

from winnow_cli.connection import bearer, bypasses_proxy, open_channel
from winnow_cli.errors import CommandError


@pytest.mark.parametrize(
    "address",
    [
        "localhost:50050",
        "LOCALHOST:50050",
        "gateway.localhost:50050",
        "127.0.0.1:50050",
        "127.8.9.1:50050",
        "[::1]:50050",
        "ipv6:%5B::1%5D:50050",
        "ipv4:127.0.0.1:50050",
        "dns:///localhost:50050",
        "0.0.0.0:50050",
        "unix:/run/winnow.sock",
        "unix:///run/winnow.sock",
        "unix-abstract:winnow",
    ],
)
def test_this_machine_is_never_behind_a_proxy(address: str) -> None:
    assert bypasses_proxy(address, {})


@pytest.mark.parametrize("name", ["no_proxy", "NO_PROXY"])
@pytest.mark.parametrize(
    ("address", "excluded", "direct"),
    [
        ("gateway.corp.example:443", "corp.example", True),
        ("gateway.corp.example:443", "other.example, .corp.example", True),
        ("gateway.corp.example:443", "*.corp.example", True),
        ("Gateway.Corp.Example:443", "gateway.corp.EXAMPLE", True),
        ("dns:///gateway.corp.example:443", "corp.example", True),
        ("gateway:50050", "*", True),
        ("10.1.2.3:50050", "10.0.0.0/8", True),
        ("10.1.2.3:50050", "10.1.2.3", True),
        ("[fd00::5]:50050", "fd00::/8", True),
        ("gateway.mycorp.example:443", "corp.example.org,rp.example", False),
        ("11.1.2.3:50050", "10.0.0.0/8,fd00::/8", False),
        ("gateway.corp.example:443", "", False),
        ("gateway.corp.example:443", " , ", False),
    ],
)
def test_what_no_proxy_excludes_in_either_case_is_direct(name: str, address: str, excluded: str, direct: bool) -> None:
    assert bypasses_proxy(address, {name: excluded}) == direct


def test_a_token_is_trimmed_and_one_that_is_no_header_is_refused() -> None:
    assert bearer("abc\n") == (("authorization", "Bearer abc"),)
    assert bearer(None) == bearer("") == bearer(" \n") == ()
    for token in ("a\nb", "a b", "é", "a\x00b"):
        with pytest.raises(CommandError, match="token"):
            bearer(token)


def test_certificates_that_are_none_are_named(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("hello")
    with pytest.raises(CommandError, match=r"ca\.pem holds no certificate"):
        open_channel("localhost:1", str(tmp_path / "ca.pem"))
