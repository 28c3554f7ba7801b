"""What is refused of a query before any call is made for it, and of a prompt before it is built."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches

from r2_serve.calls.estimates import format_chars
from r2_serve.config import LimitsConfig, ModelConfig
from r2_serve.errors import CodecError, InvalidRequest
from r2_serve.router.decomposer import check_plan
from r2_serve.types import Plan, Query, asks_of, needs_of
from r2_serve.types.abilities import Ability, states_the_default

MAX_NAMES = 10
"""How many model names an error lists."""
_OF_TEXT_ALONE = frozenset({"prompt", "echo", "suffix", "best_of"})
"""Parameters of text completions that no conversation has; `prompt` stands for several or for tokens."""
_SAMPLING_NAMES = ("max_tokens", "temperature", "top_p", "stop", "seed", "presence_penalty", "tools")
"""Parameters that a misspelt one may have meant."""
_ENGINE_OF = {"messages_api": "anthropic", "responses_api": "openai-responses"}
"""The kind of engine that alone takes what has no name of its own among the abilities."""


def check_routing_fields(query: Query, *, is_virtual: bool) -> None:
    """Check that the fields about routing fit each other and the kind of model that is asked.

    Raises: InvalidRequest.
    """
    asked = {
        "policy": query.policy,
        "max_subtasks": query.max_subtasks,
        "plan": query.plan,
        "models": query.pinned,
        "gate": query.gate,
        "plan_only": query.is_plan_only,
    }
    named = [name for name, value in asked.items() if value]
    if named and not is_virtual:
        raise InvalidRequest(
            f"r2.{named[0]} is about routing, but {query.model!r} is a pool model, which is asked directly; "
            "leave it out, or ask for a virtual model (GET /v1/models lists them)",
            f"r2.{named[0]}",
            "invalid_value",
        )
    if query.gate is not None and query.policy is not None:
        raise InvalidRequest(
            "r2.gate and r2.policy both say which models are asked: send one of the two",
            "r2.gate",
            "invalid_value",
        )
    if query.plan is not None and query.is_plan_only:
        raise InvalidRequest(
            "plan_only asks for a plan, but r2.plan brings one: send one of the two",
            "r2.plan_only",
            "invalid_value",
        )
    if query.pinned and query.plan is None:
        raise InvalidRequest(
            "models can be pinned to the subtasks of your own plan only: send r2.plan too",
            "r2.models",
            "invalid_value",
        )
    ids = [subtask.id for subtask in query.plan.subtasks] if query.plan else []
    for subtask_id in query.pinned:
        if subtask_id not in ids:
            raise InvalidRequest(
                f"your plan has no subtask {subtask_id}; its ids are 1 to {len(ids)}",
                f"r2.models.{subtask_id}",
                "invalid_value",
            )


def as_conversation(query: Query) -> Query:
    """`query` for a virtual model, which answers the prompt of a text completion as the message that it is.

    Raises: InvalidRequest for embeddings, and for what only a text completion can have.
    """
    sampling, asked = query.sampling, query.sampling.forwarded
    if sampling.api == "embeddings":
        hint = "GET /v1/models lists those with the capability embeddings"
        message = f"{query.model!r} routes conversations: ask a model for embeddings by its own name ({hint})"
        raise InvalidRequest(message, "model", "invalid_value")
    if sampling.api == "completions":
        counted = ["logprobs"] if type(asked.get("logprobs")) is int else []
        for name in (*counted, *_OF_TEXT_ALONE.intersection(asked)):
            if not states_the_default(name, asked[name]):
                message = f"{name}: the virtual model {query.model!r} answers one prompt as a conversation"
                raise InvalidRequest(f"{message}; leave {name} out", name, "unsupported_parameter")
        query = query.model_copy(update={"sampling": sampling.model_copy(update={"api": "chat"})})
    return query


def check_abilities(query: Query, model: ModelConfig, pool: Iterable[ModelConfig]) -> None:
    """Check that `model`, which is asked by its name, can do what the query needs.

    Raises: InvalidRequest naming the parameter, the model, and models of `pool` that can.
    """
    needs = tuple(asks_of(query.messages, query.sampling))
    if (need := model.lacking(needs)) is None:
        return
    able = [other.name for other in pool if other.lacking(needs) is None]
    hint = f"ask one of {able[:MAX_NAMES]}" if able else "leave it out"
    what = f"does not read {need.param}" if need.ability is None else f"is not {_capable(need.ability)}"
    if need.param == "model" and not able:
        hint = "GET /v1/models shows what each model is capable of"
    elif need.param == "prompt":
        what, hint = "takes one prompt, as a text", "send one request for each"
    elif need.ability is None:
        near = get_close_matches(need.param, _SAMPLING_NAMES, n=1)
        hint = f"did you mean {near[0]}?" if near and near[0] != need.param else hint
    message = f"{need.param}: model {query.model!r} {what}; {hint}"
    raise InvalidRequest(message, need.param, "unsupported_parameter")


def check_pool_abilities(query: Query, models: Sequence[ModelConfig]) -> None:
    """Check that one of `models`, the pool of the virtual model, can do all that the query needs.

    Raises: InvalidRequest naming the first parameter that none can take beside the others.
    """
    needs = tuple(asks_of(query.messages, query.sampling))
    lacking = [model.lacking(needs) for model in models]
    if None in lacking:
        return
    need = max(filter(None, lacking), key=needs.index)
    what = f"reads {need.param}" if need.ability is None else f"is {_capable(need.ability)}"
    beside = (
        ", beside the rest of the request" if any(model.lacking([need]) is None for model in models) else ""
    )
    near = get_close_matches(need.param, _SAMPLING_NAMES, n=1) if need.ability is None else []
    hint = f"did you mean {near[0]}?" if near else "leave it out, or ask for another model"
    message = f"{need.param}: no model of {query.model!r} {what}{beside}; {hint}"
    raise InvalidRequest(message, need.param, "unsupported_parameter")


def _capable(ability: Ability) -> str:
    """What a model that has the ability is, in words for a message."""
    if (engine := _ENGINE_OF.get(ability)) is None:
        return f"capable of {ability}"
    return f"run by an engine of kind {engine}, which alone takes this"


def check_template(plan: Plan, query: Query) -> None:
    """Check that a model makes the answer of `plan`, where the query has parameters that only a model can
    honour.

    Raises: InvalidRequest.
    """
    needs = [need for need in needs_of((), query.sampling) if need.param != "model"]
    if plan.answer is not None and needs:
        message = "a template makes the answer of this plan, and only a model can honour"
        raise InvalidRequest(f"{message} {needs[0].param}", needs[0].param)


def check_pinned_models(pinned: Mapping[int, str], pool: Sequence[str]) -> None:
    """Raises: InvalidRequest if a subtask is pinned to a model outside `pool`."""
    for subtask_id, model in pinned.items():
        if model not in pool:
            raise InvalidRequest(f"{model!r} is not in the pool {list(pool)}", f"r2.models.{subtask_id}")


def check_sizes(query: Query, text: str, limits: LimitsConfig, models: Sequence[ModelConfig]) -> None:
    """Check the messages (`text` holds all of them), the response format and `max_tokens`.

    `models` are those that may get the messages: the longest context of them bounds the characters.

    Raises: InvalidRequest.
    """
    num_chars, num_more = len(text), format_chars(query.sampling.response_format)
    max_tokens = query.sampling.max_tokens or 0
    max_chars = limits.max_query_chars or most_chars(models)
    if len(query.messages) > limits.max_messages:
        message, param = f"got {len(query.messages)} messages; the limit is {limits.max_messages}", "messages"
    elif max_chars is not None and num_chars > max_chars:
        message = f"the messages have {num_chars} characters; the limit is {max_chars}"
        param = "messages"
    elif max_chars is not None and num_chars + num_more > max_chars:
        message = f"response_format has {num_more} characters and the messages have {num_chars}; "
        message += f"the limit of both together is {max_chars}"
        param = "response_format"
    elif max_tokens > limits.max_tokens:
        message, param = f"got max_tokens {max_tokens}; the limit is {limits.max_tokens}", "max_tokens"
    else:
        return
    raise InvalidRequest(message, param)


def most_chars(models: Sequence[ModelConfig]) -> int | None:
    """Most characters that one of `models` may be sent; None if a context is not known."""
    known = [model.query_chars for model in models]
    return None if None in known else max((chars for chars in known if chars is not None), default=None)


def check_own_plan(plan: Plan, limits: LimitsConfig) -> None:
    """Raises: InvalidRequest if the client's plan breaks a limit."""
    try:
        check_plan(plan, limits)
    except CodecError as e:
        raise InvalidRequest(e.message, "r2.plan") from e
