"""`python -m deploy.local demo | run`: the whole of Winnow on this machine."""

import argparse
import signal
import sys

from rich.console import Console

from deploy.local.demo import questions, run_demo
from deploy.local.process import StartError
from deploy.local.stack import FREE_PORTS, Ports, Stack

TRY = """
Try it:
  .venv/bin/winnow search "delete a directory tree" --inline "rmtree removes a directory tree" "remove deletes a file"
  .venv/bin/winnow --help
Ctrl-C stops everything; what was indexed goes with it."""


def main() -> int:
    """Start the stack, do what was asked, stop the stack."""
    parser = argparse.ArgumentParser(prog="python -m deploy.local", description=__doc__)
    parser.add_argument("what", choices=["demo", "run"])
    console = Console(highlight=False)
    # A plain kill ends like Ctrl-C: what was started is stopped.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return demo(console) if parser.parse_args().what == "demo" else run(console)
    except StartError as error:
        console.print(f"could not start: {error}", markup=False)
        return 1
    except KeyboardInterrupt:
        console.print("\nstopped")
        return 130


def demo(console: Console) -> int:
    """Run the demo on free ports, so that it disturbs nothing."""
    console.print("starting Redis, the embed worker, the rerank worker and the gateway", style="bold")
    with Stack(FREE_PORTS, say=console.print) as stack:
        if not stack.has_redis:
            console.print(
                "the demo needs Redis 8: install it, or use Python 3.11 to 3.13 on Linux x86-64 or macOS arm64"
            )
            return 1
        found = run_demo(stack.addresses["gateway"], console)
    console.print(f"\n{found} of {len(questions())} questions found their answer in the top three. All stopped.")
    return 0


def run(console: Console) -> int:
    """Keep the stack up until Ctrl-C, or until a part of it ends."""
    with Stack(Ports(), say=console.print) as stack:
        console.print(TRY, soft_wrap=True)
        ended = stack.wait_for_end()
        console.print(f"{ended.name} ended by itself. {ended.tail()}", markup=False)
    return 1


if __name__ == "__main__":
    sys.exit(main())
