"""`make audit` never reports a package as clean that no service has looked up."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests import audit
from tests.audit import Report, read_report, verdict

CLEAN: dict[str, Any] = {"name": "a", "version": "1", "vulns": []}
UNKNOWN = {"name": "b", "skip_reason": "Dependency not found on PyPI and could not be audited: b (1)"}
VULNERABLE = {
    "name": "c",
    "version": "2",
    "vulns": [{"id": "CVE-1", "fix_versions": []}, {"id": "CVE-2", "fix_versions": []}],
}


@pytest.mark.parametrize(
    ("packages", "status", "message"),
    [
        ([CLEAN], 0, "any of the 1 pinned packages"),
        ([CLEAN, VULNERABLE], 1, "c 2: CVE-1, CVE-2"),
        ([UNKNOWN, VULNERABLE], 1, "c 2: CVE-1, CVE-2"),
        ([CLEAN, UNKNOWN], 2, "1 were not looked up: b"),
        ([UNKNOWN], 2, "NOT CHECKED"),
        ([], 2, "NOT CHECKED"),
    ],
)
def test_only_packages_that_were_looked_up_count_as_clean(
    packages: list[dict[str, Any]], status: int, message: str
) -> None:
    got, text = verdict(read_report(json.dumps({"dependencies": packages, "fixes": []})))
    assert got == status
    assert message in text


@pytest.mark.parametrize("text", ["", "Traceback", "[]", "{}"])
def test_output_without_a_report_is_not_clean(text: str) -> None:
    assert verdict(read_report(text))[0] == 2


@pytest.mark.parametrize(
    ("answers", "status", "if_online", "asked"),
    [
        ({"pypi": None, "osv": None}, 2, 0, ["pypi", "osv"]),
        ({"pypi": Report(1, ("b",)), "osv": Report(2)}, 0, 0, ["pypi", "osv"]),
        ({"pypi": Report(1, ("b",)), "osv": None}, 2, 0, ["pypi", "osv"]),
        ({"pypi": Report(1, ("b",), ("c 2: CVE-1",)), "osv": Report(2)}, 1, 1, ["pypi"]),
        ({"pypi": Report(2), "osv": None}, 0, 0, ["pypi"]),
    ],
)
def test_vulnerabilities_always_fail_and_a_missing_report_fails_unless_if_online_is_given(
    answers: dict[str, Report | None],
    status: int,
    if_online: int,
    asked: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    services: list[str] = []

    def ask(service: str, requirements: object) -> Report | None:
        services.append(service)
        return answers[service]

    monkeypatch.setattr(audit, "ask", ask)
    monkeypatch.setattr(audit, "is_installed", lambda: True)
    assert audit.main([]) == status
    assert services == asked
    assert audit.main(["--if-online"]) == if_online


def test_without_pip_audit_nothing_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "is_installed", lambda: False)
    assert (audit.main([]), audit.main(["--if-online"])) == (2, 0)
