"""Workload files: arrivals with the right statistics, tasks with their plans, published traces, helpful
errors."""

from __future__ import annotations

import itertools
import json
import math
import statistics
import time
from decimal import Decimal
from pathlib import Path

import pytest
import yaml

from r2_serve.config import LimitsConfig
from r2_serve.errors import ConfigError
from r2_serve.grading.rows import BenchmarkError
from r2_serve.lab.examples import example_names, example_path
from r2_serve.lab.workload import EXAMPLES, Request, Workload, load_workload
from r2_serve.lab.workload.arrivals import TraceArrivals
from r2_serve.prompts.instruct import InstructCodec
from r2_serve.router.decomposer import check_plan
from r2_serve.types import ModelCard

SYNTHETIC = {
    "kind": "synthetic",
    "shapes": [{"waves": [{"model": "small", "count": 2, "words": [3, 9]}, {"model": "large", "words": 5}]}],
}
BENCHMARK = "tasks: {kind: benchmark, name: words, dataset: test}"


def workload(arrivals: dict[str, object], duration_s: float | None = 10_000.0, **fields: object) -> Workload:
    tasks = fields.pop("tasks", SYNTHETIC)
    return Workload.model_validate(
        {"name": "w", "duration_s": duration_s, "arrivals": arrivals, "tasks": tasks, **fields}
    )


def times(arrivals: dict[str, object], duration_s: float = 10_000.0, seed: int = 0) -> list[float]:
    return [request.start_s for request in workload(arrivals, duration_s).requests(seed)]


def cv_of(points: list[float]) -> float:
    gaps = [b - a for a, b in itertools.pairwise(points)]
    return statistics.stdev(gaps) / statistics.fmean(gaps)


# -- arrivals --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "cv"), [("poisson", 1.0), ("gamma", 3.0), ("gamma", 0.3)])
def test_rate_and_burstiness_are_those_of_the_file(kind: str, cv: float) -> None:
    arrivals: dict[str, object] = {"kind": kind, "rate_per_s": 2.0} | ({"cv": cv} if kind == "gamma" else {})
    points = times(arrivals)
    error = cv / math.sqrt(20_000)  # of the mean count, as a share: a renewal process
    assert len(points) / 20_000 == pytest.approx(1, abs=4 * error)
    kurtosis_error = cv * math.sqrt((2 + 6 * cv**2) / 4 / 20_000 + cv**2 / 20_000)
    assert cv_of(points) == pytest.approx(cv, abs=4 * kurtosis_error)


def test_constant_arrivals_are_even() -> None:
    assert times({"kind": "constant", "rate_per_s": 2.0}, 3.0) == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]


@pytest.mark.parametrize(
    "arrivals",
    [
        {"kind": "ramp", "rate_per_s": 1, "to_rate_per_s": 9},
        {"kind": "ramp", "rate_per_s": 9, "to_rate_per_s": 0},
        {"kind": "diurnal", "rate_per_s": 5, "period_s": 2000, "peak_to_mean": 1.9},
        {"kind": "on_off", "rate_per_s": 10, "off_rate_per_s": 2, "on_s": 300, "off_s": 500},
        {"kind": "on_off", "rate_per_s": 10, "on_s": 300, "off_s": 500},
    ],
)
def test_arrivals_follow_the_rate_over_the_run(arrivals: dict[str, object]) -> None:
    """Each twentieth of the run has the arrivals of the rate's integral, within four standard deviations."""
    config = workload(arrivals).arrivals
    assert not isinstance(config, TraceArrivals)
    points = times(arrivals)
    for first in range(0, 10_000, 500):
        middles = (first + i + 0.5 for i in range(500))
        expected = sum(config.rate_at(middle, 10_000.0) for middle in middles)  # type: ignore[arg-type]
        found = sum(first <= point < first + 500 for point in points)
        assert abs(found - expected) <= 4 * math.sqrt(expected) + 1


def test_without_randomness_arrivals_are_the_inverse_of_the_integrated_rate() -> None:
    points = times({"kind": "ramp", "rate_per_s": 0, "to_rate_per_s": 2, "cv": 0}, 10.0)
    assert points == pytest.approx([math.sqrt(10 * i) for i in range(10)])  # t^2 / 10 arrivals by t
    day = times({"kind": "diurnal", "rate_per_s": 1, "period_s": 10, "peak_to_mean": 2, "cv": 0}, 20.0)
    assert day[5] == pytest.approx(5.0)  # half of a period's arrivals by its peak
    assert [b - a for a, b in zip(day, day[10:], strict=False)] == pytest.approx([10.0] * 10)


def test_no_requests_arrive_during_the_off_phase() -> None:
    points = times({"kind": "on_off", "rate_per_s": 5, "on_s": 2, "off_s": 8, "cv": 3}, 1000.0)
    assert points and all(point % 10 <= 2 + 1e-9 for point in points)


def test_seed_gives_the_same_stream_again_and_another_seed_another() -> None:
    load = workload({"kind": "gamma", "rate_per_s": 3, "cv": 2}, 100.0, seed=7)
    assert list(load.requests()) == list(load.requests(7)) == list(load.requests())
    assert [r.start_s for r in load.requests(7)] != [r.start_s for r in load.requests(8)]
    assert [r.steps for r in load.requests(7)] != [r.steps for r in load.requests(8)]


def test_other_arrivals_leave_the_tasks_as_they_were() -> None:
    poisson = workload({"kind": "poisson", "rate_per_s": 3}, 50.0).requests()
    even = workload({"kind": "constant", "rate_per_s": 3}, 50.0).requests()
    assert all(a.steps == b.steps for a, b in zip(poisson, even, strict=False))


# -- tasks -----------------------------------------------------------------------------------------------


def first_request(**tasks: object) -> Request:
    return next(
        workload({"kind": "constant", "rate_per_s": 1}, 10.0, tasks={**SYNTHETIC, **tasks}).requests()
    )


def test_synthetic_task_carries_its_plan_and_allocation_in_the_real_codec() -> None:
    request, codec = first_request(), InstructCodec()
    brought = json.loads(request.text[request.text.index("{") :])
    plan = codec.parse_plan(json.dumps(brought["plan"]), request.text)
    check_plan(plan, LimitsConfig())
    assert plan == request.plan
    assert [subtask.depends_on for subtask in plan.subtasks] == [(), (), (1, 2)]
    price = Decimal(1)
    cards = [
        ModelCard(name=name, usd_per_mtok_in=price, usd_per_mtok_out=price) for name in ("small", "large")
    ]
    assert (
        codec.parse_allocation(json.dumps(brought["allocation"]), plan, cards).models
        == request.allocation
        == ("small", "small", "large")
    )
    assert request.reply_tokens is not None
    for words, subtask in zip(request.reply_tokens, plan.subtasks, strict=True):
        assert subtask.text.startswith(f"Write {words} words ")


def test_shapes_are_drawn_by_weight_and_sizes_from_their_ranges() -> None:
    wave = {"model": "small", "count": [1, 3], "words": [10, 20]}
    tasks = {
        "kind": "synthetic",
        "shapes": [{"weight": 3, "waves": [wave]}, {"weight": 1, "waves": [wave, wave]}],
    }
    requests = list(workload({"kind": "constant", "rate_per_s": 1}, 4000.0, tasks=tasks).requests())
    deep = sum(request.plan is not None and request.plan.depth == 2 for request in requests)
    assert deep / 4000 == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / 4000))
    assert {words for request in requests for words in request.reply_tokens or ()} == set(range(10, 21))


def test_padding_adds_words_that_scripted_models_do_not_read() -> None:
    plain, padded = first_request(), first_request(prompt_words=300)
    assert len(padded.text.split()) == padded.prompt_tokens == 300
    assert plain.prompt_tokens == len(plain.text.split()) < 300
    assert padded.text.startswith(plain.text)
    filler = padded.text[len(plain.text) :]
    assert "{" not in filler and "words" not in filler


def test_benchmark_tasks_come_in_random_order_each_once_before_any_repeats() -> None:
    tasks = {"kind": "benchmark", "name": "words", "dataset": "test@20", "model": "r2-words"}
    requests = list(workload({"kind": "constant", "rate_per_s": 1}, 40.0, tasks=tasks).requests())
    ids = [request.task.id for request in requests if request.task is not None]
    assert sorted(ids[:20]) == sorted(ids[20:]) == sorted(set(ids))
    assert ids[:20] != ids[20:]
    assert (
        requests[0].plan is None
        and requests[0].model == "r2-words"
        and requests[0].text == requests[0].task.query
    )  # type: ignore[union-attr]


# -- traces ----------------------------------------------------------------------------------------------


def burstgpt_csv(rows: list[tuple[float, int, int]], *, release: int = 1) -> str:
    """The published form; release 2 has two more columns."""
    if release == 1:
        head = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type"
        lines = [f"{t:g},ChatGPT,{p},{r},{p + r},Conversation log" for t, p, r in rows]
    else:
        head = "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type"
        lines = [f"{t:g},{i},1.5,GPT-4,{p},{r},{p + r},API log" for i, (t, p, r) in enumerate(rows)]
    return "\n".join([head, *lines]) + "\n"


def azure_csv(rows: list[tuple[float, int, int]], *, year: int = 2023) -> str:
    """The published form: seven digits of a second in 2023, six and an offset in 2024."""
    stamps = [f"18:{15 + int(t) // 60:02d}:{int(t) % 60:02d}.{round(t % 1 * 10**6):06d}" for t, _, _ in rows]
    times_of_day = [f"2023-11-16 {s}0" if year == 2023 else f"2024-05-10 {s}+00:00" for s in stamps]
    lines = [f"{stamp},{p},{r}" for stamp, (_, p, r) in zip(times_of_day, rows, strict=True)]
    return "TIMESTAMP,ContextTokens,GeneratedTokens\r\n" + "".join(f"{line}\r\n" for line in lines)


ROWS = [(5.0, 472, 18), (45.25, 1087, 230), (61.5, 417, 0), (118.75, 100, 276)]
"""Rows of a trace; the third request failed."""


def trace_requests(tmp_path: Path, text: str, kind: str, **fields: object) -> list[Request]:
    (tmp_path / "trace.csv").write_text(text, newline="")
    arrivals = {"kind": "trace", "path": "trace.csv", "format": kind, **fields}
    (tmp_path / "w.yaml").write_text(yaml.safe_dump({"name": "w", "arrivals": arrivals, "tasks": SYNTHETIC}))
    return list(load_workload(tmp_path / "w.yaml").requests())


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (burstgpt_csv(ROWS), "burstgpt"),
        (burstgpt_csv(ROWS, release=2), "burstgpt"),
        (azure_csv(ROWS), "azure"),
        (azure_csv(ROWS, year=2024), "azure"),
    ],
)
def test_trace_is_replayed_with_its_times_and_token_counts(tmp_path: Path, text: str, kind: str) -> None:
    requests = trace_requests(tmp_path, text, kind)
    assert [request.start_s for request in requests] == pytest.approx([0.0, 40.25, 113.75], abs=1e-6)
    assert [request.prompt_tokens for request in requests] == [472, 1087, 100]
    assert [len(request.text.split()) for request in requests] == [472, 1087, 100]
    assert [(request.reply_tokens or ())[-1] for request in requests] == [18, 230, 276]


def test_times_without_a_zone_are_the_same_on_every_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hour after two o'clock of that night came twice in Berlin."""
    head = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    rows = "2023-10-29 00:30:00,1,1\n2023-10-29 02:30:00,1,1\n2023-10-29 03:30:00,1,1\n"
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        starts_s = [request.start_s for request in trace_requests(tmp_path, head + rows, "azure")]
    finally:
        monkeypatch.undo()
        time.tzset()
    assert starts_s == [0.0, 7200.0, 10800.0]


def test_trace_can_be_sped_up_cut_and_started_later(tmp_path: Path) -> None:
    requests = trace_requests(tmp_path, burstgpt_csv(ROWS), "burstgpt", speedup=2.0, skip=1)
    assert [request.start_s for request in requests] == [0.0, 36.75]
    assert len(trace_requests(tmp_path, burstgpt_csv(ROWS), "burstgpt", limit=2)) == 2


@pytest.mark.parametrize(
    ("text", "kind", "told"),
    [
        (azure_csv(ROWS), "burstgpt", "looks like `format: azure`"),
        (burstgpt_csv([(5, 1, 1), (4, 1, 1)]), "burstgpt", "trace.csv:3: earlier than the row before it"),
        (azure_csv(ROWS).replace("1087", "many"), "azure", "trace.csv:3: "),
        (burstgpt_csv(ROWS).replace("45.25,", "noon,"), "burstgpt", "trace.csv:3: "),
        (burstgpt_csv(ROWS).replace("45.25,", "nan,"), "burstgpt", "trace.csv:3: 'Timestamp' is 'nan'"),
        (burstgpt_csv([(0, 1, 1), (10**12, 1, 1)]), "burstgpt", "1e+12 s after the first"),
        (burstgpt_csv([(0, 1, 10**12)]), "burstgpt", "trace.csv:2: 1 and 1000000000000 tokens"),
        ("", "azure", "found nothing"),
    ],
)
def test_broken_trace_is_an_error_with_its_line(tmp_path: Path, text: str, kind: str, told: str) -> None:
    with pytest.raises(ConfigError) as e:
        trace_requests(tmp_path, text, kind)
    assert told in e.value.message


def test_long_trace_is_read_only_as_far_as_it_is_used(tmp_path: Path) -> None:
    text = burstgpt_csv([(float(i), 1, 1) for i in range(100)]) + "this,is,not,a,row\n"
    assert len(trace_requests(tmp_path, text, "burstgpt", limit=50)) == 50


# -- files -----------------------------------------------------------------------------------------------


WRONG = """name: w
duration: 3
arrivals: {kind: gamma, rate_per_s: 0, cv: 2}
tasks:
  kind: synthetic
  shapes:
  - waves:
    - {modle: small, words: [9, 3]}
slo: {latency: 3}
"""


def test_every_wrong_key_is_named_with_its_line_and_a_suggestion(tmp_path: Path) -> None:
    (tmp_path / "w.yaml").write_text(WRONG)
    with pytest.raises(ConfigError) as e:
        load_workload(tmp_path / "w.yaml")
    for part in (
        "line 2: error: duration: unknown key; did you mean 'duration_s'?",
        "line 3: error: arrivals.rate_per_s: expected a number greater than 0",
        "line 8: error: tasks.shapes[0].waves[0].modle: unknown key; did you mean 'model'?",
        "[9, 3] is no range",
        "line 9: error: slo.latency: unknown key; did you mean 'latency_s'?",
    ):
        assert part in e.value.message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"name: w\narrivals: {{kind: poisson, rate_per_s: 1}}\n{BENCHMARK}", "duration_s is required"),
        (f"name: w\narrivals: {{kind: poison, rate_per_s: 1}}\n{BENCHMARK}", r"did you mean 'poisson'\?"),
        ("- 1", "must be a mapping"),
    ],
)
def test_invalid_workload_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "w.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_workload(tmp_path / "w.yaml")


def test_unknown_benchmark_is_named() -> None:
    tasks = {"kind": "benchmark", "name": "wrods", "dataset": "test"}
    with pytest.raises(BenchmarkError, match="did you mean 'words'"):
        next(workload({"kind": "constant", "rate_per_s": 1}, tasks=tasks).requests())


@pytest.mark.parametrize("name", example_names(EXAMPLES))
def test_every_shipped_example_loads_and_sends(name: str) -> None:
    load = load_workload(example_path(name, EXAMPLES))
    assert load.name == name
    assert len(list(load.requests())) > 40


def test_shipped_example_sends_the_same_requests_on_every_machine() -> None:
    """Figures in the docs hold for another Python and machine only if these golden values do."""
    requests = list(itertools.islice(load_workload(example_path("bursts", EXAMPLES)).requests(), 3))
    assert [request.start_s for request in requests] == pytest.approx(
        [1.361127, 1.786657, 1.786844], abs=1e-6
    )
    assert [request.reply_tokens for request in requests] == [
        (63, 64, 53, 66, 94),
        (64, 59, 72, 72, 62, 44, 82),
        (57, 54, 50, 76, 116),
    ]
