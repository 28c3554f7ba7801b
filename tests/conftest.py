"""Settings of every test: the environment of Ray, the limits of hypothesis, programs that may be missing."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections import Counter

import pytest
from hypothesis import HealthCheck, settings

from r2_serve.ops.local.cluster import prepare_environment

# A shared machine draws examples slowly at times, which says nothing about the code under test.
settings.register_profile("loaded", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("loaded")

PACKAGES = {
    "bwrap": "bubblewrap",
    "chromium": "chromium",
    "promtool": "prometheus",
    "prometheus": "prometheus",
    "systemd-analyze": "systemd",
}
"""The Debian package of each program that a test may need."""


SLOW_TIERS = ("train", "llm", "engine", "browser", "sandbox", "ray")
"""The tiers with the longest files first, so that none of those is what a test process begins last."""


@functools.cache
def lack_of(program: str) -> str | None:
    """The reason why tests that need `program` are skipped; None if it can be used."""
    if shutil.which(program) is None:
        return f"needs {program}: apt-get install {PACKAGES[program]}"
    if program == "bwrap":
        tried = subprocess.run(["bwrap", "--ro-bind", "/", "/", "true"], capture_output=True, text=True)
        if tried.returncode:
            return f"needs bwrap, which cannot make namespaces on this machine: {tried.stderr.strip()[:100]}"
    return None


def pytest_configure(config: pytest.Config) -> None:
    """Sets the environment of Ray before any test imports it, with ports of its own in each test process."""
    if getattr(config.option, "numprocesses", None):
        return  # this process only hands tests to others, which would inherit its ports
    prepare_environment()
    # Ray's own niceness of workers is 15, which starves replicas on a machine that does other work.
    os.environ.setdefault("RAY_worker_niceness", "0")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the slow tiers first, in their order."""
    items.sort(key=_tier)


def _tier(item: pytest.Item) -> int:
    found = (place for place, tier in enumerate(SLOW_TIERS) if item.get_closest_marker(tier))
    return next(found, len(SLOW_TIERS))


def pytest_runtest_setup(item: pytest.Item) -> None:
    needed = [marker.args[0] for marker in item.iter_markers("needs")]
    if item.get_closest_marker("sandbox"):
        needed.append("bwrap")
    for program in needed:
        if reason := lack_of(program):
            pytest.skip(reason)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says how many tests were skipped for each reason: a skipped test is never silent."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped)
    for reason, number in reasons.most_common():
        terminalreporter.write_line(f"skipped {number}: {reason}")
