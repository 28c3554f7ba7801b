"""Known vulnerabilities of the pinned packages: `make audit`. No answer never counts as clean.

    python -m tests.audit               0: all looked up, none vulnerable; 1: vulnerable; 2: not all looked up
    python -m tests.audit --if-online   0 in place of 2, for runs that must not depend on a service

pip-audit alone is not enough: if PyPI answers 404 for every package, it prints "No known vulnerabilities
found" and exits with 0.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

SERVICES = ("pypi", "osv")
"""The services, asked in turn until one has looked up everything."""
PIP_AUDIT = "pip-audit==2.10.1"
HOME = Path("runs/audit")


@dataclass(frozen=True)
class Report:
    """The answer of one service."""

    num_checked: int
    unchecked: tuple[str, ...] = ()
    vulnerable: tuple[str, ...] = ()
    """One line per vulnerable package: its name, its version, its vulnerabilities."""


def read_report(text: str) -> Report | None:
    """The report in pip-audit's JSON output; None if the output holds no report."""
    try:
        packages = json.loads(text)["dependencies"]
    except (ValueError, KeyError, TypeError):
        return None
    unchecked = tuple(package["name"] for package in packages if "skip_reason" in package)
    vulnerable = [package for package in packages if package.get("vulns")]
    lines = tuple(
        f"{package['name']} {package['version']}: {', '.join(v['id'] for v in package['vulns'])}"
        for package in vulnerable
    )
    return Report(len(packages) - len(unchecked), unchecked, lines)


def verdict(report: Report | None) -> tuple[int, str]:
    """The exit status and the message for the best report."""
    if report is None or report.num_checked == 0:
        return 2, f"NOT CHECKED: neither {' nor '.join(SERVICES)} answered for any package"
    if report.vulnerable:
        return 1, "\n".join(["VULNERABLE:", *report.vulnerable])
    if report.unchecked:
        shown = ", ".join(report.unchecked[:10])
        counts = f"{report.num_checked} packages are clean, {len(report.unchecked)} were not looked up"
        return 2, f"NOT ALL CHECKED: {counts}: {shown}"
    return 0, f"no known vulnerability in any of the {report.num_checked} pinned packages"


def is_installed() -> bool:
    """Installs pip-audit in an environment of its own if it is not there; False if that fails."""
    if not (HOME / "bin/pip-audit").exists():
        subprocess.run([sys.executable, "-m", "venv", HOME], check=True)
        return subprocess.run([HOME / "bin/pip", "install", "-q", PIP_AUDIT]).returncode == 0
    return True


def ask(service: str, requirements: Path) -> Report | None:
    """The report of `service` on the pinned packages; None if it gives none."""
    options = "--no-deps --disable-pip --format json --progress-spinner off --vulnerability-service"
    done = subprocess.run(
        [HOME / "bin/pip-audit", *options.split(), service, "-r", requirements],
        capture_output=True,
        text=True,
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
