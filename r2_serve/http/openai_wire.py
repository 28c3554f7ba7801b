"""The requests of OpenAI's chat dialect: JSON bytes in, a checked `Query` out.

A model takes what its provider or its engine takes: `ChatRequest` reads what R2 needs and keeps the rest.
`router.checks` refuses by name what the model that is asked lacks, or what no model of a virtual model's pool
can take; nothing is accepted and ignored. In a plan, parameters belong to the last step, whose reply is the
client's. All that R2 adds is in the field `r2`. `r2_serve.http.refusals` words the refusals.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import Annotated, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    FailFast,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    Tag,
    ValidationError,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError
from pydantic_core.core_schema import no_info_after_validator_function
from typing_extensions import TypeAliasType

from r2_serve.errors import InvalidRequest
from r2_serve.http.refusals import refusal
from r2_serve.router.checks import check_routing_fields
from r2_serve.types import GateSpec, Json, Message, Plan, Priority, Query, Role, Sampling
from r2_serve.types.gates import MOST_ASKED, Sameness

MAX_SUBTASKS = 256
"""The largest plan that any configuration allows."""


class Wire(BaseModel):
    """Base of the request's parts. It takes no "1" for 1, and refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


_BY_SHAPE = Discriminator(lambda value: "<list>" if isinstance(value, list) else "<text>")
"""Tells a list from a string; `refusals` leaves these tags out of the names it gives."""


class _Only:
    """Accepts nothing but `allowed`. Unlike a Literal it tells True from 1."""

    def __init__(self, *allowed: object) -> None:
        self._allowed = allowed

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {**handler(schema), "enum": list(self._allowed)}

    def _check(self, value: object) -> object:
        if value not in self._allowed:
            values = " or ".join(map(json.dumps, self._allowed))
            raise PydanticCustomError("unsupported", "{values}, the only value supported", {"values": values})
        return value


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


WholeNumber = Annotated[int, BeforeValidator(_whole)]
"""An integer as JSON Schema defines it, so 3.0 is one."""


class TextPart(Wire):
    """A part of a message."""

    type: Literal["text"]
    text: str


def _is_part(part: Json) -> Json:
    if not isinstance(part.get("type"), str):
        raise PydanticCustomError("part", 'a part with a type, such as {"type": "text", "text": "..."}')
    if part["type"] == "text":
        TextPart.model_validate({key: part[key] for key in part.keys() & {"type", "text"}})
    return part


_Part = Annotated[Json, AfterValidator(_is_part)]
_AnyParts = TypeAliasType("_AnyParts", Annotated[tuple[_Part, ...], FailFast(), Field(min_length=1)])
_AnyContent = Annotated[Annotated[str, Tag("<text>")] | Annotated[_AnyParts, Tag("<list>")], _BY_SHAPE]


class WireMessage(Wire):
    """A message of the conversation; keys and parts that R2 does not know are kept as they came."""

    model_config = ConfigDict(extra="allow")
    role: Role
    content: _AnyContent | None = None

    def to_message(self) -> Message:
        return Message(role=self.role, content=self.content, more=self.model_extra or {})


def _usable_schema(schema: dict[str, object]) -> dict[str, object]:
    """Refuses numbers that are not finite, and a `$ref` that an engine would have to fetch."""
    try:
        json.dumps(schema, allow_nan=False)
    except ValueError:
        raise PydanticCustomError("schema", "finite numbers only") from None
    if any(not str(target).startswith("#") for target in _references(schema)):
        raise PydanticCustomError("schema", 'every "$ref" to point into the schema itself ("#/...")')
    return schema


def _references(node: object) -> Iterator[object]:
    if isinstance(node, dict):
        yield from (value for key, value in node.items() if key in ("$ref", "$dynamicRef"))
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from _references(child)


class JsonSchema(Wire):
    """`response_format.json_schema`."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    schema_: Annotated[dict[str, object], AfterValidator(_usable_schema)] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Wire):
    """`response_format`."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    def to_format(self) -> dict[str, object] | None:
        """The format as it came; None if it asks for plain text."""
        return None if self.type == "text" else self.model_dump(by_alias=True, exclude_none=True)


class StreamOptions(Wire):
    """`stream_options`."""

    include_usage: bool | None = None
    include_obfuscation: Annotated[bool, _Only(False)] | None = None


class WireSubtask(Wire):
    """A step of `r2.plan`."""

    id: WholeNumber = Field(ge=1)
    text: str = Field(min_length=1)
    depends_on: Annotated[tuple[WholeNumber, ...], FailFast(), Field(max_length=MAX_SUBTASKS)] = ()
    needs_query: bool = True
    """Whether the step reads your messages on a virtual model with `context: needed`."""


class WirePlan(Wire):
    """`r2.plan`, before `Plan` checks how its steps depend on each other."""

    subtasks: Annotated[tuple[WireSubtask, ...], FailFast(), Field(min_length=1, max_length=MAX_SUBTASKS)]
    answer: str | None = None

    def to_plan(self) -> Plan:
        """Raises: InvalidRequest."""
        try:
            return Plan.model_validate(self.model_dump())
        except ValidationError as e:
            fault = e.errors(include_url=False)[0]
            raise refusal({**fault, "loc": ("r2", "plan", *fault["loc"])}) from None


_EvidenceKind = Literal["agreement", "confidence", "checker"]


class WireEvidence(Wire):
    """A kind of evidence of `r2.gate`. Code of the server (`check`) is for the operator's gates alone."""

    kind: _EvidenceKind
    by: Sameness | None = None
    votes: WholeNumber | None = None
    at_least: float | None = Field(default=None, allow_inf_nan=False)
    model: str | None = None
    max_tokens: WholeNumber | None = None


class WireGate(Wire):
    """`r2.gate` as an object: your own gate, before `GateSpec` checks it."""

    ask: Annotated[tuple[str, ...], FailFast(), Field(min_length=2, max_length=MOST_ASKED)]
    """Models in the order in which they are asked, until the evidence accepts an answer."""
    accept: Annotated[tuple[WireEvidence, ...], FailFast(), Field(min_length=1, max_length=MOST_ASKED)]
    """Evidence of which one kind is enough, such as {"kind": "agreement", "by": "math"}."""

    def to_gate(self) -> GateSpec:
        """Raises: InvalidRequest."""
        try:
            return GateSpec.model_validate(self.model_dump(exclude_none=True))
        except ValidationError as e:
            fault = e.errors(include_url=False)[0]
            place = [part for part in fault["loc"] if part not in get_args(_EvidenceKind)]
            raise refusal({**fault, "loc": ("r2", "gate", *place)}) from None


_SubtaskId = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,8}$")]
_ModelName = Annotated[str, Field(min_length=1, max_length=200)]
_Gate = Annotated[
    Annotated[_ModelName, Tag("<text>")] | Annotated[WireGate, Tag("<object>")],
    Discriminator(lambda value: "<object>" if isinstance(value, dict | WireGate) else "<text>"),
]


class Extras(Wire):
    """`r2`: what OpenAI's API has no word for. A pool model takes the limits and `trace` only."""

    max_cost_usd: Decimal | None = Field(default=None, gt=0, le=1_000_000, decimal_places=20)
    """The most this request may cost in USD; the server's own limit holds too."""
    deadline_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """The longest this request may take in seconds, its wait in the queue included."""
    max_subtasks: WholeNumber | None = Field(default=None, ge=1)
    policy: str | None = Field(default=None, min_length=1, max_length=1_000)
    """`learned`, `all:MODEL` or `random`; `one:MODEL` and `one:auto` send the query whole to one model."""
    plan: WirePlan | None = None
    """Your own plan: nothing is decomposed."""
    models: dict[_SubtaskId, _ModelName] | None = None
    """Models and gates pinned to subtasks of your own plan, by subtask id."""
    gate: _Gate | None = None
    """A gate that answers the query whole, or each step of your own plan: its name, or your own gate."""
    trace: bool | None = None
    """Return the whole trace in the reply's `r2.trace`."""
    confidence: bool | None = None
    """Return `r2.confidence`: the 0.4-quantile of the answer's token probabilities, if there are any."""
    events: bool | None = None
    """Send what happens to the query too, as chunks without choices (`r2.event`); for streams."""
    plan_only: bool | None = None
    """Decompose and stop: the reply's text is the plan as JSON, which can be sent back as `r2.plan`."""
    priority: Priority = "user"
    """Who waits: `user`, `batch` or `training`. A busy model on vLLM answers users first."""


_StopText = Annotated[str, Field(min_length=1)]
_StopTexts = TypeAliasType("_StopTexts", Annotated[tuple[_StopText, ...], FailFast(), Field(max_length=4)])
_Stop = Annotated[Annotated[_StopText, Tag("<text>")] | Annotated[_StopTexts, Tag("<list>")], _BY_SHAPE]


class ChatRequest(Wire):
    """A body of POST /v1/chat/completions. Parameters that R2 does not know are for the model that
    answers."""

    model_config = ConfigDict(extra="allow")

    model: str = Field(min_length=1)
    messages: Annotated[tuple[WireMessage, ...], FailFast(), Field(min_length=1)]
    max_tokens: WholeNumber | None = Field(default=None, ge=1, le=10_000_000)
    max_completion_tokens: WholeNumber | None = Field(default=None, ge=1, le=10_000_000)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    stop: _Stop | None = None
    seed: WholeNumber | None = Field(default=None, ge=-(2**63), lt=2**63)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    response_format: ResponseFormat | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    r2: Extras = Extras()

    @property
    def wants_usage_chunk(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def to_query(self, request_id: str, *, is_virtual: bool) -> Query:
        """Raises: InvalidRequest if parameters contradict each other or ask a pool model for routing."""
        self._check_combinations()
        r2 = self.r2
        query = Query(
            request_id=request_id,
            model=self.model,
            messages=tuple(message.to_message() for message in self.messages),
            sampling=self._sampling(),
            policy=r2.policy,
            plan=r2.plan.to_plan() if r2.plan else None,
            gate=r2.gate.to_gate() if isinstance(r2.gate, WireGate) else r2.gate,
            pinned={int(subtask): model for subtask, model in (r2.models or {}).items()},
            max_cost_usd=r2.max_cost_usd,
            max_subtasks=r2.max_subtasks,
            deadline_s=r2.deadline_s,
            is_plan_only=bool(r2.plan_only),
            priority=r2.priority,
        )
        check_routing_fields(query, is_virtual=is_virtual)
        return query

    def _check_combinations(self) -> None:
        if self.stream_options is not None and not self.stream:
            raise _contradiction("stream_options", "stream_options is allowed with stream: true only")
        limits = (self.max_tokens, self.max_completion_tokens)
        if len(set(limits) - {None}) > 1:
            text = "max_tokens is {} and max_completion_tokens {}: send one of the two".format(*limits)
            raise _contradiction("max_completion_tokens", text)
        if self.r2.events and not self.stream:
            raise _contradiction("r2.events", "r2.events is allowed with stream: true only")
        if self.r2.confidence and self.stream:
            text = "r2.confidence is for plain replies: leave it or stream out"
            raise _contradiction("r2.confidence", text)
        wanted = self.response_format
        if wanted is not None and (wanted.type == "json_schema") != (wanted.json_schema is not None):
            text = 'json_schema is needed with type "json_schema" and refused with any other; got type '
            raise _contradiction("response_format.json_schema", f'{text}"{wanted.type}"')

    def _sampling(self) -> Sampling:
        return Sampling(
            max_tokens=self.max_completion_tokens or self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            stop=(self.stop,) if isinstance(self.stop, str) else self.stop or (),
            seed=self.seed,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            response_format=self.response_format.to_format() if self.response_format else None,
            logprobs=bool(self.r2.confidence),
            forwarded={name: value for name, value in (self.model_extra or {}).items() if value is not None},
        )


def _contradiction(param: str, message: str) -> InvalidRequest:
    return InvalidRequest(message, param, "invalid_value")


def parse_chat(body: bytes) -> ChatRequest:
    """Raises: InvalidRequest naming the first field at fault."""
    try:
        return ChatRequest.model_validate_json(body)
    except ValidationError as e:
        fault = e.errors(include_url=False)[0]
        raise refusal(fault, _known_keys(fault["loc"])) from None


def _known_keys(location: tuple[int | str, ...]) -> Iterable[str]:
    """The keys allowed in the object that holds `location`, where unknown ones are refused."""
    known: dict[str, type[Wire]] = {
        "r2": Extras,
        "stream_options": StreamOptions,
        "response_format": ResponseFormat,
    }
    held = known.get(str(location[0])) if len(location) == 2 else None
    return held.model_fields if held is not None else ()
