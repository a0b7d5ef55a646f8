"""`python -m deploy.local demo | run`: runs all of Winnow on this machine."""

import argparse
import os
import sys
from pathlib import Path

from rich.console import Console

from deploy.local.demo import questions, run_demo
from deploy.local.folder import Folder
from deploy.local.interrupts import Interrupts
from deploy.local.process import StartError
from deploy.local.settings import without_connections
from deploy.local.stack import FREE_PORTS, ROOT, Ports, Stack
from winnow_cli.render import console

LOGS = ROOT / ".cache"
DEFAULT_GATEWAY = f"127.0.0.1:{Ports().gateway}"


def main() -> int:
    """Starts the stack, runs the command, stops the stack. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m deploy.local", description=__doc__)
    parser.add_argument("what", choices=["demo", "run"])
    parser.add_argument("--data", type=Path, metavar="DIR", help="with run: keep collections and cache in this folder")
    options = parser.parse_args()
    if options.what == "demo" and options.data:
        parser.error("--data can be used with run only: the demo keeps no data")
    interrupts = Interrupts()
    interrupts.install()
    screen = Screen(console())
    try:
        return demo(screen, interrupts) if options.what == "demo" else run(screen, interrupts, options.data)
    except StartError as error:
        screen.say(f"could not start: {error}")
        return 1
    except KeyboardInterrupt:
        screen.say("\nstopped")  # the stack has ended its processes by now
        return 128 + interrupts.number


class Screen:
    """Output for the user. A closed terminal is not an error."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def say(self, line: str, style: str | None = None) -> None:
        """Prints a line immediately and unchanged."""
        try:
            self.console.print(line, style=style, soft_wrap=True)
            self.console.file.flush()
        except (OSError, SystemExit):  # rich raises SystemExit if a pipe is closed
            self.console.quiet = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for buffered output


def demo(screen: Screen, interrupts: Interrupts) -> int:
    """Runs the demo on free ports, so that it does not interfere with other processes."""
    folder = Folder.free(LOGS / "demo")
    inherited, dropped = without_connections(os.environ)
    screen.say(f"starting Redis, both workers and the gateway; logs in {shown(folder.path)}", "bold")
    if dropped:
        screen.say(f"the demo is private and does not use {', '.join(dropped)}")
    try:
        with Stack(FREE_PORTS, say=screen.say, inherited=inherited, folder=folder, held=interrupts.held) as stack:
            if not stack.has_redis:
                screen.say(
                    "the demo needs Redis 8: install it, or use Python 3.11 to 3.13 on Linux x86-64 or macOS arm64"
                )
                return 1
            found = run_demo(stack.addresses["gateway"], screen.console)
    finally:
        folder.close()
    screen.say(f"\n{found} of {len(questions())} questions found their answer in the top three. Everything is stopped.")
    return 0


def run(screen: Screen, interrupts: Interrupts, data: Path | None) -> int:
    """Runs the stack until Ctrl-C, or until one of its processes ends."""
    folder = Folder(data.expanduser().absolute()) if data else Folder.free(LOGS / "run")
    screen.say(f"starting Redis, both workers and the gateway; logs in {shown(folder.path)}", "bold")
    stack = Stack(Ports(), os.environ, screen.say, folder=folder, keep_data=data is not None, held=interrupts.held)
    try:
        with stack:
            screen.say(hints(stack, folder, data))
            ended = stack.wait_for_end()
            screen.say(f"{ended.name} ended unexpectedly. {ended.tail()}")
    finally:
        folder.close()
    return 1


def hints(stack: Stack, folder: Folder, data: Path | None) -> str:
    """Commands to try, and whether indexed documents are kept."""
    gateway = stack.addresses["gateway"]
    address = "" if gateway == DEFAULT_GATEWAY else f" --address {gateway}"
    if data:
        kept = f"collections and cache are kept in {shown(folder.path)} for the next start."
    elif stack.has_redis:
        kept = "indexed documents are deleted (to keep them: make run DATA=folder)."
    else:
        kept = "no data is kept."
    http = stack.addresses.get("gateway http")
    return (
        "\nTry it:\n"
        f'  .venv/bin/winnow{address} search "delete a directory tree" --inline "rmtree removes a directory tree"'
        ' "remove deletes a file"\n'
        "  .venv/bin/winnow --help\n"
        + (f"  {stack.scheme}://{http} in a browser\n" if http else "")
        + f"Ctrl-C stops everything; {kept}"
    )


def shown(path: Path) -> Path:
    """The path, relative to the current directory if it is below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


if __name__ == "__main__":
    sys.exit(main())
