"""The services to measure: running ones, or a private stack for the run."""

import argparse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from bench.report import Report
from deploy.local.stack import Stack


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options for the services."""
    parser.add_argument("--address", help="address of a running gateway (default: a private stack for this run)")
    parser.add_argument("--embed-model", help="EMBED_MODEL of the private stack (default: the bundled nano-embed)")
    parser.add_argument("--rerank-model", help="RERANK_MODEL of the private stack (default: the bundled nano-rerank)")


@contextmanager
def gateway(arguments: argparse.Namespace, output: Report, settings: Mapping[str, str] | None = None) -> Iterator[str]:
    """The address of the gateway. `settings`: environment variables of the private stack. Raises StartError."""
    if arguments.address:
        yield arguments.address
        return
    models = {"EMBED_MODEL": arguments.embed_model, "RERANK_MODEL": arguments.rerank_model}
    environment = {name: value for name, value in models.items() if value} | dict(settings or {})
    status = output.console.status("starting the stack")
    status.start()
    try:
        with Stack(environment=environment) as stack:
            status.stop()
            yield stack.addresses["gateway"]
    finally:
        status.stop()
