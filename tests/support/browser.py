"""A real Chromium, driven by Playwright. `make test` installs both where it can; elsewhere the tests skip."""

import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

# Playwright and axe-core stay out of the environment: only these tests need them.
INSTALLED = Path(__file__).resolve().parents[2] / ".cache" / "tools" / "browser"
AXE = INSTALLED / "axe_playwright_python" / "axe.min.js"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")

needs_browser = pytest.mark.skipif(
    CHROMIUM is None or not AXE.is_file(), reason="Chromium or Playwright is not installed (make test, as root)"
)


@dataclass
class Visit:
    """A tab, and what a user would see in its console."""

    page: Any
    console: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)


@asynccontextmanager
async def browser() -> AsyncIterator[Any]:
    """A headless Chromium."""
    if str(INSTALLED) not in sys.path:
        sys.path.append(str(INSTALLED))
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-proxy-server"])
        try:
            yield chromium
        finally:
            await chromium.close()


@asynccontextmanager
async def visit(chromium: Any, address: str, **options: Any) -> AsyncIterator[Visit]:
    """Opens the page at an address in a profile of its own. `options`: of Playwright's new_context."""
    context = await chromium.new_context(**options)
    made = Visit(await context.new_page())
    made.page.on("console", lambda said: made.console.append(said.text) if said.type in {"error", "warning"} else None)
    made.page.on("pageerror", lambda error: made.console.append(str(error)))
    context.on("request", lambda request: made.hosts.add(urlsplit(request.url).netloc))
    await made.page.goto(f"http://{address}/")
    try:
        yield made
    finally:
        await context.close()


async def violations(page: Any) -> list[str]:
    """What axe-core holds to be a serious or critical barrier."""
    # An isolated world: the page's own policy forbids scripts of others.
    found = await page.evaluate(AXE.read_text("utf-8") + "\naxe.run()")
    return [
        f"{each['id']}: {node['html'][:200]}"
        for each in found["violations"]
        if each["impact"] in {"serious", "critical"}
        for node in each["nodes"]
    ]
