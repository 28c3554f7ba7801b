"""The page in a real browser: queries are watched, keys asked for, lost connections told."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from r2_serve.config import LimitsConfig, RouterConfig, ServerConfig
from r2_serve.engines.scripted import ScriptedEngine
from r2_serve.http.api import create_app
from r2_serve.http.keys import new_key
from r2_serve.router.router import Router, in_process
from r2_serve.types import Event
from tests.support.in_process import allocation_json, model, plan_json, routing
from tests.support.load_endpoint import serving

CHROMIUM = shutil.which("chromium")
pytestmark = [pytest.mark.browser, pytest.mark.needs("chromium")]
TWO_STEPS = ("height of Mont Blanc", "compare #1 with 4000 m")
QUESTION = "Is <b>Mont Blanc</b> higher than 4000 m?"


def router_of(*texts: str) -> Router:
    """A router whose plan has these steps; the models answer `4806 m <i>` each time."""
    replies = {
        "small": ["4806 m <i>"],
        "large": ["higher"],
        "decomposer": [plan_json(*texts)],
        "allocator": [allocation_json(*["small"] * (len(texts) - 1), "large")],
    }
    engines = {name: ScriptedEngine(said) for name, said in replies.items()}
    models = tuple(model(name) for name in engines)
    limits = LimitsConfig(max_subtasks=64, max_depth=64)
    return in_process(RouterConfig(models=models), routing(limits=limits), lambda card: engines[card.name])


@dataclass
class Opened:
    """The page in a browser."""

    page: Any
    errors: list[str] = field(default_factory=list)
    """What the console said, and requests to other hosts."""

    async def ask(self, question: str = QUESTION) -> None:
        await self.page.fill("textarea", question)
        await self.page.click("button.main")

    async def status(self, text: str) -> None:
        """Waits until a status line has `text`."""
        await self.page.locator("[role=status]", has_text=text).first.wait_for()


@asynccontextmanager
async def opened(app: Any, path: str = "") -> AsyncIterator[Opened]:
    from playwright.async_api import async_playwright

    async with serving(app) as url, async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        shown = Opened(await browser.new_page())
        shown.page.set_default_timeout(20_000)
        base = url.removesuffix("/v1")

        def check_host(request: Any) -> None:
            if not request.url.startswith((base, "data:", "blob:")):
                shown.errors.append(f"request to {request.url}")

        shown.page.on("request", check_host)
        shown.page.on("pageerror", lambda error: shown.errors.append(str(error)))
        await shown.page.goto(f"{base}/ui{path}")
        try:
            yield shown
        finally:
            await browser.close()


def in_browser(test: Callable[[Opened], Awaitable[None]], router: Router, path: str = "") -> None:
    """Runs `test` on the page over `router`; it fails if the page had an error or asked another host."""

    async def run() -> None:
        async with opened(create_app(router, ServerConfig(), environment={}), path) as shown:
            await test(shown)
            assert shown.errors == []

    asyncio.run(run())


def test_query_is_watched_from_plan_to_answer() -> None:
    async def test(shown: Opened) -> None:
        await shown.ask()
        await shown.status("answered")
        assert await shown.page.locator(".node.done").count() == 2
        assert await shown.page.inner_text(".answer") == "higher"
        assert "4806 m <i>" in await shown.page.locator(".node").first.text_content()
        assert await shown.page.locator(".waterfall tbody tr").count() == 4
        await shown.page.get_by_role("button", name="Replay").click()
        await shown.status("at work")
        await shown.status("answered")

    in_browser(test, router_of(*TWO_STEPS))


def test_saved_page_stands_alone(tmp_path: Path) -> None:
    async def test(shown: Opened) -> None:
        await shown.ask()
        await shown.status("answered")
        async with shown.page.expect_download() as download:
            await shown.page.get_by_role("button", name="Save as HTML").click()
        await (await download.value).save_as(tmp_path / "query.html")

    in_browser(test, router_of(*TWO_STEPS))
    text = (tmp_path / "query.html").read_text()
    assert "4806 m &lt;i&gt;" in text
    assert "Is &lt;b&gt;Mont Blanc&lt;/b&gt;" in text
    assert "<script" not in text


def test_plan_of_forty_steps_is_drawn() -> None:
    texts = [f"step {i}" + (f" after #{i - 3}" if i > 3 else "") for i in range(1, 40)]
    texts.append("join " + " ".join(f"#{i}" for i in range(37, 40)))

    async def test(shown: Opened) -> None:
        await shown.ask()
        await shown.status("answered")
        assert await shown.page.locator(".node.done").count() == 40

    in_browser(test, router_of(*texts))


def test_failed_query_says_why() -> None:
    async def test(shown: Opened) -> None:
        await shown.page.get_by_label("at most, USD").fill("0.000000000001")
        await shown.ask()
        await shown.page.locator("[role=alert]").first.wait_for()
        assert "r2.max_cost_usd" in await shown.page.locator("[role=alert]").first.text_content()

    in_browser(test, router_of(*TWO_STEPS))


def test_thousand_queries_stay_readable() -> None:
    router = router_of(*TWO_STEPS)

    async def test(shown: Opened) -> None:
        await shown.page.click("#tab-traffic")
        await shown.status("Live")
        for number in range(1_000):
            known = {"request_id": f"id-{number}", "model": "r2", "at_s": 0.1}
            router.events.publish(Event(kind="started", query=f"question {number}", **known))
            router.events.publish(Event(kind="answered", answer="yes", **known))
        await shown.page.get_by_text("1000 of 1000 queries").wait_for()
        assert await shown.page.locator("tr.link").count() == 200
        await shown.page.locator("tr.link button").first.click()
        await shown.page.get_by_role("heading", name="question 999").wait_for()

    in_browser(test, router)


def test_two_policies_are_compared() -> None:
    async def test(shown: Opened) -> None:
        await shown.page.click("#tab-compare")
        await shown.page.get_by_label("Question for both").fill(QUESTION)
        await shown.page.get_by_label("policy 1").fill("all:small")
        await shown.page.get_by_role("button", name="Ask both").click()
        await shown.page.get_by_text("answered").nth(1).wait_for()

    in_browser(test, router_of(*TWO_STEPS), "#compare")


def test_page_asks_for_the_key_and_tells_a_wrong_one(tmp_path: Path) -> None:
    key, entry = new_key(name="one")
    path = tmp_path / "keys.yaml"
    path.write_text(yaml.safe_dump([entry.model_dump(mode="json", exclude_none=True)]))
    path.chmod(0o600)
    app = create_app(router_of(*TWO_STEPS), ServerConfig(keys_file=str(path)), environment={})

    async def run() -> None:
        async with opened(app) as shown:
            field = shown.page.get_by_label("Key of this endpoint")
            await field.fill("wrong")
            await shown.page.get_by_role("button", name="Use it").click()
            await shown.page.get_by_text("a key that is not known").wait_for()
            await field.fill(key)
            await shown.page.get_by_role("button", name="Use it").click()
            await shown.ask()
            await shown.status("answered")
            assert shown.errors == []

    asyncio.run(run())


def test_lost_connection_is_told_and_found_again() -> None:
    async def test(shown: Opened) -> None:
        await shown.page.click("#tab-traffic")
        await shown.status("Live")
        await shown.page.context.set_offline(True)
        await shown.page.evaluate("window.stop()")
        await shown.status("disconnected")
        await shown.page.context.set_offline(False)
        await shown.status("Live")

    in_browser(test, router_of(*TWO_STEPS))
