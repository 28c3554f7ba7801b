"""A container's quota and a process's affinity bound the threads of torch."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from r2_serve.engines import cores


@pytest.mark.parametrize(
    ("quota", "given"), [("max 100000", 4), ("250000 100000", 2), ("50000 100000", 1), ("900000 100000", 4)]
)
def test_cores_are_those_of_the_affinity_or_fewer_by_a_quota(
    quota: str, given: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(4))
    monkeypatch.setattr(cores, "CPU_QUOTA", tmp_path / "cpu.max")
    assert cores.num_cores() == 4, "without a quota"
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert cores.num_cores() == given
    assert [cores.num_threads(wanted) for wanted in (1, 64)] == [1, given]
