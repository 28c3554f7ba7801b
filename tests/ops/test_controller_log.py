"""Errors of autoscaling policies are found in the log of Serve's controller."""

from __future__ import annotations

from pathlib import Path

import pytest

from r2_serve.ops.local.controller_log import ControllerLog, PolicyFailed

STARTED = "INFO 2026-11-28 04:22:20,154 controller 1 -- Starting Replica(id='d3o6', app='r2').\n"
FAULT = """ERROR 2026-11-28 04:22:21,890 controller 1 -- Exception updating application state.
Traceback (most recent call last):
  File "/ray/serve/_private/autoscaling_state.py", line 683, in get_decision_num_replicas
    decision_num_replicas, self._policy_state = self._policy(autoscaling_context)
                                                ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "/home/me/policies.py", line 2, in by_hour
    raise RuntimeError("no hour like this")
RuntimeError: no hour like this
"""


def log(session: Path, text: str) -> None:
    path = session / "logs" / "serve" / "controller_1.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(text)


def test_error_of_a_policy_is_found_with_its_text_and_place(tmp_path: Path) -> None:
    log(tmp_path, STARTED + FAULT + FAULT)
    with pytest.raises(
        PolicyFailed, match=r"RuntimeError: no hour like this \(/home/me/policies.py:2, by_hour\)"
    ):
        ControllerLog(tmp_path).check()


def test_error_that_is_still_being_written_is_found_at_the_next_reading(tmp_path: Path) -> None:
    watched = ControllerLog(tmp_path)
    log(tmp_path, STARTED * 1000 + FAULT[:300])
    watched.check()
    log(tmp_path, FAULT[300:])
    with pytest.raises(PolicyFailed):
        watched.check()


def test_other_errors_of_the_controller_are_ignored(tmp_path: Path) -> None:
    log(tmp_path, STARTED + FAULT.replace("get_decision_num_replicas", "update"))
    ControllerLog(tmp_path).check()
    ControllerLog(tmp_path / "not there").check()
