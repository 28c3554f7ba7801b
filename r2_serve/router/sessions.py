"""Which model a conversation stays on from turn to turn, so that its provider's cache stays warm. No Ray.

A tool loop sends its growing conversation once for each turn, and a provider bills the part that it has in
its cache at a fraction of the price. Another model has no such cache. So a session keeps its model until
another one is cheaper although its cache is cold, or until its model shows that it fails
(`r2_serve.router.failing`).

Sessions live in the memory of one process. A turn that reaches another router replica begins a session there:
its model is chosen as at the beginning, which costs a cold cache at most."""

from __future__ import annotations

import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Literal

from r2_serve.types import ModelCard, Query, SessionNote, Usage

MAX_SESSIONS = 10_000
"""Sessions that a process remembers; about 5 MB. The one that was used longest ago is forgotten first."""
MAX_AGE_S = 3_600.0
"""Seconds after which an unused session is forgotten."""
CACHE_S = 300.0
"""Seconds that a provider keeps a prompt after its last use (OpenAI 5 to 10 minutes, Anthropic 5)."""
MAX_TURNS_LEFT = 20
"""The longest rest of a session that a cold cache may be paid back over."""
MARGIN = Decimal("0.9")
"""Share of the present model's cost at which another is worth the change; estimates err by some 10 %."""

SessionKey = tuple[str, str, str]
"""The client's key, the virtual model, and the name of the conversation."""


@dataclass(frozen=True)
class Session:
    """One conversation and its model."""

    model: str
    home: str
    """The model that was chosen at the beginning; the session may return to it."""
    num_turns: int = 0
    """Turns answered."""
    usage: Usage = field(default_factory=Usage)
    """Usage of the latest turn: what the provider has in its cache."""
    used_s: float = 0.0
    barred: frozenset[str] = frozenset()
    """Models that were left because they failed at the task."""
    error: str | None = None
    """Why the model did not answer the latest turn."""

    def cached_tokens(self, now_s: float) -> int:
        """Tokens of the conversation that the provider still has in its cache."""
        return self.usage.total_tokens if now_s - self.used_s <= CACHE_S else 0

    def kept(self, reason: str) -> tuple[Session, SessionNote]:
        """The session and its note for a turn on the same model."""
        return self, self._note("kept", self.model, reason)

    def left_for(self, model: str, reason: str) -> tuple[Session, SessionNote]:
        """The session and its note for a turn on another model."""
        return replace(self, model=model, usage=Usage()), self._note("left", model, reason)

    def _note(self, state: Literal["kept", "left"], model: str, reason: str) -> SessionNote:
        return SessionNote(state=state, model=model, turn=self.num_turns + 1, reason=reason)

    def answered(self, model: str, usage: Usage) -> Session:
        """The session after `model` has answered a turn."""
        return replace(self, model=model, usage=usage, num_turns=self.num_turns + 1, error=None)

    def failed(self, error: str) -> Session:
        """The session after its model has not answered a turn."""
        return replace(self, error=error)


class Sessions:
    """The sessions of one process, by key; `clock` is monotonic and in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, max_sessions: int = MAX_SESSIONS) -> None:
        self.now_s = clock
        self._max_sessions = max_sessions
        self._held: OrderedDict[SessionKey, Session] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: SessionKey) -> Session | None:
        """The session, unless it is too old."""
        session = self._held.get(key)
        return session if session is not None and self.now_s() - session.used_s <= MAX_AGE_S else None

    def put(self, key: SessionKey, session: Session) -> None:
        """Remember the session as used now; the oldest ones give way."""
        self._held[key] = replace(session, used_s=self.now_s())
        self._held.move_to_end(key)
        while len(self._held) > self._max_sessions or self._is_old(next(iter(self._held))):
            self._held.popitem(last=False)

    def _is_old(self, key: SessionKey) -> bool:
        return self.now_s() - self._held[key].used_s > MAX_AGE_S


def session_key(query: Query) -> SessionKey:
    """The key of the query's conversation: the client's name of it, or else a hash of its first messages.

    The first messages are those up to the user's first. Clients cannot see each other's sessions."""
    return query.client, query.model, query.session or _fingerprint(query)


def _fingerprint(query: Query) -> str:
    roles = [message.role for message in query.messages]
    end = roles.index("user") + 1 if "user" in roles else len(roles)
    first = json.dumps([message.wire for message in query.messages[:end]], sort_keys=True)
    return hashlib.sha256(first.encode(errors="surrogatepass")).hexdigest()


def next_turn(
    session: Session,
    able: Mapping[str, ModelCard],
    *,
    instead: str,
    prompt_tokens: int,
    failure: str | None,
    now_s: float,
) -> tuple[Session, SessionNote]:
    """The session with the model of its next turn, and why it is that model.

    `able` are the models that can take the turn now, from the weakest to the strongest, and `instead` is the
    one to ask if the present model is not among them; `failure` says how it failed in the latest turn.
    """
    present, mistake, failure = session.model, failure, failure or session.error
    if present not in able:
        return session.left_for(instead, f"{present} rests after failures, or lacks what this turn needs")
    if failure is None:
        return _cheapest(session, able, prompt_tokens, now_s)
    names = list(able)
    later = names[names.index(present) + 1 :]
    stronger = next((name for name in later if name not in session.barred), None)
    if stronger is None:
        return session.kept(f"no model is stronger, although {failure}")
    if mistake is not None:
        session = replace(session, barred=session.barred | {present})
    return session.left_for(stronger, f"{present} failed: {failure}")


def _cheapest(
    session: Session, able: Mapping[str, ModelCard], prompt_tokens: int, now_s: float
) -> tuple[Session, SessionNote]:
    """The present model, unless the rest of the session is cheaper on another that may take it over.

    These are the model of the beginning and every stronger one than the present."""
    present, names = session.model, list(able)
    cached = min(session.cached_tokens(now_s), prompt_tokens)
    candidates = {session.home, *names[names.index(present) + 1 :]} - session.barred - {present}
    stay_usd = _rest_usd(session, able[present], prompt_tokens, cached)
    costs = {name: _rest_usd(session, able[name], prompt_tokens, 0) for name in names if name in candidates}
    best = min(costs, key=lambda name: costs[name], default=None)
    if best is None or costs[best] >= MARGIN * stay_usd:
        return session.kept(f"about {cached} of {prompt_tokens} tokens of the prompt are in its cache")
    reason = f"with a cold cache the rest costs about {costs[best]:f} USD, and {stay_usd:f} on {present}"
    return session.left_for(best, reason)


def _rest_usd(session: Session, card: ModelCard, prompt_tokens: int, cached_tokens: int) -> Decimal:
    """Cost of the turns that are left, as many as there were: the next one reads `cached_tokens` from the
    cache, and the later ones the whole prompt."""
    reply, later = session.usage.completion_tokens, min(session.num_turns, MAX_TURNS_LEFT) - 1
    next_usd = turn_usd(card, prompt_tokens, cached_tokens, reply)
    return next_usd + later * turn_usd(card, prompt_tokens, prompt_tokens, reply)


def turn_usd(card: ModelCard, prompt_tokens: int, cached_tokens: int, reply_tokens: int) -> Decimal:
    """Cost of one turn that reads `cached_tokens` of its prompt from the cache and writes the rest to it."""
    return card.cost_usd(
        Usage(
            prompt_tokens=prompt_tokens,
            completion_tokens=reply_tokens,
            cached_read_tokens=cached_tokens,
            cached_write_tokens=prompt_tokens - cached_tokens,
        )
    )
