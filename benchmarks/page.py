"""What the page and the feed of events cost: first paint, an idle page, requests beside many subscribers.

    python -m benchmarks.page --out runs/bench/page.json

It starts `r2-serve up` with the embedded pool, in one process or with `--cluster` on Ray, and headless
Chromium.

- First paint is Chromium's `first-contentful-paint` in a fresh profile, from the start of the navigation.
- CPU is user and system time of all processes of the server, and of Chromium, over some seconds: with an
  empty tab, and with the page on *Ask* and on *Traffic* while no query comes. The difference is the page's.
- Requests come at fixed times, whatever the server does, and a latency counts from the time at which the
  request was due. Blocks of the same requests with and without subscribers take turns, in random order, and
  all requests of a kind have one 95th percentile. The interval of the ratio resamples pairs of blocks.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import httpx
import numpy as np
import psutil
import typer

from benchmarks.gateway import Server
from r2_serve.lab.domains import words
from r2_serve.ops.local.cluster import LOOPBACK, free_port

START_S, SETTLE_S, RESAMPLES, SEED = 120, 1.0, 2_000, 20_261_128
FIRST_PAINT = "performance.getEntriesByName('first-contentful-paint')[0].startTime"


@contextmanager
def served(*, on_ray: bool) -> Iterator[Server]:
    """The embedded pool at a free port."""
    port = free_port()
    how = [] if on_ray else ["--in-process"]
    command = [sys.executable, "-m", "r2_serve.cli", "up", *how, "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603
    url = f"http://{LOOPBACK}:{port}"
    try:
        deadline = time.monotonic() + START_S
        while not is_ready(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"r2-serve up did not get ready: {' '.join(command)}")
            time.sleep(0.2)
        yield Server("r2", url, psutil.Process(process.pid))
    finally:
        process.terminate()
        process.wait(60)


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health/ready", timeout=2).status_code == 200
    except httpx.TransportError:
        return False


@asynccontextmanager
async def chromium() -> AsyncIterator[Any]:
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        path = shutil.which("chromium")
        browser = await playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        await browser.close()


async def paints(browser: Any, url: str, count: int) -> dict[str, float]:
    """Milliseconds to the first paint, each in a profile without a cache."""
    found = []
    for _ in range(count):
        context = await browser.new_context()
        page = await context.new_page()
        await page.goto(f"{url}/ui/")
        await page.locator("#tab-ask").wait_for()
        found.append(float(await page.evaluate(FIRST_PAINT)))
        await context.close()
    return {"median_ms": median(found), "most_ms": max(found), "count": count}


def browser_cpu_s(server: Server) -> float:
    """CPU time of all processes of this one that are not the server's: Chromium and its driver."""
    theirs = {server.process.pid, *(child.pid for child in server.process.children(recursive=True))}
    total = 0.0
    for child in psutil.Process().children(recursive=True):
        if child.pid not in theirs:
            times = child.cpu_times()
            total += times.user + times.system
    return total


async def idle(browser: Any, server: Server, path: str | None, seconds: float) -> dict[str, float]:
    """Cores that server and browser use while a page is open and nothing happens."""
    page = await browser.new_page()
    if path is not None:
        await page.goto(f"{server.url}/ui/{path}")
        await page.locator("#tab-ask").wait_for()
    await asyncio.sleep(SETTLE_S)
    before, began = (server.cpu_s(), browser_cpu_s(server)), time.perf_counter()
    await asyncio.sleep(seconds)
    after, took = (server.cpu_s(), browser_cpu_s(server)), time.perf_counter() - began
    await page.close()
    return {"server": (after[0] - before[0]) / took, "tab": (after[1] - before[1]) / took}


@contextmanager
def subscribed(server: Server, count: int) -> Iterator[dict[str, int]]:
    """So many subscribers in a process of their own; at the end it holds what they got."""
    got: dict[str, int] = {}
    if not count:
        yield got
        return
    command = [sys.executable, "-m", "benchmarks.page_subscribers", server.url.rpartition(":")[2], str(count)]
    with subprocess.Popen(  # noqa: S603
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield got
        time.sleep(SETTLE_S)
        process.stdin.close()
        got |= zip(("answered", "lost", "reads"), map(int, process.stdout.readline().split()), strict=True)


async def latencies(url: str, queries: Sequence[str], rate: float) -> list[float]:
    """Seconds from the time at which each request is due to its whole reply."""
    loop = asyncio.get_running_loop()
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        began = loop.time()

        async def one(number: int, query: str) -> float:
            due = began + number / rate
            await asyncio.sleep(due - loop.time())
            body = {"model": "r2", "messages": [{"role": "user", "content": query}]}
            (await http.post("/v1/chat/completions", json=body)).raise_for_status()
            return loop.time() - due

        return await asyncio.gather(*(one(number, query) for number, query in enumerate(queries)))


def ratio(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]], percentile: int) -> list[float]:
    """The ratio of two percentiles, and the ends of its interval."""
    pairs, rng = np.array([ours, theirs]), np.random.default_rng(SEED)
    draws = [pairs, *(pairs[:, rng.integers(0, len(ours), len(ours))] for _ in range(RESAMPLES))]
    ratios = [float(np.divide(*np.percentile(draw.reshape(2, -1), percentile, axis=1))) for draw in draws]
    return [ratios[0], *map(float, np.percentile(ratios[1:], [2.5, 97.5]))]


def beside_subscribers(server: Server, count: int, pairs: int, block: int, rate: float) -> dict[str, object]:
    """The 95th percentile with subscribers, divided by that without."""
    tasks = [task.query for task in words.tasks("test", (pairs + 1) * block, SEED)]
    draw = random.Random(SEED)
    asyncio.run(latencies(server.url, tasks[:block], rate))
    found: dict[int, list[list[float]]] = {0: [], count: []}
    got: list[dict[str, int]] = []
    cpu: dict[int, float] = {0: 0.0, count: 0.0}
    for number in range(1, pairs + 1):
        queries = tasks[number * block : (number + 1) * block]
        for num in draw.sample([0, count], 2):
            with subscribed(server, num) as each:
                before = server.cpu_s()
                found[num].append(asyncio.run(latencies(server.url, queries, rate)))
                cpu[num] += server.cpu_s() - before
            got += [each] if num else []
        print(f"pair {number} of {pairs}", file=sys.stderr)
    return {
        "subscribers": count,
        "pairs": pairs,
        "requests_per_block": block,
        "requests_per_s": rate,
        "median_ms": {str(num): 1000 * float(np.median(blocks)) for num, blocks in found.items()},
        "p95_ms": {str(num): 1000 * float(np.percentile(blocks, 95)) for num, blocks in found.items()},
        "median_ratio": ratio(found[count], found[0], 50),
        "p95_ratio": ratio(found[count], found[0], 95),
        "server_cpu_ms_per_request": {str(num): 1000 * s / (pairs * block) for num, s in cpu.items()},
        "got": {name: sum(each[name] for each in got) for name in got[0]},
    }


async def of_the_page(server: Server, num_paints: int, idle_s: float) -> dict[str, object]:
    async with chromium() as browser:
        painted = await paints(browser, server.url, num_paints)
        empty, ask, traffic = [
            await idle(browser, server, path, idle_s) for path in (None, "#ask", "#traffic")
        ]
    more = {
        name: {part: used[part] - empty[part] for part in used}
        for name, used in (("ask", ask), ("traffic", traffic))
    }
    return {"first_paint": painted, "idle_cores_without_page": empty, "idle_cores_of_page": more}


def main(
    cluster: Annotated[bool, typer.Option(help="Serve on Ray, not in one process.")] = False,
    paint: Annotated[int, typer.Option(min=0, help="Loads of the page; 0 leaves the browser out.")] = 10,
    idle_s: Annotated[float, typer.Option(min=1, help="Seconds of idling, three times.")] = 60,
    subscribers: Annotated[int, typer.Option(min=1, help="Subscribers of the events.")] = 200,
    pairs: Annotated[int, typer.Option(min=0, help="Pairs of blocks; 0 leaves subscribers out.")] = 24,
    block: Annotated[int, typer.Option(min=20, help="Requests of a block.")] = 30,
    rate: Annotated[float, typer.Option(min=0.1, help="Requests a second.")] = 3,
    out: Annotated[Path | None, typer.Option(help="File of the figures (JSON).")] = None,
) -> None:
    """Measure what the page and the feed of events cost."""
    load = os.getloadavg()[0]
    with served(on_ray=cluster) as server:
        page = asyncio.run(of_the_page(server, paint, idle_s)) if paint else {}
        beside = beside_subscribers(server, subscribers, pairs, block, rate) if pairs else {}
    machine = {"cores": os.cpu_count(), "load_before": load, "load_after": os.getloadavg()[0]}
    text = json.dumps({"machine": machine, "cluster": cluster, **page, **beside}, indent=2)
    print(text)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n")


if __name__ == "__main__":
    typer.run(main)
