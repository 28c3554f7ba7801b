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


async def main(url: str) -> None:
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = await browser.new_page()
        await page.goto(f"{url}/ui")
        for scheme in ("light", "dark"):
            await page.emulate_media(color_scheme=scheme)
            await page.click("#tab-ask")
            await page.fill("textarea", QUESTION)
            await page.click("button.main")
            await page.locator("[role=status]", has_text="answered").first.wait_for()
            for name, (width, height) in SIZES.items():
                await page.set_viewport_size({"width": width, "height": height})
                await _take(page, f"page-ask-{name}-{scheme}")
            await page.set_viewport_size({"width": 1280, "height": 1150})
            await page.click("#tab-traffic")
            await page.locator("tr.link").first.wait_for()
            await _take(page, f"page-traffic-{scheme}")
        await browser.close()


async def _take(page: Any, name: str) -> None:
    await page.wait_for_timeout(300)
    picture = Image.open(BytesIO(await page.screenshot())).convert("RGB")
    small = picture.quantize(64, dither=Image.Dither.NONE)
    small.save(ROOT / "docs" / f"{name}.png", optimize=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1].removesuffix("/v1")))
