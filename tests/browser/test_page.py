"""The page in a real browser: queries are watched, keys asked for, lost connections told."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from r2_serve.calls.pool import build_pool
from r2_serve.config import LimitsConfig, RouterConfig, ServerConfig
from r2_serve.engines.scripted import ScriptedEngine
from r2_serve.errors import EngineUnavailable, R2Error
from r2_serve.http.api import create_app
from r2_serve.http.keys import new_key
from r2_serve.http.metrics import Metrics
from r2_serve.router.allocator import Allocator
from r2_serve.router.decomposer import Decomposer
from r2_serve.router.pipeline import Pipeline
from r2_serve.router.router import Router, in_process
from r2_serve.types import Event, Message, Query
from tests.support.in_process import allocation_json, model, plan_json, routing
from tests.support.load_endpoint import serving

CHROMIUM = shutil.which("chromium")
pytestmark = [pytest.mark.browser, pytest.mark.needs("chromium")]
TWO_STEPS = ("height of Mont Blanc", "compare #1 with 4000 m")
QUESTION = "Is <b>Mont Blanc</b> higher than 4000 m?"


def router_of(*texts: str, **virtual: Any) -> Router:
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
    return in_process(
        RouterConfig(models=models), routing(limits=limits, **virtual), lambda card: engines[card.name]
    )


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


class Chrome:
    """One browser for all tests; each has a server and a page of its own."""

    def __init__(self, runner: asyncio.Runner, browser: Any) -> None:
        self._runner, self._browser = runner, browser

    def show(self, app: Any, test: Callable[[Opened], Awaitable[None]], path: str = "") -> None:
        """Runs `test` on the page over `app`; it fails if the page had an error or asked another host."""

        async def run() -> None:
            async with self._opened(app, path) as shown:
                await test(shown)
                assert shown.errors == []

        self._runner.run(run())

    def show_router(
        self, router: Router, test: Callable[[Opened], Awaitable[None]], path: str = "", metrics: Any = None
    ) -> None:
        self.show(create_app(router, ServerConfig(), environment={}, metrics=metrics), test, path)

    @asynccontextmanager
    async def _opened(self, app: Any, path: str) -> AsyncIterator[Opened]:
        async with serving(app) as url:
            shown = Opened(await self._browser.new_page())
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
                await shown.page.close()


@pytest.fixture(scope="module")
def chrome() -> Iterator[Chrome]:
    from playwright.async_api import async_playwright

    with asyncio.Runner() as runner:
        playwright = runner.run(async_playwright().start())
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        browser = runner.run(launched)
        yield Chrome(runner, browser)
        runner.run(browser.close())
        runner.run(playwright.stop())


def test_query_is_watched_from_plan_to_answer(chrome: Chrome) -> None:
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

    chrome.show_router(router_of(*TWO_STEPS), test)


@pytest.mark.parametrize("part", ["ask", "traffic"])
def test_saved_page_stands_alone(chrome: Chrome, tmp_path: Path, part: str) -> None:
    async def test(shown: Opened) -> None:
        await shown.ask()
        await shown.status("answered")
        if part == "traffic":
            await shown.page.click("#tab-traffic")
            await shown.page.locator("tr.link button").first.click()
        async with shown.page.expect_download() as download:
            await shown.page.get_by_role("button", name="Save as HTML").last.click()
        await (await download.value).save_as(tmp_path / "query.html")

    chrome.show_router(router_of(*TWO_STEPS), test)
    text = (tmp_path / "query.html").read_text()
    assert "4806 m &lt;i&gt;" in text
    assert "Is &lt;b&gt;Mont Blanc&lt;/b&gt;" in text
    assert "<script" not in text


def test_query_of_the_traffic_is_replayed_step_by_step(chrome: Chrome) -> None:
    async def test(shown: Opened) -> None:
        await shown.ask()
        await shown.status("answered")
        await shown.page.click("#tab-traffic")
        await shown.page.locator("tr.link button").first.click()
        opened = shown.page.locator(".inner")
        await opened.get_by_role("button", name="Replay").click()
        moment = opened.get_by_label("moment of the replay")
        await moment.fill("8")
        await opened.locator(".node.works").wait_for()
        await moment.fill("1")
        await opened.get_by_text("the router plans").wait_for()
        await opened.get_by_role("button", name="End the replay").click()
        await opened.locator("[role=status]", has_text="answered").wait_for()

    chrome.show_router(router_of(*TWO_STEPS), test)


def test_conversation_is_named_by_what_the_user_said_last(chrome: Chrome) -> None:
    router = router_of(*TWO_STEPS)

    async def test(shown: Opened) -> None:
        await shown.page.click("#tab-traffic")
        await shown.status("Live")
        text = "[system] be short\n[user] first\n[assistant] yes\n[user] second [user] line\n[tool] 42"
        router.events.publish(Event(kind="started", request_id="r", model="r2", at_s=0, query=text))
        await shown.page.get_by_role("button", name="second [user] line", exact=True).click()
        await shown.page.get_by_text("The whole conversation").click()
        await shown.page.get_by_text("be short").wait_for()

    chrome.show_router(router, test)


def test_example_of_a_model_becomes_the_question(chrome: Chrome) -> None:
    async def test(shown: Opened) -> None:
        await shown.page.get_by_role("button", name="how high is it").click()
        assert await shown.page.input_value("textarea") == "how high is it?"

    chrome.show_router(router_of(*TWO_STEPS, example="how high is it?"), test)


def test_plan_of_forty_steps_is_drawn(chrome: Chrome) -> None:
    texts = [f"step {i}" + (f" after #{i - 3}" if i > 3 else "") for i in range(1, 40)]
    texts.append("join " + " ".join(f"#{i}" for i in range(37, 40)))

    async def test(shown: Opened) -> None:
        await shown.ask()
        await shown.status("answered")
        assert await shown.page.locator(".node.done").count() == 40

    chrome.show_router(router_of(*texts), test)


def test_failed_query_says_why(chrome: Chrome) -> None:
    async def test(shown: Opened) -> None:
        await shown.page.get_by_label("cost limit, USD").fill("0.000000000001")
        await shown.ask()
        await shown.page.locator("[role=alert]").first.wait_for()
        assert "r2.max_cost_usd" in await shown.page.locator("[role=alert]").first.text_content()

    chrome.show_router(router_of(*TWO_STEPS), test)


def test_thousand_queries_stay_readable(chrome: Chrome) -> None:
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

    chrome.show_router(router, test)


def test_two_policies_are_compared(chrome: Chrome) -> None:
    async def test(shown: Opened) -> None:
        await shown.page.click("#tab-compare")
        await shown.page.get_by_label("Question for both").fill(QUESTION)
        await shown.page.get_by_label("policy 1").fill("all:small")
        await shown.page.get_by_role("button", name="Ask both").click()
        await shown.page.get_by_text("answered").nth(1).wait_for()

    chrome.show_router(router_of(*TWO_STEPS), test, "#compare")


def keys_of(path: Path, **limits: dict[str, Any]) -> tuple[ServerConfig, dict[str, str]]:
    """An endpoint with a key of each name."""
    made = {name: new_key(name=name, **fields) for name, fields in limits.items()}
    entries = [entry.model_dump(mode="json", exclude_none=True) for _, entry in made.values()]
    path.write_text(yaml.safe_dump(entries))
    path.chmod(0o600)
    return ServerConfig(keys_file=str(path)), {name: key for name, (key, _) in made.items()}


async def use_key(shown: Opened, key: str) -> None:
    await shown.page.get_by_label("Key of this endpoint").fill(key)
    await shown.page.get_by_role("button", name="Use it").click()


def test_page_asks_for_the_key_and_tells_a_wrong_one(chrome: Chrome, tmp_path: Path) -> None:
    """A key without limits sees the budgets of all; one with limits sees its own, and not the models."""
    server, keys = keys_of(tmp_path / "keys.yaml", admin={}, one={"budget_usd": "2", "budget_period": "day"})
    router = router_of(*TWO_STEPS)

    async def test(shown: Opened) -> None:
        await use_key(shown, "wrong")
        await shown.page.get_by_text("does not know this key").wait_for()
        await use_key(shown, keys["one"])
        await shown.ask()
        await shown.status("answered")
        await shown.page.get_by_text("of $2.0000 per day; full again on").wait_for()
        await shown.page.click("#tab-traffic")
        await shown.page.get_by_text("shown to keys without limits").wait_for()
        keys_table = shown.page.get_by_role("group", name="Keys")
        await keys_table.locator("tr", has_text="$2.0000 per day").wait_for()
        assert await keys_table.locator("tbody tr").count() == 1
        await shown.page.get_by_role("button", name="Change key").click()
        await use_key(shown, keys["admin"])
        await shown.page.get_by_text("2 keys").click()
        row = keys_table.locator("tr", has_text="one")
        await row.wait_for()
        assert "$2.0000 per day" in await row.inner_text()
        await shown.page.locator("tr.link button").first.click()
        await shown.page.get_by_text("and not its texts").wait_for()
        assert await shown.page.locator(".inner .node.done").count() == 2
        assert "Mont Blanc" not in await shown.page.content()

    chrome.show(create_app(router, server, environment={}), test)


def test_traffic_shows_queries_from_before_and_models_at_rest(chrome: Chrome) -> None:
    engines = {name: ScriptedEngine(["yes"]) for name in ("large", "decomposer", "allocator")}
    engines["small"] = ScriptedEngine([EngineUnavailable("down")])
    config = RouterConfig(models=tuple(model(name) for name in engines))
    pool, metrics = build_pool(config.models, lambda card: engines[card.name]), Metrics()
    metrics.watch_models(pool)
    parts = (Decomposer(pool), Allocator(pool), [metrics.observe])
    router = Router(config, lambda given: Pipeline(pool, given, *parts))
    router.route_by(routing())

    async def test(shown: Opened) -> None:
        for number in range(4):
            model = "small" if number else "large"
            query = Query(
                request_id=f"id-{number}", model=model, messages=(Message(role="user", content="hi"),)
            )
            with suppress(R2Error):
                await router.answer(query)
        await shown.page.reload()
        await shown.page.click("#tab-traffic")
        await shown.page.get_by_text("4 of 4 queries").wait_for()
        resting = shown.page.get_by_role("group", name="Models").locator("tr", has_text="small")
        assert "rests after failures" in await resting.inner_text()
        await shown.page.get_by_label("state").select_option("failed")
        await shown.page.get_by_text("3 of 4 queries").wait_for()
        await shown.page.get_by_label("at least").fill("1000000")
        await shown.page.get_by_text("0 of 4 queries").wait_for()

    chrome.show_router(router, test, metrics=metrics)


def test_tabs_follow_the_arrow_keys(chrome: Chrome) -> None:
    async def test(shown: Opened) -> None:
        await shown.page.locator("#tab-ask").focus()
        for name in ("traffic", "compare", "ask"):
            await shown.page.keyboard.press("ArrowRight")
            await shown.page.locator(f"#panel-{name}").wait_for()
            assert await shown.page.evaluate("document.activeElement.id") == f"tab-{name}"

    chrome.show_router(router_of(*TWO_STEPS), test)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_barrier(chrome: Chrome, scheme: str) -> None:
    """Readers may use a keyboard or a screen reader, or need contrast. All parts are checked with content."""
    from axe_playwright_python.async_playwright import Axe

    async def check(shown: Opened, part: str) -> None:
        found = (await Axe().run(shown.page)).response["violations"]
        assert {rule["id"]: [node["html"] for node in rule["nodes"]] for rule in found} == {}, part

    async def test(shown: Opened) -> None:
        await shown.page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        await check(shown, "empty")
        await shown.ask()
        await shown.status("answered")
        await shown.page.get_by_text("Steps in full").click()
        await check(shown, "ask")
        await shown.page.click("#tab-traffic")
        await shown.page.locator("tr.link button").first.click()
        await shown.page.get_by_role("button", name="Close").wait_for()
        await check(shown, "traffic")
        await shown.page.click("#tab-compare")
        await shown.page.get_by_label("Question for both").fill(QUESTION)
        await shown.page.get_by_role("button", name="Ask both").click()
        await shown.page.get_by_text("The answers are").wait_for()
        await check(shown, "compare")

    chrome.show_router(router_of(*TWO_STEPS), test)


def test_lost_connection_is_told_and_found_again(chrome: Chrome) -> None:
    """A query that was at work, and of which the router knows nothing then, has lost its end."""
    router = router_of(*TWO_STEPS)

    async def test(shown: Opened) -> None:
        await shown.page.click("#tab-traffic")
        await shown.status("Live")
        known = {"request_id": "cut", "model": "r2"}
        router.events.publish(Event(kind="started", query="cut short", at_s=0, **known))
        row = shown.page.locator("tr.link", has_text="cut short")
        await row.get_by_text("at work").wait_for()
        await shown.page.context.set_offline(True)
        await shown.page.evaluate("window.stop()")
        await shown.status("disconnected")
        await shown.page.context.set_offline(False)
        await shown.status("Live")
        await row.get_by_text("failed").wait_for()
        await row.get_by_role("button").click()
        await shown.page.get_by_text("lost: its router replica ended").wait_for()
        router.events.publish(Event(kind="answered", answer="late", at_s=1, **known))
        await row.get_by_text("answered").wait_for()

    chrome.show_router(router, test)


def test_query_without_an_end_in_its_time_limit_has_lost_it(chrome: Chrome) -> None:
    router = router_of(*TWO_STEPS)

    async def test(shown: Opened) -> None:
        await shown.page.clock.install()
        await shown.page.reload()
        await shown.page.click("#tab-traffic")
        await shown.page.clock.run_for(1_000)
        await shown.status("Live")
        now_s = await shown.page.evaluate("Date.now()") / 1000
        known = {"request_id": "cut", "model": "r2", "at_s": 0.0, "began_s": now_s, "deadline_s": 30.0}
        router.events.publish(Event(kind="started", query="cut short", **known))
        row = shown.page.locator("tr.link", has_text="cut short")
        await until_shown(shown, row.get_by_text("at work"))
        await shown.page.clock.run_for(61_000)
        await until_shown(shown, row.get_by_text("failed"))

    async def until_shown(shown: Opened, found: Any) -> None:
        while not await found.count():
            await shown.page.clock.run_for(500)

    chrome.show_router(router, test)
