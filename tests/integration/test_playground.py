"""The playground in a real browser, served by a gateway in this process."""

import asyncio
import re
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from deploy.local.stack import Stack
from tests.support.browser import browser, needs_browser, violations, visit
from tests.support.gateway import Running, running
from tests.support.redis import RedisProcess
from winnow.retrieval.v1 import retrieval_pb2 as pb

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [needs_browser, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

# The stand-in's first stage knows words of one spelling only; its reranker ignores case and favours short documents.
TEXTS = [
    "red Apple pie with cream and sugar",
    "an apple a day",
    "RED APPLE",
    "green pear",
    "an old red car",
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chromium() -> AsyncIterator[Any]:
    async with browser() as chromium:
        yield chromium


@pytest_asyncio.fixture(loop_scope="module")
async def gateway(redis8: RedisProcess) -> AsyncIterator[Running]:
    async with running(redis8.url, http_listen="127.0.0.1:0") as gateway:
        yield gateway


async def search(page: Any, query: str = "red apple", texts: list[str] | None = None) -> None:
    """Fills the form in and sends it."""
    if texts is not None:
        await page.check("[value=documents]")
        await page.fill("#documents", "\n".join(texts))
    await page.fill("#query", query)
    await page.press("#query", "Enter")
    await page.wait_for_selector("#results[aria-busy=false]")


async def titles(page: Any, column: str) -> list[str]:
    return [str(title) for title in await page.locator(f"#{column} h4").all_inner_texts()]


async def test_what_moved_is_shown(gateway: Running, chromium: Any) -> None:
    documents = pb.InlineDocuments(documents=[pb.Document(text=text) for text in TEXTS])
    expected = await gateway.retrieval.Search(pb.SearchRequest(query="red apple", documents=documents))
    names = {hit.id: f"Document {int(hit.id) + 1}" for hit in expected.hits}
    first = sorted(expected.hits, key=lambda hit: hit.retrieval_rank)
    assert [hit.id for hit in first] != [hit.id for hit in expected.hits], "nothing moves: the test shows nothing"

    async with visit(chromium, gateway.served.http) as tab:
        page = tab.page
        await search(page, texts=TEXTS)
        assert await titles(page, "first") == [names[hit.id] for hit in first]
        assert await titles(page, "final") == [names[hit.id] for hit in expected.hits]
        scores = await page.locator("#final .score").all_inner_texts()
        assert scores == [f"{hit.score:.3f}" for hit in expected.hits]
        rises = [hit.retrieval_rank - place for place, hit in enumerate(expected.hits, start=1)]
        assert await page.locator("#lines path").count() == len(TEXTS)
        assert await page.locator("#lines path.up").count() == sum(rise > 0 for rise in rises)
        moved = await page.locator("#final .moved").all_inner_texts()
        assert moved == [f"▲ {rise}" if rise > 0 else f"▼ {-rise}" if rise else "=" for rise in rises]
        # A line leads from a document to itself: its ends are as high as the two cards.
        key = await page.locator("#final .hit").first.get_attribute("data-key")
        d = await page.locator(f"#lines path[data-key='{key}']").get_attribute("d")
        top = (await page.locator("#lines").bounding_box())["y"]
        ends = [float(y) for y in re.findall(r"[\d.]+", d)[1::6]]
        for column, end in zip(("first", "final"), (ends[0], float(d.split()[-1])), strict=True):
            box = await page.locator(f"#{column} .hit[data-key='{key}']").bounding_box()
            assert top + end == pytest.approx(box["y"] + box["height"] / 2, abs=1)
        assert await page.locator("#final .hit").first.locator("mark").count() > 0
        assert not tab.console
        assert tab.hosts == {gateway.served.http}
        policy = (await page.request.get(page.url)).headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self';")


async def test_the_sample_shows_a_movement_with_the_bundled_models(stack: Stack, chromium: Any) -> None:
    async with visit(chromium, stack.addresses["gateway http"]) as tab:
        await tab.page.check("[value=documents]")
        await tab.page.click("#submit")
        await tab.page.wait_for_selector("#results[aria-busy=false]")
        first = tab.page.locator("#final .hit").first
        assert "shutil.rmtree" in await first.locator(".text").inner_text()
        assert "up" in str(await first.get_attribute("class")).split()
        assert not tab.console


async def test_time_models_tokens_and_cache_are_shown(gateway: Running, chromium: Any) -> None:
    async with visit(chromium, gateway.served.http) as tab:
        page = tab.page
        for cached in (False, True):
            await search(page, texts=TEXTS)
            models = await page.locator("#models tr").all_inner_texts()
            assert models[1].split("\t") == ["Model", "stand-in @ 1", "stand-in @ 1"]
            assert models[2].split("\t") == ["Fingerprint", "embed-1", "rerank-1"]
            assert models[4].split("\t") == ["Cached", *(["6 of 6", "5 of 5"] if cached else ["0 of 6", "0 of 5"])]
        times = await page.locator("#waterfall tr").all_inner_texts()
        assert [row.split()[0] for row in times] == ["Embed", "Retrieve", "Rerank", "Other"]
        bars = [await bar.bounding_box() for bar in await page.locator("#waterfall i:visible").all()]
        assert len(bars) >= 2
        starts = [bar["x"] for bar in bars]
        assert starts == sorted(starts), "a stage begins where the one before ends"


async def test_a_collection_its_filter_and_an_empty_result(redis8: RedisProcess, chromium: Any) -> None:
    async with running(redis8.url, http_listen="127.0.0.1:0") as gateway:
        await gateway.retrieval.CreateCollection(pb.CreateCollectionRequest(name="fruit"))
        await gateway.upsert("fruit", *(pb.Document(id=f"d{n}", text=text) for n, text in enumerate(TEXTS)))
        async with visit(chromium, gateway.served.http) as tab:
            page = tab.page
            await page.wait_for_selector("#collection option", state="attached")
            assert await page.is_checked("[value=collection]")
            assert await page.inner_text("#collection") == "fruit · 5 documents"
            await search(page)
            assert len(await titles(page, "final")) == 5
            await page.click("#tab-python")
            assert len((await run_python(await page.inner_text("#code"), gateway)).splitlines()) == 5
            await page.fill("#filter", ".year > 1980")
            await search(page)
            assert "Nothing found. No document matches the filter." in await page.inner_text("#status")
            assert not await page.locator(".hit").is_visible()
            assert not tab.console


async def test_an_error_says_what_to_do_and_the_next_search_removes_it(gateway: Running, chromium: Any) -> None:
    async with visit(chromium, gateway.served.http) as tab:
        page = tab.page
        await search(page, query="", texts=TEXTS)
        assert "query" in await page.inner_text("[role=alert]")
        assert "INVALID_ARGUMENT" in await page.inner_text("[role=alert]")
        assert not await page.is_visible("#found")
        await search(page)
        assert not await page.inner_text("[role=alert]")
        assert await page.is_visible("#found")
        assert all("status of 400" in line for line in tab.console)  # Chromium reports the failed request itself


async def test_a_gateway_that_is_gone_is_an_error(gateway: Running, chromium: Any) -> None:
    async with visit(chromium, gateway.served.http) as tab:
        await tab.page.context.set_offline(True)
        await search(tab.page, texts=TEXTS)
        assert "cannot be reached" in await tab.page.inner_text("[role=alert]")


async def test_a_dead_reranker_leaves_the_first_stage(redis8: RedisProcess, chromium: Any) -> None:
    async with (
        running(redis8.url, http_listen="127.0.0.1:0", no_rerank=True) as gateway,
        visit(chromium, gateway.served.http) as tab,
    ):
        page = tab.page
        await search(page, texts=TEXTS)
        assert "The reranker could not be reached" in await page.inner_text("#degraded")
        assert await page.inner_text("#final-title") == "Not reranked"
        assert await titles(page, "final") == await titles(page, "first")
        assert await page.locator("#lines path.up").count() == 0
        assert "did not answer" in await page.inner_text("#models")
        assert not tab.console


async def test_options_are_sent_and_the_weight_is_tried_at_once(gateway: Running, chromium: Any) -> None:
    async with visit(chromium, gateway.served.http) as tab:
        page = tab.page
        await page.fill("#instruction", "Find fruit")
        await page.fill("#candidates", "3")
        await search(page, texts=TEXTS)
        assert len(await titles(page, "final")) == 3
        assert gateway.rerank_worker.requests[-1].instruction == "Find fruit"
        await page.focus("#weight")
        await page.keyboard.press("End")
        await page.wait_for_selector("#formula:has-text('1.00 × cosine')")
        assert await titles(page, "final") == await titles(page, "first")
        await page.click("#tab-python")
        await page.select_option("#rerank", "RERANK_POLICY_REQUIRED")
        code = await page.inner_text("#code")
        for line in ("candidates=3", "retrieval_weight=1", "rerank=pb.RERANK_POLICY_REQUIRED", "Find fruit"):
            assert line in code
        assert len((await run_python(code, gateway)).splitlines()) == 3
        await page.click("#weight-default")
        await page.wait_for_selector("#formula:has-text('probability that')")


async def test_a_token_is_asked_for_and_sent_and_not_shown(redis8: RedisProcess, chromium: Any, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("a-secret-token\n")
    async with (
        running(redis8.url, http_listen="127.0.0.1:0", auth_tokens_file=tokens) as gateway,
        visit(chromium, gateway.served.http) as tab,
    ):
        page = tab.page
        await search(page, texts=TEXTS)
        assert "Enter a bearer token" in await page.inner_text("[role=alert]")
        await page.evaluate("document.querySelector('#options').open = true")
        await page.fill("#token", "a-secret-token")
        await search(page)
        assert len(await titles(page, "final")) == len(TEXTS)
        code = await page.inner_text("#code")
        assert "Bearer $WINNOW_TOKEN" in code
        assert "a-secret-token" not in code
        assert await page.evaluate("localStorage.length + sessionStorage.length") == 0


async def test_texts_are_never_html(gateway: Running, chromium: Any) -> None:
    hostile = "red <img src=x onerror=alert(1)><script>alert(2)</script> apple"
    async with visit(chromium, gateway.served.http) as tab:
        page = tab.page
        await search(page, query="red <b>apple", texts=[hostile])
        assert await page.locator("#final .text").inner_text() == hostile
        await page.click("#final .foot button")
        assert await page.locator("#final .full").inner_text() == hostile
        assert await page.locator("#results :is(img, script, b)").count() == 0
        assert not tab.console


async def test_the_code_runs_as_it_is_copied(gateway: Running, chromium: Any) -> None:
    texts = ['it\'s a "red" $apple \\ `pear`', "ein grüner Apfel 🍏"]
    async with visit(chromium, gateway.served.http) as tab:
        page = tab.page
        await search(page, query="what's red?", texts=texts)
        expected = await page.locator("#final .score").all_inner_texts()
        code = {}
        for name in ("curl", "python", "grpcurl"):
            await page.click(f"#tab-{name}")
            code[name] = await page.inner_text("#code")
    printed = await run_python(code["python"], gateway)
    assert [f"{float(line.split()[0]):.3f}" for line in printed.splitlines()] == expected
    if shutil.which("curl"):
        assert '"hits"' in await run("bash", "-c", code["curl"].replace("curl ", "curl --silent --fail --noproxy '*' "))
    assert "RetrievalService/Search" in code["grpcurl"]


async def run_python(code: str, gateway: Running) -> str:
    """What the code prints, with the port of this gateway."""
    port = gateway.served.address.rpartition(":")[2]
    return await run(sys.executable, "-c", code.replace(":50050", f":{port}"))


async def run(*command: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()


async def test_everything_is_reached_and_left_by_keyboard(gateway: Running, chromium: Any) -> None:
    async with visit(chromium, gateway.served.http) as tab:
        page = tab.page
        await page.evaluate("document.querySelector('#options').open = true")
        await search(page, texts=TEXTS)
        await page.focus(".skip")
        reached: list[str] = []
        for _ in range(60):
            await page.keyboard.press("Tab")
            focused = await page.evaluate("document.activeElement.id || document.activeElement.textContent")
            if focused == "Skip to the results":
                break
            reached.append(focused)
        else:
            pytest.fail(f"the focus does not come back: {reached}")
        controls = ["query", "submit", "documents", "instruction", "candidates", "weight", "token", "tab-curl", "copy"]
        assert [each for each in reached if each in controls] == controls
        await page.focus("#tab-curl")
        await page.keyboard.press("ArrowRight")
        assert await page.evaluate("document.activeElement.id") == "tab-python"
        assert "import grpc" in await page.inner_text("#code")


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (1440, "dark")])
async def test_no_barrier_and_no_sideways_scrolling(gateway: Running, chromium: Any, width: int, scheme: str) -> None:
    size = {"width": width, "height": 900}
    async with visit(chromium, gateway.served.http, viewport=size, color_scheme=scheme) as tab:
        page = tab.page
        assert not await violations(page)
        await page.evaluate("document.querySelector('#options').open = true")
        await search(page, texts=[*TEXTS, "word" * 100])
        assert not await violations(page)
        assert await page.evaluate("document.documentElement.scrollWidth") == width
