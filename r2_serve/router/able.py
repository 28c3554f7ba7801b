"""Which models of a pool can take a step, and which stand in for one that fails. No Ray."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from r2_serve.calls.pool import Pool, PoolMember
from r2_serve.config import ModelConfig, VirtualModelConfig
from r2_serve.errors import InvalidRequest
from r2_serve.prompts.conversation import without_media, without_tool_calls
from r2_serve.router.gates import QueryGates
from r2_serve.router.policies import LEARNED
from r2_serve.types import Allocation, Message, ModelCard, Need, Plan, Query, Sampling, Subtask, asks_of

TURN_ABILITIES = frozenset({"tools", "vision", "audio", "files", "messages_api"})
"""What a query needs that is a turn of a tool loop or comes with media: it goes whole to one model."""


def final_needs(query: Query) -> tuple[Need, ...]:
    """What the last step of the query's plan needs: it has the client's conversation and parameters."""
    return tuple(asks_of(query.messages, query.sampling))


def inner_needs(query: Query) -> tuple[Need, ...]:
    """What every other step needs: it sees the client's media, and calls of tools as text."""
    return tuple(asks_of(without_tool_calls(query.messages), Sampling()))


def readable_by(member: PoolMember, messages: Sequence[Message]) -> tuple[Message, ...]:
    """The conversation as the router's own calls send it to `member`: calls of tools as text, and names of
    media in place of those that it cannot take."""
    told = without_tool_calls(messages)
    is_able = member.config.lacking(tuple(asks_of(told, Sampling()))) is None
    return tuple(told if is_able else without_media(told))


def is_turn(query: Query) -> bool:
    """Whether the query is a turn of a tool loop, or comes with media."""
    return any(need.ability in TURN_ABILITIES for need in final_needs(query))


def able_models(names: Iterable[str], pool: Pool, needs: Sequence[Need]) -> list[str]:
    """Those of `names` that can meet all of `needs`, in the same order."""
    return [name for name in names if pool[name].config.lacking(needs) is None]


def stand_ins(model: str, names: Iterable[str], pool: Pool) -> list[str]:
    """The other models of `names` in the order in which they stand in for `model`."""
    return replacing(pool[model].config, [pool[name].config for name in names])


def stand_ins_when_it_fails(model: str, names: Iterable[str], pool: Pool) -> list[str]:
    """`stand_ins` that prompts meant for `model` may reach (`fallbacks_on_premises`)."""
    failed = pool[model].config
    return [name for name in stand_ins(model, names, pool) if failed.may_fall_back_on(pool[name].config)]


def last_resorts(virtual: VirtualModelConfig, models: Mapping[str, ModelConfig]) -> list[str]:
    """The models that answer a whole query when plans and allocations fail, in the order of asking."""
    default = models[virtual.fallback_model]
    pool = virtual.pool if virtual.fallbacks == "pool" else ()
    others = [*default.fallbacks, *replacing(default, [models[name] for name in pool])]
    allowed = [name for name in dict.fromkeys(others) if default.may_fall_back_on(models[name])]
    return [default.name, *allowed]


def replacing(failed: ModelCard, cards: Iterable[ModelCard]) -> list[str]:
    """Names of the models that take the place of `failed`, in order.

    First come those that cost no less, the cheapest first, and then the cheaper ones, the dearest first.
    """
    ranked = sorted((card for card in cards if card.name != failed.name), key=price)
    dearer = [card.name for card in ranked if price(card) >= price(failed)]
    return dearer + [card.name for card in reversed(ranked) if card.name not in dearer]


def with_able_models(
    query: Query, gates: QueryGates, names: Sequence[str], plan: Plan, allocation: Allocation
) -> Allocation:
    """`allocation` with a stand-in for each model that cannot take its step, and each gate that has no model
    which can.

    Raises: InvalidRequest if the request itself named such a model or gate.
    """
    inner, final, pool = inner_needs(query), final_needs(query), gates.pool

    def able(subtask: Subtask, name: str) -> str:
        needs = final if subtask.id == plan.final_id else inner
        asked = gates.models(name)
        if able_models(asked, pool, needs):
            return name
        model = asked[-1]
        if subtask.id in query.pinned:
            raise lacks(pool[model].config, needs, f"r2.models.{subtask.id}")
        if query.gate is not None:
            raise lacks(pool[model].config, needs, "r2.gate")
        if query.policy is not None and query.policy != LEARNED:
            raise lacks(pool[model].config, needs, "r2.policy")
        return able_models(stand_ins(model, names, pool), pool, needs)[0]

    pairs = zip(plan.subtasks, allocation.models, strict=True)
    return Allocation(models=tuple(able(*pair) for pair in pairs))


def lacks(model: ModelConfig, needs: Sequence[Need], chosen_by: str) -> InvalidRequest:
    """The refusal of a model that the request names in `chosen_by`."""
    need = model.lacking(needs)
    assert need is not None
    missing = need.ability or f"parameter {need.param}"
    message = f"{model.name!r} cannot take {need.param} (it lacks {missing}): choose another model"
    return InvalidRequest(message, chosen_by, "invalid_value")


def price(card: ModelCard) -> tuple[float, float]:
    """Price of a model for comparisons: that of the reply first, which differs most between models."""
    return float(card.usd_per_mtok_out), float(card.usd_per_mtok_in)
