"""Which router answers a query while a candidate is on trial: arithmetic with hashes, and no state.

A query of a virtual model with a candidate belongs to a unit: its conversation, or its client's key. The hash
of the candidate's name and the unit decides between the incumbent and the candidate, so a unit keeps its
router in every process and after every restart, and each candidate draws other units. A query whose plan,
policy or models the client chose takes no part, because the routers would hardly differ.
"""

from __future__ import annotations

import hashlib

from r2_serve.config import RolloutConfig, RoutingConfig, VirtualModelConfig
from r2_serve.router.sessions import session_key
from r2_serve.types import Arm, Query, RolloutNote, Trace, text_hash


def note_of(query: Query, rollout: RolloutConfig) -> RolloutNote | None:
    """The part of the query in the trial; None if it takes none."""
    is_chosen = query.plan is not None or query.policy is not None or query.gate is not None
    if is_chosen or query.pinned or query.is_plan_only:
        return None
    unit = unit_of(query, rollout)
    is_canary = drawn(f"canary/{rollout.candidate}/{unit}") < rollout.canary
    arm: Arm = "canary" if is_canary else "incumbent"
    share = rollout.canary if is_canary else 1 - rollout.canary
    return RolloutNote(candidate=rollout.candidate, arm=arm, share=share, unit=unit)


def is_by_candidate(query: Query) -> bool:
    """Whether the candidate answers the query, seen or unseen."""
    return query.rollout is not None and query.rollout.arm != "incumbent"


def router_of(query: Query, routing: RoutingConfig) -> VirtualModelConfig | None:
    """The virtual model as it answers the query; None for a pool model by its name."""
    if is_by_candidate(query):
        return routing.candidate(query.model)
    return routing.virtual_models.get(query.model)


def unit_of(query: Query, rollout: RolloutConfig) -> str:
    """A hash of what keeps its router. Without keys, a conversation does."""
    if rollout.unit == "key" and query.client:
        return text_hash(query.client)
    return text_hash("\0".join(session_key(query)))


def is_shadowed(query: Query, rollout: RolloutConfig) -> bool:
    """Whether the candidate answers a query of the incumbent too."""
    name = query.reply_id or query.request_id
    return drawn(f"shadow/{rollout.candidate}/{name}") < rollout.shadow


def shadow_of(query: Query, note: RolloutNote, share: float) -> Query:
    """The query as the candidate is asked unseen. Its trace names that of the client's answer."""
    shadow = note.model_copy(
        update={"arm": "shadow", "share": share, "of": query.reply_id or query.request_id}
    )
    update = {"request_id": f"shadow-{query.request_id}"[:200], "reply_id": "", "rollout": shadow}
    return query.model_copy(update=update)


def drawn(text: str) -> float:
    """A number from [0, 1) that the text alone decides."""
    return int.from_bytes(hashlib.sha256(text.encode(errors="replace")).digest()[:7]) / 2**56


def is_of_trial(trace: Trace, model: str, candidate: str) -> bool:
    """Whether the query took part in the trial of that candidate."""
    return trace.model == model and trace.rollout is not None and trace.rollout.candidate == candidate
