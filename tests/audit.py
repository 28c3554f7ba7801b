"""Known vulnerabilities of the pinned packages: `make audit`. What could not be looked up is told, and never passes for clean.

    python -m tests.audit               exit status 0: all looked up, nothing known; 1: vulnerable; 2: not looked up, or not all of them
    python -m tests.audit --if-online   0 in the place of 2, for runs that must not depend on a service being there

pip-audit alone will not do: where PyPI answers 404 for every package it says "No known vulnerabilities found" and exits with 0.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

SERVICES = ("pypi", "osv")
"""Asked in turn, until one has looked up everything."""
PIP_AUDIT = "pip-audit==2.10.1"
HOME = Path("runs/audit")


@dataclass(frozen=True)
class Report:
    """What one service said."""

    num_checked: int
    unchecked: tuple[str, ...] = ()
    vulnerable: tuple[str, ...] = ()
    """Package, version and the names of what is known of it."""


def read_report(text: str) -> Report | None:
    """pip-audit's JSON; None where it broke off without any."""
    try:
        packages = json.loads(text)["dependencies"]
    except (ValueError, KeyError, TypeError):
        return None
    unchecked = tuple(package["name"] for package in packages if "skip_reason" in package)
    vulnerable = [package for package in packages if package.get("vulns")]
    told = tuple(
        f"{package['name']} {package['version']}: {', '.join(v['id'] for v in package['vulns'])}"
        for package in vulnerable
    )
    return Report(len(packages) - len(unchecked), unchecked, told)


def verdict(report: Report | None) -> tuple[int, str]:
    """The exit status, and what to tell."""
    if report is None or report.num_checked == 0:
        return 2, f"NOT CHECKED: none of {' and '.join(SERVICES)} could be asked about any package"
    if report.vulnerable:
        return 1, "\n".join(["VULNERABLE:", *report.vulnerable])
    if report.unchecked:
        shown = ", ".join(report.unchecked[:10])
        return (
            2,
            f"NOT ALL CHECKED: nothing known of {report.num_checked} packages; {len(report.unchecked)} not looked up: {shown}",
        )
    return 0, f"nothing known against any of the {report.num_checked} pinned packages"


def is_installed() -> bool:
    """pip-audit in an environment of its own, installed now where it is not yet there."""
    if not (HOME / "bin/pip-audit").exists():
        subprocess.run([sys.executable, "-m", "venv", HOME], check=True)
        return subprocess.run([HOME / "bin/pip", "install", "-q", PIP_AUDIT]).returncode == 0
    return True


def ask(service: str, requirements: Path) -> Report | None:
    """What `service` says of the pinned packages; None where it says nothing."""
    options = [
        "--no-deps",
        "--disable-pip",
        "--format",
        "json",
        "--progress-spinner",
        "off",
        "--vulnerability-service",
        service,
    ]
    done = subprocess.run(
        [HOME / "bin/pip-audit", *options, "-r", requirements], capture_output=True, text=True
    )
    report = read_report(done.stdout)
    if report is None:
        print(f"{service}: {(done.stderr.strip().splitlines() or ['no answer'])[-1][:300]}", flush=True)
    else:
        print(f"{service}: {report.num_checked} packages looked up, {len(report.unchecked)} not", flush=True)
    return report


def main(arguments: list[str]) -> int:
    reports: list[Report] = []
    for service in SERVICES if is_installed() else ():
        report = ask(service, Path("constraints.txt"))
        reports += [report] if report else []
        if report and (report.vulnerable or not report.unchecked):
            break
    status, text = verdict(
        max(reports, key=lambda report: (bool(report.vulnerable), report.num_checked), default=None)
    )
    print(text)
    return 0 if status == 2 and "--if-online" in arguments else status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
