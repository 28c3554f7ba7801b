"""Cold starts: their parts, the line of a log, and the time that the policy takes from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from r2_serve.errors import ConfigError
from r2_serve.scaling.cold_starts import ColdStart, Moments, read_starts, starts_in, usual_start_s

ON_NEW_NODE = Moments(
    asked_at=100.0, host_up_at=160.0, ray_up_at=190.0, begun_at=195.0, ready_at=235.0, fetched_s=30.0
)


def test_parts_follow_one_another_and_add_up_to_the_whole_start() -> None:
    start = ON_NEW_NODE.parts("m", "a1")
    parts = (start.node_s, start.image_s, start.process_s, start.weights_s, start.engine_s)
    assert parts == (60.0, 30.0, 5.0, 30.0, 10.0) and sum(parts) == 235.0 - 100.0
    assert start.on_node_s == 45.0


def test_node_that_was_up_before_takes_no_time() -> None:
    moments = Moments(asked_at=500.0, host_up_at=1.0, ray_up_at=2.0, begun_at=503.0, ready_at=510.0)
    start = moments.parts("m", "a1")
    assert (start.node_s, start.image_s, start.process_s, start.engine_s) == (0.0, 0.0, 3.0, 7.0)


def test_line_is_read_from_text_and_json_logs_and_the_later_one_has_the_first_token() -> None:
    start = ColdStart(app="m-small", replica="a1", process_s=2.5, engine_s=5.0)
    later = start.model_copy(update={"first_token_s": 0.25})
    lines = [
        f"INFO 2026-11-28 14:00:00 m-small_Model a1 -- {start.line()}",
        json.dumps({"levelname": "INFO", "message": later.line(), "replica": "a1"}),
        "INFO 2026-11-28 14:00:01 something else",
    ]
    assert starts_in(lines) == [later]
    assert starts_in(lines[:1]) == [start]


def test_policy_takes_the_time_in_which_three_of_four_starts_of_its_application_were_over(
    tmp_path: Path,
) -> None:
    from r2_serve.scaling.serve_policy import PlanAhead

    starts = [ColdStart(app="m", replica=str(i), engine_s=float(i), node_s=90) for i in range(1, 9)]
    others = [ColdStart(app="other", replica="o", engine_s=500.0)]
    logs = tmp_path / "serve"
    logs.mkdir()
    (logs / "replica_m.log").write_text("".join(f"INFO {start.line()}\n" for start in [*starts, *others]))
    assert usual_start_s(read_starts(logs), "m") == 7.0
    assert PlanAhead(cold_starts=str(logs))._lead_s("m") == 7.0
    assert PlanAhead(cold_start_s=30)._lead_s("m") == 30.0
    with pytest.raises(ConfigError, match=r"no cold start of application 'n', only of \['m', 'other'\]"):
        usual_start_s(read_starts(logs), "n")


def test_file_without_cold_starts_is_an_error_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text("INFO nothing\n")
    for path in (tmp_path / "a.log", tmp_path / "b.log"):
        with pytest.raises(ConfigError, match=path.name):
            read_starts(path)
