"""Runs the clients of other makers against R2 in front of a scripted provider, and shows what works.

    python -m tests.conformance.run                  all; writes the tables of docs/conformance.md
    python -m tests.conformance.run codex schema     some; writes no page

Everything is installed under runs/conformance, results and logs too; only package registries are reached.
Exit status 1: something failed.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.conformance.installation import HERE, HOME, install
from tests.conformance.registry import CLIENTS, Client
from tests.conformance.report import FAILED, NOT_RUN, Cell, tables, write_json, write_page
from tests.conformance.sessions import check_sessions
from tests.conformance.stand import TARGETS, Stand, standing

PAGE = Path("docs/conformance.md")
TIMEOUT_S = 900


def main(wanted: list[str]) -> int:
    known = {client.name: client for client in CLIENTS}
    unknown = [name for name in wanted if name not in known]
    if unknown:
        print(f"no client {unknown[0]!r}; choose among {', '.join(known)}", file=sys.stderr)
        return 2
    clients = [known[name] for name in wanted] or list(CLIENTS)
    install({client.environment for client in clients})
    started, cells = time.monotonic(), list[Cell]()
    with tempfile.TemporaryDirectory() as folder, standing(Path(folder)) as stand:
        for client in clients:
            print(f"{client.name} ...", end=" ", flush=True)
            new = run_schema(client) if client.name == "schema" else run(client, stand)
            cells += new
            print(
                ", ".join(
                    f"{sum(c.outcome == o for c in new)} {o}" for o in dict.fromkeys(c.outcome for c in new)
                )
            )
        shutil.copytree(folder, HOME / "stand", dirs_exist_ok=True)
    return _show(cells, time.monotonic() - started, is_whole=not wanted)


def _show(cells: list[Cell], took_s: float, *, is_whole: bool) -> int:
    date = str(datetime.datetime.now(datetime.UTC).date())
    text = f"{date}, {os.cpu_count()} CPU cores, {took_s:.0f} s once installed.\n\n{tables(cells)}"
    print(f"\n{text}\n")
    write_json(HOME / "results.json", cells, date)
    failed = [cell for cell in cells if cell.outcome == FAILED]
    for cell in failed:
        print(
            f"FAILED {cell.client} {cell.target} {cell.feature}: {cell.reason} (see {HOME}/{cell.client}.log)"
        )
    print(f"All cells: {HOME / 'results.json'}")
    if is_whole and not any(cell.outcome in (FAILED, NOT_RUN) for cell in cells):
        write_page(PAGE, text)
        print(f"Written: {PAGE}")
    return 1 if failed else 0


def run(client: Client, stand: Stand) -> list[Cell]:
    """Every feature of one client with every model."""
    where = {
        "R2_ROOT": stand.root,
        "R2_KEY": stand.key,
        "R2_SPENT_KEY": stand.spent_key,
        "R2_API_KEY": stand.key,
        "R2_TARGETS": ",".join(TARGETS),
    }
    cells = run_script(client, where)
    return check_sessions(cells, stand.traces)


def run_schema(client: Client) -> list[Cell]:
    """The schema has an endpoint of its own, over models that need no provider."""
    with _scripted_endpoint() as (root, key):
        return run_script(client, {"R2_ROOT": root, "R2_KEY": key, "R2_SPENT_KEY": "", "R2_TARGETS": ""})


@contextlib.contextmanager
def _scripted_endpoint() -> Iterator[tuple[str, str]]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.conformance.endpoint", folder]
        log = (HOME / "endpoint.log").open("w")
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert process.stdout is not None
            root, key = process.stdout.readline().split()
            yield root, key
        finally:
            process.terminate()
            process.wait()


def run_script(client: Client, where: dict[str, str]) -> list[Cell]:
    """Runs the script of a client in a home of its own, without proxies and keys of others."""
    script = HERE / "clients" / client.script
    environment = "venv" if client.environment == "node" else client.environment
    interpreter = "node" if script.suffix == ".mjs" else str(HOME / environment / "bin/python")
    if shutil.which(interpreter) is None or (client.environment == "node" and shutil.which("npm") is None):
        return [Cell(client.name, "-", "all", NOT_RUN, f"{interpreter} or npm is not here")]
    with tempfile.TemporaryDirectory() as home:
        own = {"PATH": os.environ["PATH"], "HOME": home, "HF_HUB_OFFLINE": "1", **where}
        own |= {"R2_CLIENT": client.name, "R2_NODE_HOME": str(HOME)}
        if "R2_FEATURES" in os.environ:
            own["R2_FEATURES"] = os.environ["R2_FEATURES"]
        with (HOME / f"{client.name}.log").open("w+") as log:
            command = [interpreter, str(script)]
            status = subprocess.run(
                command, stdout=log, stderr=subprocess.STDOUT, env=own, timeout=TIMEOUT_S, cwd=home
            ).returncode
            log.seek(0)
            lines = log.read().splitlines()
    found = [json.loads(line.removeprefix("R2-CELL ")) for line in lines if line.startswith("R2-CELL ")]
    cells = [Cell(client.name, **cell) for cell in found]
    if status != 0 or not cells:
        last = lines[-1][:300] if lines else "no output"
        cells.append(Cell(client.name, "-", "all", FAILED, f"exit status {status}: {last}"))
    return cells


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
