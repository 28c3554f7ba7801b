"""Outcomes of served traffic: traces of the router, joined with the scores that clients gave.

`models` makes a record of each query that one model answered whole, of each plan as a whole (its model is
the virtual model's name) and of each of its steps. `routers` makes one record for each query, whose model is
the router: the virtual model's name, or `NAME@CANDIDATE` where a candidate on trial answered. Answers of
shadows are left out, as nobody could rate them.

A gate answers under its own name. The propensity is the probability with which the router made its choice:
the share of a policy that draws at random, that of an exploration (`explore`), or of the arm of a trial, and
1 where nothing was drawn. It is unknown where another model stood in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

from r2_serve.errors import BookError, ConfigError
from r2_serve.feedback import Score, counting, read_scores, scores_beside
from r2_serve.lab.outcomes.book import Outcome
from r2_serve.traces import read_traces
from r2_serve.types import SubtaskResult, Trace, Usage, substitute, text_hash

View = Literal["models", "routers"]
RIGHT_FROM = 0.5
"""The lowest score that counts as right."""
Scores = Mapping[tuple[str, int | None], Score]
"""The score that counts for each task and step."""


def served_queries(traces: Path, feedback: Path | None = None) -> tuple[list[Trace], Scores]:
    """The answered queries of a trace directory or file, and the scores of its database.

    Raises: BookError if there are none, or the named database cannot be read.
    """
    try:
        found = [trace for trace in read_traces(traces) if trace.error is None and not _is_shadow(trace)]
        file = feedback or scores_beside(traces)
        scores = read_scores(file) if file is not None else ()
    except (ConfigError, ValueError, OSError) as e:
        raise BookError(str(e)) from e
    if not found:
        raise BookError(f"{traces} holds no trace of an answered query: set server.trace_dir")
    return found, counting(scores)


def _is_shadow(trace: Trace) -> bool:
    return trace.rollout is not None and trace.rollout.arm == "shadow"


def outcomes_of(traces: Iterable[Trace], scores: Scores, view: View = "models") -> Iterator[Outcome]:
    """The records of answered queries."""
    for trace in traces:
        whole = _of_a_model if view == "models" and _is_one_call(trace) else _of_a_router
        yield _scored(whole(trace), scores.get((trace.task, None)))
        if view == "models" and not _is_one_call(trace):
            for result in trace.results:
                yield _scored(_of_a_step(trace, result), scores.get((trace.task, result.id)))


def _is_one_call(trace: Trace) -> bool:
    """Whether one model read the whole query."""
    is_whole = trace.decision is not None and trace.decision.action == "whole"
    return trace.policy == "pass_through" or (is_whole and len(trace.results) == 1)


def _of_a_model(trace: Trace) -> Outcome:
    if not trace.results:  # a pool model that the client named
        return _record(trace, trace.model, trace.calls[-1].usage if trace.calls else Usage(), {})
    (result,) = trace.results
    more = {"cost_usd": result.cost_usd, "seconds": result.end_s - result.start_s}
    more |= {"confidence": result.confidence, "propensity": _propensity(trace, result)}
    return _record(trace, _answered_by(result), result.usage, more)


def _answered_by(result: SubtaskResult) -> str:
    """The model, or the gate: the answers that a gate keeps say little of the models that gave them."""
    return result.model if result.gate is None else result.gate.name


def _of_a_router(trace: Trace) -> Outcome:
    rollout = trace.rollout
    name = f"{trace.model}@{rollout.candidate}" if rollout and rollout.arm == "canary" else trace.model
    usage = sum((call.usage for call in trace.calls), Usage())
    return _record(trace, name, usage, {"propensity": rollout.share if rollout else 1.0})


def _of_a_step(trace: Trace, result: SubtaskResult) -> Outcome:
    prompt, answers = "", {each.id: each.answer for each in trace.results}
    if trace.plan is not None:
        step = trace.plan.subtasks[result.id - 1]
        prompt = substitute(step.text, {**dict.fromkeys(step.depends_on, ""), **answers})
    more = {
        "step": str(result.id),
        "prompt": prompt,
        "prompt_hash": text_hash(prompt) if prompt else "",
        "reply": result.answer,
        "cost_usd": result.cost_usd,
        "seconds": result.end_s - result.start_s,
        "confidence": result.confidence,
        "propensity": _propensity(trace, result),
    }
    return _record(trace, _answered_by(result), result.usage, more)


def _record(trace: Trace, model: str, usage: Usage, more: Mapping[str, object]) -> Outcome:
    fields = {
        "task": trace.task,
        "model": model,
        "prompt": trace.query,
        "prompt_hash": trace.query_hash or text_hash(trace.query),
        "reply": trace.answer or "",
        "tokens_in": usage.prompt_tokens,
        "tokens_out": usage.completion_tokens,
        "tokens_cached": usage.cached_read_tokens,
        "seconds": trace.duration_s,
        "cost_usd": trace.cost_usd,
        "propensity": 1.0,
        **more,
    }
    return Outcome.model_validate(fields)


def _propensity(trace: Trace, result: SubtaskResult) -> float | None:
    """The probability that the policy chose this model; None if it chose another one, or is not known."""
    answered = _answered_by(result)
    chosen = trace.allocation.models[result.id - 1] if trace.allocation else answered
    if chosen != answered:
        return None
    if trace.propensities:
        return trace.propensities[result.id - 1]
    if trace.session is not None and trace.session.state != "new":
        return None
    return trace.shares.get(chosen) if trace.shares else 1.0


def _scored(record: Outcome, score: Score | None) -> Outcome:
    if score is None:
        return record
    verdict = {"score": score.score, "score_source": score.source, "right": score.score >= RIGHT_FROM}
    return record.model_copy(update=verdict)
