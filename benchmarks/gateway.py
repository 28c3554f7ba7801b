"""What the router adds to a request, and what LiteLLM's proxy adds, in the same run over the same provider.

    python -m benchmarks.gateway --out runs/bench/gateway.json          (make bench-gateway)

Four processes run on loopback: the scripted provider (`gateway_upstream.py`), `r2-serve up` with a hosted
model, `litellm` with the same model, and this client. Both gateways run all the time, each with one worker
and one client key, and without database, callbacks or logs. The client asks the provider directly, then one
gateway and then the other, in slots of a few seconds and for several rounds.

`added` is the median latency through a gateway less the direct median of the same round. CPU is user and
system time per request of all processes of a gateway (Ray's proxy, raylet, GCS and dashboard agents
included), less the CPU time that they use at rest, which is reported separately. Only R2 answers routed
queries: five calls, four of them one after another.

RAY_SERVE_* variables of the environment reach `r2-serve up`, so that ways of entry can be compared.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import aiohttp
import psutil
import typer
import yaml
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from benchmarks.gateway_arithmetic import DIRECT, Cost, Load, Slot, cost, idle_cores, ratios
from benchmarks.gateway_upstream import ANSWER, NUM_CALLS, NUM_SUBTASKS, NUM_WAVES
from r2_serve.ops.local.cluster import LOOPBACK, free_port

OURS, THEIRS, UPSTREAM = "r2", "litellm", "upstream"
START_S = 90
WARM_UP_REQUESTS = 200
KEY = f"sk-{secrets.token_hex(24)}"
"""The client key of both gateways; LiteLLM's proxy does not start without one."""
QUESTION = (
    "What is the answer to the question that a question of some twenty words asks, "
    "in the words of whoever asks it?"
)


@dataclass(frozen=True)
class Server:
    """A server and the processes that it started."""

    name: str
    url: str
    process: psutil.Process

    def cpu_s(self) -> float:
        """User and system time of all its processes so far.

        All of them start before the first measurement, and none ends before the last.
        """
        total = 0.0
        for process in [self.process, *self.process.children(recursive=True)]:
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += times.user + times.system
        return total


def hosted_config(upstream: str) -> dict[str, Any]:
    """A Serve config of hosted models only: `worker`, and the virtual model `r2` over it."""
    prices = {"usd_per_mtok_in": "1", "usd_per_mtok_out": "2"}
    names = ("worker", "planner", "picker")
    models = [
        {"name": name, **prices, "engine": {"kind": "openai", "model": name, "base_url": upstream}}
        for name in names
    ]
    virtual = {
        "pool": ["worker"],
        "plan": "always",
        "decomposer": {"model": "planner", "num_samples": 1},
        "allocator": {"model": "picker"},
    }
    free = {"ray_actor_options": {"num_cpus": 0}}
    router = {"name": "Router", **free, "user_config": {"virtual_models": {"r2": virtual}}}
    application = {
        "name": "r2",
        "route_prefix": "/",
        "import_path": "r2_serve.app:build",
        "args": {"models": models, "prices_as_of": "2026-11", "server": {"api_keys_env": "R2_BENCH_KEY"}},
        "deployments": [router, {"name": "Decomposer", **free}, {"name": "Allocator", **free}],
    }
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": LOOPBACK, "port": 8000},
        "applications": [application],
    }


def litellm_config(upstream: str) -> dict[str, Any]:
    parameters = {"model": "openai/worker", "api_base": upstream, "api_key": "none"}
    return {"model_list": [{"model_name": "worker", "litellm_params": parameters}]}


@contextmanager
def serving(
    name: str, command: Sequence[str], port: int, path: str, environment: Mapping[str, str] = {}
) -> Iterator[Server]:
    """Runs `command` from its first answer at `path` until the context ends.

    Raises: RuntimeError with its output if it does not answer within `START_S` seconds.
    """
    with tempfile.TemporaryFile("w+") as log:
        env = {**os.environ, **environment}
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=env)  # noqa: S603
        try:
            asyncio.run(_answers(process, f"http://{LOOPBACK}:{port}{path}"))
            yield Server(name, f"http://{LOOPBACK}:{port}/v1", psutil.Process(process.pid))
        except TimeoutError as e:
            log.seek(0)
            raise RuntimeError(f"{' '.join(command)} does not answer:\n{log.read()[-4000:]}") from e
        finally:
            process.terminate()
            process.wait(60)


async def _answers(process: subprocess.Popen[bytes], url: str) -> None:
    async with asyncio.timeout(START_S), aiohttp.ClientSession() as session:
        while True:
            if process.poll() is not None:
                raise TimeoutError
            try:
                async with session.get(url) as response:
                    if response.status < 500:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.2)


# -- the client ----------------------------------------------------------------------------------------------


HEADERS = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}


def body_of(load: Load) -> bytes:
    body: dict[str, Any] = {
        "model": "r2" if load.kind == "routed" else "worker",
        "messages": [{"role": "user", "content": QUESTION}],
    }
    if load.kind == "stream":
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return json.dumps(body).encode()


async def ask(
    session: aiohttp.ClientSession, url: str, body: bytes, *, is_stream: bool
) -> tuple[float, float]:
    """Seconds to the first and to the last byte of the reply. Raises: RuntimeError for a partial answer."""
    start_s = time.perf_counter()
    async with session.post(f"{url}/chat/completions", data=body, headers=HEADERS) as response:
        first = await response.content.readany()
        first_s = time.perf_counter() - start_s
        content = first + await response.content.read()
        last_s = time.perf_counter() - start_s
    is_whole = b"[DONE]" in content[-20:] if is_stream else ANSWER.encode() in content
    if response.status != 200 or not is_whole:
        raise RuntimeError(f"{url} answered {response.status}: {content[:500]!r}")
    return first_s, last_s


async def run_load(
    url: str, load: Load, *, seconds: float | None = None, num_requests: int | None = None
) -> list[tuple[float, float]]:
    """Seconds to the first and to the last byte of each reply under `load`.

    `load.num_at_once` clients each ask again as soon as they have an answer, until `seconds` have passed or
    `num_requests` have been sent in all.
    """
    body, took, started = body_of(load), list[tuple[float, float]](), 0
    until_s = time.perf_counter() + (seconds or START_S)

    async def client(session: aiohttp.ClientSession) -> None:
        nonlocal started
        while time.perf_counter() < until_s and (num_requests is None or started < num_requests):
            started += 1
            took.append(await ask(session, url, body, is_stream=load.kind == "stream"))

    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
        asyncio.TaskGroup() as group,
    ):
        for _ in range(load.num_at_once):
            group.create_task(client(session))
    return took


def measure(servers: Sequence[Server], target: Server, load: Load, round_: int, seconds: float) -> Slot:
    before, start_s = {server.name: server.cpu_s() for server in servers}, time.perf_counter()
    took = asyncio.run(run_load(target.url, load, seconds=seconds))
    wall_s = time.perf_counter() - start_s
    cpu_s = {server.name: server.cpu_s() - before[server.name] for server in servers}
    name = DIRECT if target.name == UPSTREAM else target.name
    return Slot(round_, name, load, wall_s, [last for _, last in took], [first for first, _ in took], cpu_s)


def measure_all(
    servers: Sequence[Server], loads: Sequence[Load], num_rounds: int, seconds: float, console: Console
) -> list[Slot]:
    """Measures every target under every load. Targets take turns, in another order each round."""
    for server in servers:
        for load in loads:
            if _takes(server, load):
                asyncio.run(run_load(server.url, replace(load, num_at_once=4), num_requests=WARM_UP_REQUESTS))
    slots = []
    for round_ in range(num_rounds):
        for load in loads:
            for i in range(len(servers)):
                server = servers[(i + round_) % len(servers)]
                if _takes(server, load):
                    slots.append(measure(servers, server, load, round_, seconds))
        console.print(f"round {round_ + 1} of {num_rounds}", style="dim")
    return slots


def _takes(server: Server, load: Load) -> bool:
    return load.kind != "routed" or server.name == OURS


# -- the report ----------------------------------------------------------------------------------------------


def pass_through(slots: Sequence[Slot], load: Load) -> dict[str, Any]:
    ours, theirs = cost(slots, OURS, load), cost(slots, THEIRS, load)
    direct = [slot for slot in slots if slot.target == DIRECT and slot.load == load]
    return {
        "load": str(load),
        OURS: asdict(ours),
        THEIRS: asdict(theirs),
        "added_p50_ratio": ratios(ours.added_p50_ms_by_round, theirs.added_p50_ms_by_round),
        "cpu_ratio": ratios(ours.cpu_ms_by_round, theirs.cpu_ms_by_round),
        "cpu_with_idle_ratio": ours.cpu_with_idle_ms / theirs.cpu_with_idle_ms,
        "upstream_cpu_ms": 1000
        * sum(slot.cpu_s[UPSTREAM] for slot in direct)
        / sum(len(slot.latency_s) for slot in direct),
    }


def routed(slots: Sequence[Slot], load: Load) -> dict[str, Any]:
    whole: Cost = cost(slots, OURS, load, NUM_WAVES, replace(load, kind="plain"))
    return {
        "load": str(load),
        OURS: asdict(whole),
        "added_p50_ms_per_subtask": whole.added_p50_ms / NUM_SUBTASKS,
        "cpu_ms_per_subtask": whole.cpu_ms / NUM_SUBTASKS,
        "cpu_ms_per_call": whole.cpu_ms / NUM_CALLS,
    }


def report(slots: Sequence[Slot], loads: Sequence[Load]) -> dict[str, Any]:
    """All figures. The two headline ratios are the worst of plain pass-through at any concurrency."""
    passed = [pass_through(slots, load) for load in loads if load.kind != "routed"]
    plain = [row for row in passed if row["load"].startswith("plain")]
    rounds = sorted({slot.round for slot in slots})
    return {
        "added_p50_ratio": max(row["added_p50_ratio"][0] for row in plain),
        "cpu_ratio": max(row["cpu_ratio"][0] for row in plain),
        "pass_through": passed,
        "routed": [routed(slots, load) for load in loads if load.kind == "routed"],
        "idle_cpu_percent": {
            name: [100 * idle_cores(slots, name, round_) for round_ in rounds] for name in (OURS, THEIRS)
        },
        "machine": {"cpus": os.cpu_count(), "load": os.getloadavg(), "python": platform.python_version()},
    }


def show(result: Mapping[str, Any], title: str) -> Table:
    table = Table(
        title=title,
        box=SIMPLE,
        caption="ratio: ours / LiteLLM's, median of rounds (least to greatest); CPU without idle",
    )
    for column in (
        "load",
        "added p50 ms: r2",
        "litellm",
        "ratio",
        "CPU ms: r2",
        "litellm",
        "ratio",
        "req/s: r2",
        "litellm",
    ):
        table.add_column(column, justify="left" if column == "load" else "right")
    for row in result["pass_through"]:
        our, their = row[OURS], row[THEIRS]
        added, cpu = ("{:.2f} ({:.2f}-{:.2f})".format(*row[key]) for key in ("added_p50_ratio", "cpu_ratio"))
        table.add_row(
            row["load"], f"{our['added_p50_ms']:.2f}", f"{their['added_p50_ms']:.2f}", added,
            f"{our['cpu_ms']:.2f}", f"{their['cpu_ms']:.2f}", cpu,
            f"{our['requests_per_s']:.0f}", f"{their['requests_per_s']:.0f}",
        )  # fmt: skip
    for row in result["routed"]:
        our = row[OURS]
        numbers = (
            f"{our['added_p50_ms']:.2f}",
            "-",
            "",
            f"{our['cpu_ms']:.2f}",
            "-",
            "",
            f"{our['requests_per_s']:.0f}",
            "-",
        )
        table.add_row(row["load"], *numbers)
        table.add_row(
            "  a subtask",
            f"{row['added_p50_ms_per_subtask']:.2f}",
            "",
            "",
            f"{row['cpu_ms_per_subtask']:.2f}",
        )
    return table


def main(
    litellm: Annotated[Path, typer.Option(help="Command of an installed LiteLLM proxy.")] = Path(
        "runs/litellm/bin/litellm"
    ),
    rounds: Annotated[int, typer.Option(min=1, help="Number of rounds.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of a slot in seconds.")] = 2.0,
    at_once: Annotated[str, typer.Option(help="Requests at a time, comma-separated.")] = "1,8",
    kinds: Annotated[
        str, typer.Option(help="plain, stream and routed, comma-separated.")
    ] = "plain,stream,routed",
    out: Annotated[Path | None, typer.Option(help="File of the figures (JSON).")] = None,
) -> None:
    """Measure what R2 and LiteLLM's proxy add to a request."""
    console = Console()
    loads = [Load(kind, int(num)) for kind in kinds.split(",") for num in at_once.split(",")]
    ports = {name: free_port() for name in (UPSTREAM, OURS, THEIRS)}
    upstream_url = f"http://{LOOPBACK}:{ports[UPSTREAM]}/v1"
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "r2.yaml").write_text(yaml.safe_dump(hosted_config(upstream_url)))
        (folder / "litellm.yaml").write_text(yaml.safe_dump(litellm_config(upstream_url)))
        python = [sys.executable, "-m"]
        up = [*python, "r2_serve.cli", "up", "--config", str(folder / "r2.yaml"), "--port", str(ports[OURS])]
        proxy = [
            str(litellm),
            "--config",
            str(folder / "litellm.yaml"),
            "--host",
            LOOPBACK,
            "--port",
            str(ports[THEIRS]),
        ]
        keys = {"LITELLM_MASTER_KEY": KEY, "R2_BENCH_KEY": KEY}
        quiet = {
            "LITELLM_LOG": "ERROR",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_MODE": "PRODUCTION",
            **keys,
        }
        console.print("starting the upstream, litellm and r2-serve", style="dim")
        upstream = [*python, "benchmarks.gateway_upstream", str(ports[UPSTREAM])]
        servers = [
            stack.enter_context(serving(UPSTREAM, upstream, ports[UPSTREAM], "/")),
            stack.enter_context(serving(THEIRS, proxy, ports[THEIRS], "/health/liveliness", quiet)),
            stack.enter_context(serving(OURS, up, ports[OURS], "/health/ready", keys)),
        ]
        result = report(measure_all(servers, loads, rounds, seconds, console), loads)
    console.print(
        show(result, f"{os.cpu_count()} CPUs, {rounds} rounds of {seconds:g} s, scripted provider of 20 ms")
    )
    idle = ", ".join(f"{name} {max(values):.1f}" for name, values in result["idle_cpu_percent"].items())
    console.print(
        f"at rest, in % of a core: {idle}; "
        f"worst of plain: added {result['added_p50_ratio']:.2f}, CPU {result['cpu_ratio']:.2f}"
    )
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
