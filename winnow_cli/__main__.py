"""`winnow`: search, embed, rerank and fill collections from the command line, through a running gateway.

Exit status: 0 if all was done; 1 if something failed, a single document among thousands too; 2 if the command line is
wrong; 130 after Ctrl-C.
"""

import argparse
import io
import math
import os
import signal
import sys
from collections.abc import Callable, Sequence

_DESCRIPTION = (__doc__ or "").partition("\n")[0]
_MAX_UINT32 = 2**32 - 1


def _text(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError("is not valid UTF-8") from None
    return value


def _count(value: str) -> int:
    try:
        number = int(value)
    except ValueError:
        number = 0
    if not 1 <= number <= _MAX_UINT32:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, not {value!r}")
    return number


def _seconds(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not (math.isfinite(number) and number > 0):
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0, not {value!r}")
    return number


def _common(absent: bool) -> argparse.ArgumentParser:
    """Return the options that may stand before and after the command; with `absent` they have no defaults."""

    def default(value: object) -> object:
        return argparse.SUPPRESS if absent else value

    parser = argparse.ArgumentParser(add_help=False)
    add = parser.add_argument
    address = os.environ.get("WINNOW_ADDRESS") or "localhost:50050"
    add("--address", type=_text, default=default(address), help="the gateway ($WINNOW_ADDRESS, or localhost:50050)")
    token = default(os.environ.get("WINNOW_TOKEN"))
    add("--token", type=_text, default=token, help="bearer token, if it wants one ($WINNOW_TOKEN)")
    add("--tls-ca", metavar="FILE", default=default(None), help="speak TLS and trust this certificate authority")
    add("--timeout", type=_seconds, default=default(60.0), help="seconds to wait for an answer (60)")
    add("--json", action="store_true", default=default(False), help="print the whole answer as JSON")
    return parser


def _parser() -> argparse.ArgumentParser:
    from winnow_cli import commands  # here, where Ctrl-C during the imports ends quietly too

    parser = argparse.ArgumentParser(prog="winnow", description=_DESCRIPTION, parents=[_common(absent=False)])
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(run: Callable[[commands.Session], int]) -> argparse.ArgumentParser:
        name, about = run.__name__, (run.__doc__ or "").partition("\n")[0]
        added = subparsers.add_parser(name, help=about, description=about, parents=[_common(absent=True)])
        added.set_defaults(run=run, refuse=added.error)
        return added

    one = command(commands.search)
    one.add_argument("query", type=_text)
    source = one.add_mutually_exclusive_group(required=True)
    source.add_argument("--collection", type=_text, help="search this collection")
    source.add_argument("--inline", nargs="+", type=_text, metavar="TEXT", help="search these texts")
    one.add_argument("--filter", type=_text, help='on metadata of a collection, as in: .kind == "function"')
    one.add_argument("--instruction", type=_text, help="the task, in one English sentence; not every model takes it")
    one.add_argument("--candidates", type=_count, help="documents handed to the reranker (50)")
    one.add_argument("--top-n", type=_count, help="hits to show (10)")
    one.add_argument("--no-rerank", action="store_true", help="first stage only")
    one = command(commands.embed)
    one.add_argument("texts", nargs="+", type=_text)
    one.add_argument("--query", action="store_true", help="embed as queries, not as documents")
    one.add_argument("--instruction", type=_text, help="the task, in one English sentence; not every model takes it")
    one.add_argument("--dimensions", type=_count)
    one = command(commands.rerank)
    one.add_argument("query", type=_text)
    one.add_argument("documents", nargs="+", type=_text)
    one.add_argument("--instruction", type=_text, help="what makes a document relevant; not every model takes it")
    one = command(commands.ingest)
    one.add_argument("collection", type=_text)
    one.add_argument("file", help='JSONL: {"id": …, "text": …, "metadata": {…}}; - for standard input')
    command(commands.collections)
    command(commands.drop).add_argument("collection", type=_text)
    return parser


def _run(arguments: Sequence[str] | None) -> int:
    import grpc

    from winnow_cli.commands import Session
    from winnow_cli.errors import CommandError
    from winnow_cli.render import printable

    options = _parser().parse_args(arguments)
    if getattr(options, "inline", None) and options.filter is not None:
        options.refuse("argument --filter: not allowed with argument --inline, whose texts have no metadata")
    try:
        session = Session(options)
        try:
            status: int = options.run(session)
        finally:
            session.channel.close()
        print(end="", flush=True)  # a closed pipe is noticed here, not by the interpreter at its end
        return status
    except grpc.RpcError as error:
        message = f"{error.code().name}: {error.details()}"
    except CommandError as error:
        message = str(error)
    except BrokenPipeError:
        raise
    except OSError as error:
        message = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    print(printable(" ".join(message.split())), file=sys.stderr)
    return 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status. Errors of the service are printed as the service words them."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that is not UTF-8 is no reason to fail
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # Whoever read has gone: end quietly, and leave the interpreter nothing to flush into the pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main())
