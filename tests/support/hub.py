"""A Hugging Face hub of one model: as much of its HTTP interface as a download asks for."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """`refusal`: the status and error code of every answer, if set. `asked`: the paths of all requests."""

    url: str
    model: str
    folder: Path
    refusal: tuple[int, str] | None = None
    asked: list[str] = field(default_factory=list)


@contextmanager
def hub(model: str, folder: Path) -> Iterator[Hub]:
    """Serves the files of `folder` as the main branch of `model`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(*served.answer(self.path))

        def do_HEAD(self) -> None:
            self._answer(*served.answer(self.path), body=False)

        def log_message(self, *_: object) -> None:
            pass

        def _answer(self, status: int, headers: dict[str, str], content: bytes, *, body: bool = True) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served = _Served(f"http://127.0.0.1:{server.server_port}", model, folder)
    thread = Thread(target=server.serve_forever, args=[0.05])
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Served(Hub):
    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        self.asked.append(path)
        if self.refusal:
            status, code = self.refusal
            return status, {"X-Error-Code": code, "X-Error-Message": code}, b"{}"
        path = path.partition("?")[0]
        files = {str(file.relative_to(self.folder)): file for file in self.folder.rglob("*") if file.is_file()}
        if path.startswith(f"/api/models/{self.model}/tree/"):
            listed = [
                {"type": "file", "path": name, "size": file.stat().st_size, "oid": _oid(file)}
                for name, file in files.items()
            ]
            return 200, {"Content-Type": "application/json"}, json.dumps(listed).encode()
        if path.startswith(f"/api/models/{self.model}"):
            return 200, {"Content-Type": "application/json"}, json.dumps({"id": self.model, "sha": COMMIT}).encode()
        name = path.removeprefix(f"/{self.model}/resolve/{COMMIT}/")
        if name in files:
            headers = {"ETag": f'"{_oid(files[name])}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            return 200, headers, files[name].read_bytes()
        return 404, {"X-Error-Code": "EntryNotFound"}, b""


def _oid(file: Path) -> str:
    return hashlib.sha1(file.read_bytes(), usedforsecurity=False).hexdigest()
