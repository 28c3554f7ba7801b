"""A fitted gate decides in serving as it does in a replay, and is refused where it cannot."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from r2_serve.config import GateConfig, ModelConfig, RecordedEngineConfig, RouterConfig, ScriptedEngineConfig
from r2_serve.engines import make_engine
from r2_serve.errors import ConfigError, EngineUnavailable
from r2_serve.gates.fitted import FittedPolicy, run_gate
from r2_serve.gates.fitted import Gate as FittedGate
from r2_serve.gates.stored import PolicyFile, write_policy
from r2_serve.lab.outcomes.book import Outcome, write_book
from r2_serve.lab.outcomes.goals import fit_policy
from r2_serve.lab.outcomes.grading import graded
from r2_serve.lab.outcomes.importing import Source, priced, read_prices, recorded
from r2_serve.lab.outcomes.simple import counting_gate
from r2_serve.lab.outcomes.table import table_of
from r2_serve.router.evidence import FittedJudge
from r2_serve.router.gates import read_gate_file
from r2_serve.router.router import Router, in_process
from r2_serve.types import GraderName, Message, Query, Sampling, Trace
from tests.lab.outcomes import books
from tests.support.in_process import Router as ScriptedRouter
from tests.support.in_process import query, routing
from tests.support.virtual_time import run

PRICES = {
    name: (Decimal(str(low)), Decimal(str(high)))
    for name, (low, high) in books.PRICES.items()
    if name != "small"
}
Prices = dict[str, tuple[Decimal, Decimal]]


def records_of(path: Path, grader: GraderName, prices: Prices) -> list[Outcome]:
    return graded([priced(record, prices) for record in recorded(Source(path))], grader)


def fitted_on(records: Sequence[Outcome], reference: str, grader: GraderName) -> PolicyFile:
    table = table_of(records)
    policy = fit_policy(table, reference)
    even = (1 / len(policy.gates),) * len(policy.gates)
    policy = policy.model_copy(update={"shares": even})  # so that tasks fall to each gate of a mix
    return PolicyFile(made="now", book="b", tasks=len(table), grader=grader, policy=policy)


def serving(book: Path, gate: Path, models: Sequence[str], prices: Prices, traces: list[Trace]) -> Router:
    """A server of recorded models, in which the fitted gate answers every query."""
    cards = [
        ModelConfig(
            name=name,
            engine=RecordedEngineConfig(kind="recorded", book=str(book), model=name),
            usd_per_mtok_in=prices[name][0],
            usd_per_mtok_out=prices[name][1],
        )
        for name in models
    ]
    scripted = ScriptedEngineConfig(kind="scripted")
    others = [
        ModelConfig(name=name, engine=scripted, usd_per_mtok_in=Decimal(0), usd_per_mtok_out=Decimal(0))
        for name in ("decomposer", "allocator")
    ]
    routed = routing(pool=tuple(models), gates={"fitted": GateConfig(file=str(gate))}, policy="one:fitted")
    config = RouterConfig(models=(*cards, *others))
    return in_process(config, routed, lambda card: make_engine(card.engine), [traces.append])


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Outcome]:
    rows = books.lines(80, {name: books.SKILL[name] for name in PRICES})
    return records_of(books.write(tmp_path_factory.mktemp("book") / "rows.jsonl", rows), "number", PRICES)


@pytest.fixture(scope="module")
def fitted(records: list[Outcome]) -> PolicyFile:
    return fitted_on(records, "large", "number")


def check_served_as_replayed(
    tmp_path: Path, records: Sequence[Outcome], file: PolicyFile, prices: Prices
) -> None:
    """Ask every task of the records, and compare each decision with the replay's."""
    book, traces = tmp_path / "book.jsonl", list[Trace]()
    write_book(book, records)
    write_policy(tmp_path / "gate.json", file)
    table = table_of(records)
    router = serving(book, tmp_path / "gate.json", table.models, prices, traces)
    replayed = [run_gate(part, table) for part in file.policy.gates]
    right = {(record.task, record.model): bool(record.right) for record in records}
    drawn, num_asked = set(), set()
    for row, (task, prompt) in enumerate(zip(table.tasks, table.prompts, strict=True)):
        asked = Query(request_id=task, model="r2", messages=(Message(role="user", content=prompt),))
        asyncio.run(router.answer(asked))
        note = traces[-1].results[0].gate
        assert note is not None
        part = file.policy.gates.index(gate_of(router, asked))
        answers = replayed[part]
        drawn.add(part)
        num_asked.add(len(note.asked))
        assert len(note.asked) == answers.asked[row]
        assert float(traces[-1].cost_usd) == pytest.approx(float(answers.cost_usd[row]))
        assert right[task, note.kept] == bool(answers.right[row])
        assert answers.chance is not None and note.chance == pytest.approx(float(answers.chance[row]))
    assert drawn == set(range(len(replayed))), "each gate of the mix has answered tasks"
    assert len(num_asked) > 1, "it went on for some tasks and stopped for others"


def gate_of(router: Router, asked: Query) -> FittedGate:
    """The gate of a fitted mix that answers a query: the draw depends on the request id alone."""
    pipeline = router._pipeline
    assert pipeline is not None
    gate = pipeline.shelf.of(asked, pipeline.routing, pipeline.pool, ()).get("fitted")
    assert gate is not None and isinstance(gate.judge, FittedJudge)
    return gate.judge.gate


def test_served_decisions_are_the_replayed_ones(
    tmp_path: Path, records: list[Outcome], fitted: PolicyFile
) -> None:
    check_served_as_replayed(tmp_path, records, fitted, PRICES)


def test_simple_gates_of_a_fit_are_served_as_replayed(tmp_path: Path, records: list[Outcome]) -> None:
    """Asking until two agree, mixed with a model alone: what a fit takes on few tasks."""
    table = table_of(records)
    gates = tuple(counting_gate(table, order) for order in ((0, 1, 2), (1,)))
    policy = FittedPolicy(
        reference="large", gates=gates, shares=(0.5, 0.5), expected_difference=0.0, expected_cost_ratio=0.5
    )
    file = PolicyFile(made="now", book="b", tasks=len(table), grader="number", policy=policy)
    check_served_as_replayed(tmp_path, records, file, PRICES)


@pytest.mark.skipif("R2_OUTCOMES" not in os.environ, reason="R2_OUTCOMES names no directory of real replies")
@pytest.mark.parametrize(
    ("name", "grader", "reference"),
    [("gsm", "number", "gpt-4o"), ("math-l5", "math", "qwen2.5-72b")],
)
def test_decisions_on_replies_of_real_models_are_the_replayed_ones(
    tmp_path: Path, name: str, grader: GraderName, reference: str
) -> None:
    """A slice of 150 tasks of the recorded replies in the directory R2_OUTCOMES, without the model that no
    gate can do without."""
    place = Path(os.environ["R2_OUTCOMES"])
    prices = read_prices(place / "prices.yaml")
    found = recorded(Source(place / f"{name}.jsonl.gz"))
    whole = [priced(record, prices) for record in found if record.model != "o1-mini"]
    tasks = set(list(dict.fromkeys(record.task for record in whole))[:150])
    records = graded([record for record in whole if record.task in tasks], grader)
    check_served_as_replayed(tmp_path, records, fitted_on(records, reference, grader), prices)


def test_file_is_refused_where_it_cannot_be_served(tmp_path: Path, fitted: PolicyFile) -> None:
    path = tmp_path / "gate.json"

    def refusal(pool: Sequence[str] = tuple(PRICES)) -> str:
        with pytest.raises(ConfigError) as refused:
            read_gate_file("g", str(path), pool)
        return refused.value.message

    assert "gate 'g'" in refusal() and "gate.json" in refusal()
    path.write_text("{}")
    assert "is no fitted policy" in refusal()
    write_policy(path, fitted.model_copy(update={"grader": None}))
    assert "does not say how answers are compared" in refusal()
    write_policy(path, fitted)
    asked = fitted.policy.gates[0].order[0]
    assert f"asks ['{asked}'], which the pool" in refusal([name for name in PRICES if name != asked])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda gate: gate["weights"].pop(), r"got \d+ weights, expected \d+: fit it anew"),
        (lambda gate: gate["rules"].append([0.0]), r"got \d+ rules, expected \d+"),
        (lambda gate: gate["order"].append("gpt-9"), r"models of the order"),
    ],
)
def test_file_whose_numbers_do_not_fit_is_refused(
    tmp_path: Path, fitted: PolicyFile, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    path, stored = tmp_path / "gate.json", json.loads(fitted.model_dump_json())
    change(stored["policy"]["gates"][0])
    path.write_text(json.dumps(stored))
    with pytest.raises(ConfigError, match=message):
        read_gate_file("g", str(path), tuple(PRICES))


def test_fit_without_a_gate_serves_its_reference(tmp_path: Path, fitted: PolicyFile) -> None:
    path, replies = tmp_path / "gate.json", {name: ["4"] for name in PRICES}
    alone = FittedPolicy(reference="large", expected_difference=0.0, expected_cost_ratio=1.0)
    write_policy(path, fitted.model_copy(update={"policy": alone}))
    router = with_scripted(path, **replies)
    run(router.pipeline.answer(query("2 + 2?")))
    note = router.trace.results[0].gate
    assert note is not None and [(ask.model, ask.outcome) for ask in note.asked] == [("large", "accepted")]


def test_query_with_tools_goes_to_the_last_model_of_a_fitted_gate(tmp_path: Path, fitted: PolicyFile) -> None:
    path = tmp_path / "gate.json"
    write_policy(path, fitted)
    router = with_scripted(path, **{name: ["4"] for name in PRICES})
    tools = [{"type": "function", "function": {"name": "add"}}]
    run(router.pipeline.answer(query("2 + 2?", sampling=Sampling(forwarded={"tools": tools}))))
    assert [call.model for call in router.trace.calls] == [fitted.policy.gates[0].order[-1]]


def test_model_of_a_fitted_gate_that_fails_is_as_one_that_gave_no_reply(
    tmp_path: Path, fitted: PolicyFile
) -> None:
    longest = max(fitted.policy.gates, key=lambda gate: len(gate.order))
    path, first, gates = tmp_path / "gate.json", longest.order[0], (longest,)
    write_policy(
        path,
        fitted.model_copy(
            update={"policy": fitted.policy.model_copy(update={"gates": gates, "shares": (1.0,)})}
        ),
    )
    replies: dict[str, list[Any]] = {name: ["The answer is 4"] for name in PRICES}
    router = with_scripted(path, **{**replies, first: [EngineUnavailable("down")]})
    run(router.pipeline.answer(query("2 + 2?")))
    note = router.trace.results[0].gate
    assert note is not None and note.asked[0].outcome == "failed"
    assert note.kept != first and note.chance is not None


def with_scripted(path: Path, **engines: Any) -> ScriptedRouter:
    """The models of the synthetic book, which can all call tools, as scripted ones."""
    routed = routing(pool=tuple(PRICES), gates={"fitted": GateConfig(file=str(path))}, policy="one:fitted")
    cards = {name: {"capabilities": {"tools": True}} for name in PRICES}
    return ScriptedRouter(routed=routed, cards=cards, decomposer=["?"], allocator=["?"], **engines)
