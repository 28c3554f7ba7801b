"""The place of a query in a distributed trace (W3C Trace Context, https://www.w3.org/TR/trace-context/)."""

from __future__ import annotations

import re
import secrets

from r2_serve.types.calls import Record

_HEADER = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


class TraceContext(Record):
    """The trace that a query belongs to, and its own place there."""

    trace_id: str
    """32 hexadecimal digits."""
    parent_id: str | None = None
    """The client's span, 16 hexadecimal digits; None if the trace begins here."""
    span_id: str | None = None
    """The query's own span; None if R2 records nothing, so that the client's header is passed on as it is."""
    parent_flags: str = "01"
    """The flags of the client's header."""

    @classmethod
    def of(cls, header: str | None, *, records: bool) -> TraceContext | None:
        """The place of a query whose client sent this `traceparent`, if any; a wrong header counts as none.

        `records` says whether a query that begins a trace is recorded. One that goes on a trace is recorded
        if the client's own span is sampled, unless this server records nothing at all (see `unrecorded`).
        """
        found = _HEADER.fullmatch(header.strip()) if header else None
        if found is not None:
            is_sampled = bool(int(found[3], 16) & 1)
            span_id = new_span_id() if is_sampled else None
            return cls(trace_id=found[1], parent_id=found[2], span_id=span_id, parent_flags=found[3])
        return cls(trace_id=secrets.token_hex(16), span_id=new_span_id()) if records else None

    def unrecorded(self) -> TraceContext:
        """The same place on a server that records no spans."""
        return self.model_copy(update={"span_id": None})

    def header(self, span_id: str) -> str:
        """The `traceparent` that a call with the span `span_id` sends on."""
        if self.span_id is None:
            return f"00-{self.trace_id}-{self.parent_id}-{self.parent_flags}"
        return f"00-{self.trace_id}-{span_id}-01"


def new_span_id() -> str:
    """16 random hexadecimal digits."""
    return secrets.token_hex(8)
