"""The `winnow` command, against a real stack."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
import trustme

from deploy.local.stack import Stack
from winnow.embed.v1 import embed_pb2, embed_pb2_grpc
from winnow.retrieval.v1 import retrieval_pb2 as pb
from winnow.retrieval.v1 import retrieval_pb2_grpc as rpc
from winnow_cli.__main__ import main

ROOT = Path(__file__).resolve().parents[2]
NOWHERE = ["--address", "127.0.0.1:1", "--timeout", "5"]
ANIMALS = {
    "cat": "A small domesticated carnivore with soft fur that purrs and catches mice.",
    "whale": "A very large marine mammal that breathes air through a blowhole.",
    "eagle": "A large bird of prey with a hooked beak and keen sight.",
}


def winnow(*words: str | bytes, **options: object) -> "subprocess.Popen[bytes]":
    """The command as a process of its own."""
    command = [sys.executable, "-m", "winnow_cli", *words]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, **(pipes | options))  # type: ignore[call-overload, no-any-return]


@pytest.fixture
def address(stack: Stack) -> list[str]:
    return ["--address", stack.addresses["gateway"]]


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


def test_a_document_that_fails_is_named_and_the_status_is_1(
    address: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "some.jsonl"
    rows = [{"id": "good", "text": "a text"}, {"id": "[red]bad[/b]", "text": ""}]
    file.write_text("\n".join(map(json.dumps, rows)))
    assert main([*address, "ingest", "some", str(file)]) == 1
    out = capsys.readouterr().out
    assert "1 created" in out
    assert "1 failed" in out
    assert "[red]bad[/b]: " in out
    assert main([*address, "ingest", "some", str(file), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["outcomes"] == {"unchanged": 1, "failed": 1}
    assert [error["id"] for error in report["errors"]] == ["[red]bad[/b]"]
    assert main([*address, "embed", "fine", "x" * (5 << 20)]) == 1
    assert main([*address, "drop", "some"]) == 0


def test_others_text_is_printed_as_it_is(address: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    texts = ["what does [/b] mean", "list[int] [bold]:smile:[/bold]", "a\x1b[31mb\x07c"]
    assert main([*address, "rerank", "[/x]", *texts]) == 0
    assert main([*address, "embed", *texts]) == 0
    out = capsys.readouterr().out
    for text in (*texts[:2], r"a\x1b[31mb\x07c"):
        assert out.count(text) == 2
    assert "\x1b" not in out
    assert main([*address, "search", "what does [/b] mean", "--inline", *texts]) == 0
    table = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert table.startswith("what does [/b] mean ")
    for word in ("list[int]", "[/b]", ":smile:", r"\x1b[31mb"):
        assert word in table.removeprefix("what does [/b] mean")
    assert main([*address, "search", "[/b]", "--collection", "a[/b]"]) == 1
    assert main([*address, "drop", "[/b]"]) == 1


def test_long_and_equal_inline_texts_are_answered_by_their_words(
    address: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*address, "--json", "search", "words", "--inline", "same", "same", "word " * 300]) == 0
    assert len(json.loads(capsys.readouterr().out)["hits"]) == 3
    assert main([*address, "search", "words", "--inline", "same words", "same words", "word " * 300]) == 0
    assert "same words" in capsys.readouterr().out


def test_json_before_or_after_the_command_keeps_zeroes(address: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    command = ["search", "a", "--inline", "b", "--no-rerank"]
    for words in (["--json", *command, *address], [*address, *command, "--json"]):
        assert main(words) == 0
        answer = json.loads(capsys.readouterr().out)
        assert answer["degraded"] is False
        assert answer["timings"]["rerankMs"] == 0
        assert answer["retrievalWeight"] is not None
        assert "rerankScore" not in answer["hits"][0]  # absent is not zero


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["search", "q", "--inline", "a", "--top-n", "-1"], "--top-n: must be a whole number from 1, not '-1'"),
        (["search", "q", "--inline", "a", "--candidates", "0"], "--candidates: must be a whole number from 1"),
        (["embed", "a", "--dimensions", "99999999999"], "--dimensions: must be a whole number from 1"),
        (["search", "q", "--inline", "a", "--filter", ".x == 1"], "--filter: not allowed with argument --inline"),
        (["--timeout", "nan", "collections"], "--timeout: must be a number of seconds above 0"),
        (["--timeout", "0", "collections"], "--timeout: must be a number of seconds above 0"),
        (["embed", "\udcff"], "is not valid UTF-8"),
    ],
)
def test_a_wrong_command_line_is_status_2(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([*NOWHERE, *words])
    assert end.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ingest", "c", "{}/missing.jsonl"], "{}/missing.jsonl: No such file or directory"),
        (["ingest", "c", "{}"], "{}: Is a directory"),
        (["ingest", "c", "{}/latin.jsonl"], "{}/latin.jsonl, line 2: is not UTF-8: byte 0xe9"),
        (["ingest", "c", "{}/[/b].jsonl"], "{}/[/b].jsonl: No such file"),
        (["--tls-ca", "{}/missing.pem", "collections"], "{}/missing.pem: No such file or directory"),
        (["--tls-ca", "{}", "collections"], "{}: Is a directory"),
        (["--tls-ca", "{}/latin.jsonl", "collections"], "{}/latin.jsonl holds no certificate"),
        (["--token", "a\nb", "collections"], "the token"),
        (["--token", "schlüssel", "collections"], "the token"),
    ],
)
def test_what_cannot_be_used_is_named_in_one_line(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "latin.jsonl").write_bytes(b'{"id": "a", "text": "b"}\n{"id": "b", "text": "caf\xe9"}\n')
    # Nobody is there to be called: all of this is found before.
    assert main([*NOWHERE, *(word.replace("{}", str(tmp_path)) for word in words)]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert said.replace("{}", str(tmp_path)) in line


def test_standard_input_is_sent_up_to_its_bad_line(
    address: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = b'\xef\xbb\xbf{"id": "a", "text": "a text"}\n\n{"id": null, "text": "another"}\n'
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines)))
    assert main([*address, "ingest", "piped", "-"]) == 1
    said = capsys.readouterr()
    assert "1 created" in said.out
    assert said.err == "standard input, line 3: id must be a string or a number, not null\n"
    assert main([*address, "drop", "piped"]) == 0


class StandIn(rpc.RetrievalServiceServicer, embed_pb2_grpc.EmbedServiceServicer):
    """A gateway of 2,500 collections that demands a token and never answers an Embed or an upsert."""

    # ruff: noqa: N802 - methods are named by the contract

    def __init__(self) -> None:
        self.names = [f"c{number:04}" for number in range(2500)]
        self.tokens: list[str] = []
        self.closing = threading.Event()

    def ListCollections(
        self, request: pb.ListCollectionsRequest, context: grpc.ServicerContext
    ) -> pb.ListCollectionsResponse:
        self.tokens.append(str(dict(context.invocation_metadata()).get("authorization", "")))
        start = int(request.page_token or 0)
        page = self.names[start : start + min(request.page_size or 100, 1000)]
        following = str(start + len(page)) if start + len(page) < len(self.names) else ""
        return pb.ListCollectionsResponse(collections=[pb.Collection(name=n) for n in page], next_page_token=following)

    def CreateCollection(
        self, request: pb.CreateCollectionRequest, context: grpc.ServicerContext
    ) -> pb.CreateCollectionResponse:
        return pb.CreateCollectionResponse()

    def UpsertDocuments(
        self, request_iterator: Iterator[pb.UpsertDocumentsRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.UpsertDocumentsResponse]:
        self.closing.wait(60)
        yield from ()

    def Embed(self, request: embed_pb2.EmbedRequest, context: grpc.ServicerContext) -> embed_pb2.EmbedResponse:
        self.closing.wait(60)
        return embed_pb2.EmbedResponse()


@pytest.fixture
def stand_in(tmp_path: Path) -> Iterator[tuple[StandIn, str, str]]:
    """The service, its plain address and its TLS address; the authority is `ca.pem`."""
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    service = StandIn()  # type: ignore[abstract]
    server = grpc.server(ThreadPoolExecutor(4))
    rpc.add_RetrievalServiceServicer_to_server(service, server)
    embed_pb2_grpc.add_EmbedServiceServicer_to_server(service, server)
    pair = (certificate.private_key_pem.bytes(), certificate.cert_chain_pems[0].bytes())
    secure = server.add_secure_port("localhost:0", grpc.ssl_server_credentials([pair]))
    plain = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield service, f"127.0.0.1:{plain}", f"localhost:{secure}"
    finally:
        service.closing.set()
        server.stop(0).wait()


def test_all_pages_of_collections_are_listed(
    stand_in: tuple[StandIn, str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    service, plain, _ = stand_in
    assert main(["--address", plain, "collections"]) == 0
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == service.names
    assert main(["--address", plain, "collections", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [item["name"] for item in answer["collections"]] == service.names
    assert answer["collections"][0]["documentCount"] == "0"


def test_a_token_goes_over_tls_without_the_line_feed_of_its_file(
    stand_in: tuple[StandIn, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, _, secure = stand_in
    monkeypatch.setenv("WINNOW_TOKEN", "s3cret\n")
    assert main(["collections", "--address", secure, "--tls-ca", str(tmp_path / "ca.pem")]) == 0
    assert set(service.tokens) == {"Bearer s3cret"}


def test_a_frozen_gateway_is_given_up(
    stand_in: tuple[StandIn, str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, plain, _ = stand_in
    (tmp_path / "one.jsonl").write_text('{"id": "a", "text": "b"}\n')
    for words in (["embed", "text"], ["ingest", "c", str(tmp_path / "one.jsonl")]):
        assert main(["--address", plain, "--timeout", "2", *words]) == 1
        assert capsys.readouterr().err.startswith("DEADLINE_EXCEEDED: ")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and says nothing
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        assert main(["--address", address, "--timeout", "2", "collections"]) == 1
        assert capsys.readouterr().err.startswith("DEADLINE_EXCEEDED: ")


def test_a_closed_pipe_is_a_quiet_end(stand_in: tuple[StandIn, str, str]) -> None:
    _, plain, _ = stand_in
    reader, writer = os.pipe()
    os.close(reader)
    for words in (["collections"], ["collections", "--json"]):
        process = winnow("--address", plain, *words, stdout=writer)
        _, said = process.communicate(timeout=50)
        assert said == b""
        assert process.returncode == 1
    os.close(writer)


def test_ctrl_c_is_status_130_and_no_traceback(stand_in: tuple[StandIn, str, str]) -> None:
    _, plain, _ = stand_in
    # Whoever runs the tests in the background ignores the signal for them.
    heed = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    process = winnow("--address", plain, "ingest", "c", "-", **heed)
    assert process.stdin is not None
    with process.stdin as lines:
        # More than a pipe holds, so that the command is reading when it is written; less than a stream holds.
        lines.write(b'{"id": "a", "text": "b"}\n' * 3_500)
        lines.flush()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=50) == 130
    assert process.stderr is not None
    assert process.stdout is not None
    with process.stderr as said, process.stdout:
        assert said.read() == b""


def test_ctrl_c_that_comes_just_before_a_wait_is_noticed(stand_in: tuple[StandIn, str, str]) -> None:
    """As if it had come then: another thread takes the signal, so that it does not interrupt what the main one does."""
    _, plain, _ = stand_in
    script = (
        "import signal, sys, threading\n"
        "from winnow_cli.__main__ import main\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", script, "--address", plain, "ingest", "c", "-"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert process.stdin is not None
    with process.stdin as lines:
        lines.write(b'{"id": "a", "text": "b"}\n' * 3_500)
        lines.flush()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=50) == 130


def test_a_proxy_does_not_stand_before_this_machine(
    stand_in: tuple[StandIn, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, plain, _ = stand_in
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    assert main(["--address", plain, "collections"]) == 0


def test_output_that_is_not_utf_8_is_no_reason_to_fail(stand_in: tuple[StandIn, str, str]) -> None:
    service, plain, _ = stand_in
    service.names = ["caf\u00e9"]
    process = winnow("--address", plain, "collections", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    out, said = process.communicate(timeout=50)
    assert (process.returncode, said) == (0, b"")
    assert out.startswith(rb"caf\xe9: ")
