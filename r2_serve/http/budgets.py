"""`GET /v1/r2/keys`: what a client key has spent of its budget. A key without limits sees all keys."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal

from starlette.requests import Request
from starlette.responses import Response

from r2_serve.dialects.wire import encode
from r2_serve.http.edge import Exchange
from r2_serve.http.keys import ClientKey, KeyRing
from r2_serve.http.spend import Purses
from r2_serve.types import Json

_SPENT = re.compile(rb'^r2_key_spent_usd\{[^}]*key="([^"]+)"[^}]*\} (\S+)$', re.MULTILINE)


@dataclass(frozen=True)
class Budgets:
    """The route. Where each router replica counts for itself (without `server.spend_file`), the highest count
    is shown, since a replica refuses a key by its own count."""

    keys: KeyRing
    purses: Purses
    scrape: Callable[[], Awaitable[bytes]]
    """Makes the metrics of all router replicas."""

    async def listed(self, request: Request) -> Response:
        own = Exchange.of(request.scope).key
        seen = [own] if own is not None and own.is_restricted else self.keys.known()
        spent = _most_spent(await self.scrape()) if seen else {}
        body: Json = {"object": "list", "data": [self._entry(key, spent) for key in seen]}
        return Response(encode(body), media_type="application/json")

    def _entry(self, key: ClientKey, spent: Mapping[str, Decimal]) -> Json:
        purse = self.purses.of(key)
        resets_at = purse.resets_at()
        return {
            "object": "r2.key",
            "name": key.name,
            "spent_usd": f"{max(purse.spent_usd(), spent.get(key.name, Decimal(0))):f}",
            "budget_usd": None if key.budget_usd is None else f"{key.budget_usd:f}",
            "budget_period": key.budget_period,
            "resets_at": resets_at and f"{resets_at.isoformat()}T00:00:00Z",
            "models": key.models and list(key.models),
        }


def _most_spent(page: bytes) -> dict[str, Decimal]:
    """The highest spend of each key among the router replicas, from their metrics."""
    found: dict[str, Decimal] = {}
    for name, usd in _SPENT.findall(page):
        key = name.decode()
        found[key] = max(Decimal(usd.decode()), found.get(key, Decimal(0)))
    return found
