"""A model in a process of its own, as its users have it.

A thread that calls torch has a team of OpenMP threads. Two teams in one process would count as more threads than there
are processors, and OpenMP then puts them to sleep after every kernel: both would be slower. A process may also have
another interpreter: some peers' packages do not go together with ours.
"""

import importlib
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench.subjects import Computed, Model, Requests, Scores, SubjectError, Vectors

_ROOT = Path(__file__).resolve().parents[2]


class Process:
    """`loader`, as `module:callable`, makes a Model of `arguments` in the process; calls go there. Raises SubjectError.

    `python`: the interpreter.
    """

    def __init__(self, loader: str, arguments: Mapping[str, object], python: str | Path = sys.executable) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            command = [python, "-m", "bench.subjects.process", str(theirs.fileno())]
            # Where a subject prints to is the bench's own output.
            self._process = subprocess.Popen(
                command, cwd=_ROOT, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
            )
        self._connection: Connection[Any, Any] = Connection(ours.detach())
        self._loader = loader
        self.computed = Computed()
        self._connection.send((loader, dict(arguments)))
        try:
            self.format: str = self._receive()
        except SubjectError:
            self.close()
            raise

    def embed(self, texts: Sequence[str], queries: bool, batch_size: int) -> Vectors:
        """See `Model`."""
        vectors: Vectors = self._call("embed", texts, queries, batch_size)
        return vectors

    def rerank(self, requests: Requests, batch_size: int) -> Scores:
        """See `Model`."""
        scores: Scores = self._call("rerank", requests, batch_size)
        return scores

    def close(self) -> None:
        """Ends the process, once it has given back what it holds."""
        self._connection.close()
        self._process.wait()

    def _call(self, method: str, *arguments: object) -> Any:
        self._connection.send((method, arguments))
        numbers, self.computed = self._receive()
        return numbers

    def _receive(self) -> Any:
        try:
            failure, value = self._connection.recv()
        except (EOFError, OSError):
            raise SubjectError(f"{self._loader}: its process ended with status {self._process.wait()}") from None
        if failure:
            raise SubjectError(f"{self._loader}: {failure}")
        return value


def main() -> None:
    """The process: one model, until the bench closes the connection."""
    connection: Connection[Any, Any] = Connection(int(sys.argv[1]))
    try:
        loader, arguments = connection.recv()
        try:
            _settle()
            model = _load(loader, arguments)
        except Exception as error:
            connection.send((_told(error), None))
            return
        connection.send((None, model.format))
        with closing(model):
            _serve(connection, model)
    except (EOFError, ConnectionError):
        pass


def _serve(connection: "Connection[Any, Any]", model: Model) -> None:
    while True:
        method, arguments = connection.recv()
        try:
            numbers = getattr(model, method)(*arguments)
        except Exception as error:
            connection.send((_told(error), None))
        else:
            connection.send((None, (numbers, model.computed)))


def _load(loader: str, arguments: Mapping[str, object]) -> Model:
    module, _, name = loader.partition(":")
    model: Model = getattr(importlib.import_module(module), name)(**arguments)
    return model


def _settle() -> None:
    """As many threads for every subject, and no progress bars or advice between the bench's lines."""
    import logging
    import warnings

    import torch

    from services.engine.host import cpus

    torch.set_num_threads(cpus())
    os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"transformers|sentence_transformers|torch|optimum")


def _told(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__


if __name__ == "__main__":
    main()
