"""Takes the pictures of docs/page.md from a running endpoint: `python -m tests.browser.screenshots URL`.

The endpoint is `r2-serve up` with the embedded models. Each picture is looked at before it is committed.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
from io import BytesIO
from typing import Any

from PIL import Image

from tests import ROOT

QUESTION = (
    "Quin has 65 stones but later gives away 37 and finds 53 more. Emil had 917 stones but later gives "
    "away 9. Leo fills 6 crates with 78 stones each and gives away 8. Zoe fills 7 baskets with 56 stones "
    "each. How many more stones do Quin and Emil have than Leo and Zoe?"
)
SIZES = {"wide": (1280, 1150), "middle": (800, 1150), "phone": (390, 844)}


SLOW = {"offline": False, "latency": 0, "downloadThroughput": 8_000, "uploadThroughput": -1}
"""A line on which the events of a query take seconds, as the tiny models take only a part of one."""


async def main(url: str) -> None:
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = await browser.new_page()
        await page.goto(f"{url}/ui")
        line = await page.context.new_cdp_session(page)
        await page.emulate_media(reduced_motion="reduce")
        for scheme in ("light", "dark"):
            await page.emulate_media(color_scheme=scheme)
            await page.click("#tab-ask")
            for name, (width, height) in SIZES.items():
                await page.set_viewport_size({"width": width, "height": height})
                await line.send("Network.emulateNetworkConditions", SLOW)
                while not await _is_taken_at_work(page, f"page-ask-{name}-{scheme}"):
                    print("again: the query was faster than its picture")
                await line.send("Network.emulateNetworkConditions", {**SLOW, "downloadThroughput": -1})
            await page.set_viewport_size({"width": 1280, "height": 1150})
            await _take(page, f"page-answered-{scheme}")
            await page.click("#tab-traffic")
            await page.locator("tr.link").first.wait_for()
            await page.get_by_text("models take calls").wait_for()
            await _take(page, f"page-traffic-{scheme}")
        await browser.close()


async def _is_taken_at_work(page: Any, name: str) -> bool:
    """Asks, and takes a picture when some steps are done; False if it shows none at work."""
    await page.fill("textarea", QUESTION)
    await page.click("button.main")
    await page.locator("[role=status]", has_text="the router plans").first.wait_for()
    await page.locator(".node.done").nth(3).wait_for()
    await _take(page, name)
    is_at_work = await page.locator(".node.works").count() > 0
    await page.locator("[role=status]", has_text="answered").first.wait_for()
    return is_at_work


async def _take(page: Any, name: str) -> None:
    picture = Image.open(BytesIO(await page.screenshot())).convert("RGB")
    small = picture.quantize(96, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    small.save(ROOT / "docs" / f"{name}.png", optimize=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1].removesuffix("/v1")))
