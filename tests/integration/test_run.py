"""`make run`: it obeys the environment, says at once what is wrong, keeps data if asked to, leaves nothing running."""

import os
import re
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.support.redis import RedisProcess
from tests.support.stacks import NO_WORKERS, LocalStack, free_ports, local_stack
from winnow_cli.__main__ import main as winnow

pytestmark = pytest.mark.timeout(300)


def gateway_of(stack: LocalStack) -> str:
    return stack.wait_for(r"gateway\s+(127\.0\.0\.1:\d+)").group(1)


def wait_until_gone(stack: LocalStack) -> None:
    while stack.processes():
        time.sleep(0.05)


def pid_of(stack: LocalStack, command: str) -> int:
    [pid] = [pid for pid, line in stack.processes().items() if command in line]
    return pid


def test_addresses_are_obeyed_and_data_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    environment = {
        **free_ports(),
        "gateway_listen": f"127.0.0.1:{port}",  # settings are read in any case
        "EMBED_LISTEN": "0.0.0.0:0",
        "RERANK_LISTEN": "[::]:0",
        "EMBED_METRICS_LISTEN": "",
        "http_proxy": "http://127.0.0.1:1",
    }
    del environment["GATEWAY_LISTEN"]
    (tmp_path / "docs.jsonl").write_text('{"id": "whale", "text": "A very large marine mammal."}\n')
    address = ["--address", f"127.0.0.1:{port}"]
    data = tmp_path / "some data"
    with local_stack("run", "--data", data, **environment) as stack:
        stack.wait_for("Ctrl-C stops everything")
        assert gateway_of(stack) == f"127.0.0.1:{port}"
        assert f"winnow --address 127.0.0.1:{port} search" in stack.output
        assert re.search(r"embed     localhost:\d+\n", stack.output)
        assert re.search(r"rerank    localhost:\d+, metrics on http://127\.0\.0\.1:\d+/metrics\n", stack.output)
        assert re.search(r"  http://127\.0\.0\.1:\d+ in a browser\n", stack.output)
        assert f"are kept in {data}" in stack.output
        assert winnow([*address, "ingest", "animals", str(tmp_path / "docs.jsonl")]) == 0
        with local_stack("run", "--data", data, **free_ports()) as second:
            assert second.status() == 1
            assert f"could not start: {data} is in use by another stack" in second.output
        stack.signal(signal.SIGTERM)
        assert stack.status() == 128 + signal.SIGTERM
        assert stack.output.endswith("\nstopped\n")
        assert not stack.processes()
    assert "serving winnow." in (data / "gateway.log").read_text()  # the logs outlive the stack

    with local_stack("run", "--data", data, **environment, **NO_WORKERS) as stack:
        assert gateway_of(stack) == f"127.0.0.1:{port}"
        assert "embed     not started: GATEWAY_EMBED_TARGET is set" in stack.output
        assert "rerank    not started: GATEWAY_RERANK_TARGET is set" in stack.output
        assert not [line for line in stack.processes().values() if "services." in line]
        capsys.readouterr()
        assert winnow([*address, "collections"]) == 0
        assert "animals: 1 documents" in capsys.readouterr().out


@pytest.mark.parametrize("setting", ["GATEWAY_LISTEN", "RERANK_METRICS_LISTEN", "EMBED_HEALTH_LISTEN"])
def test_a_taken_port_is_named_before_anything_starts(setting: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with local_stack("run", **free_ports() | {setting: address}) as stack:
            assert stack.status() == 1
    assert re.search(rf"could not start: {address} is not available .*set {setting}=", stack.output)
    assert "redis" not in stack.output


def test_two_parts_on_one_port_are_told_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    with local_stack("run", **free_ports() | {"EMBED_LISTEN": address, "GATEWAY_LISTEN": address}) as stack:
        assert stack.status() == 1
    assert f"could not start: {address} is not available" in stack.output


def test_a_wrong_setting_of_the_last_part_is_found_before_the_models_are_loaded() -> None:
    with local_stack("run", **free_ports(), GATEWAY_LISTN="127.0.0.1:0") as stack:
        assert stack.status() == 1
    assert "did you mean GATEWAY_LISTEN?" in stack.output
    assert "embed     " not in stack.output  # nothing was ready yet
    assert not stack.processes()


def test_redis_elsewhere_is_used_and_none_is_started(tmp_path: Path, redis8: RedisProcess) -> None:
    elsewhere = {**free_ports(), **NO_WORKERS, "GATEWAY_REDIS_URL": redis8.url}
    with local_stack("run", **elsewhere) as stack:
        gateway_of(stack)
        assert "redis     not started: GATEWAY_REDIS_URL is set" in stack.output
        assert not [line for line in stack.processes().values() if "redis-server" in line]
    with local_stack("run", "--data", tmp_path, **elsewhere) as stack:
        assert stack.status() == 1
        assert "nothing to keep here" in stack.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_each_way_of_ending_it_ends_all_parts(number: int) -> None:
    with local_stack("run", **free_ports(), **NO_WORKERS) as stack:
        stack.wait_for("Ctrl-C stops everything")
        assert len(stack.processes()) == 4  # itself, Redis, the gateway, the watchdog
        stack.signal(number)
        assert stack.status() == 128 + number
        assert not stack.processes()
        assert stack.output.endswith("\nstopped\n")


def test_it_ends_while_it_starts() -> None:
    with local_stack("run", **free_ports()) as stack:
        stack.wait_for("redis     ")
        stack.signal(signal.SIGHUP)
        assert stack.status() == 128 + signal.SIGHUP
        assert not stack.processes()


def test_a_second_ctrl_c_ends_at_once_what_does_not_end_by_itself() -> None:
    with local_stack("run", **free_ports(), **NO_WORKERS) as stack:
        stack.wait_for("Ctrl-C stops everything")
        os.kill(pid_of(stack, "-m gateway"), signal.SIGSTOP)
        stack.signal(signal.SIGINT)
        stack.wait_for("stopping")
        stack.signal(signal.SIGINT)
        assert stack.status() == 128 + signal.SIGINT
        assert not stack.processes()
        assert stack.output.endswith("\nstopped\n")


@pytest.mark.parametrize("what", ["run", "demo"])
def test_nothing_outlives_it_if_it_is_killed(what: str) -> None:
    environment = {**free_ports(), **NO_WORKERS} if what == "run" else {}
    with local_stack(what, **environment) as stack:
        stack.wait_for("redis     ")
        stack.signal(signal.SIGKILL)
        stack.status()
        wait_until_gone(stack)


def test_the_demo_says_which_settings_it_does_not_use() -> None:
    with local_stack("demo", GATEWAY_REDIS_URL="redis://127.0.0.1:1", EMBED_LISTEN="127.0.0.1:1") as stack:
        stack.wait_for("the demo is private and does not use EMBED_LISTEN, GATEWAY_REDIS_URL")
        stack.signal(signal.SIGTERM)
        stack.status()
        assert not stack.processes()
