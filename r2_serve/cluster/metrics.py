"""The metrics of all router replicas on one page: Serve's proxy sends a scrape to one of them, which asks the
others.

Prometheus counts a process that restarts as a counter that starts anew, but a sum over processes would fall
when one of them ends. So nothing is added up here: every series carries the name of its replica, and queries
add up. The reasons against `ray.util.metrics` stand in docs/monitoring.md.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence

from ray import serve

from r2_serve.cluster.siblings import Replicas

SILENT = "r2_router_replicas_silent"
REPLICA = "replica"
_SAMPLE = re.compile(rb"^([a-zA-Z_:][a-zA-Z0-9_:]*)(\{?)", re.MULTILINE)
_FAMILY = re.compile(rb"^(?=# HELP )", re.MULTILINE)
_log = logging.getLogger(__name__)


class ReplicaMetrics:
    """`own` renders this replica's metrics; `PAGE_METHOD` of the deployment must return `page()`."""

    PAGE_METHOD = "metrics_page"

    def __init__(self, own: Callable[[], bytes], replicas: Replicas) -> None:
        self._own, self._replicas = own, replicas

    def page(self) -> bytes:
        """This replica's samples, with its name."""
        return labelled(self._own(), serve.get_replica_context().replica_id.unique_id)

    async def every_page(self) -> bytes:
        """Every replica's samples. If the others cannot be asked, this one's and a count of those missing."""
        try:
            pages = await self._replicas.ask(self.PAGE_METHOD)
        except Exception as e:  # noqa: BLE001 - no failure of others may cost this replica's counts
            _log.warning("metrics of the other router replicas are missing: %s: %s", type(e).__name__, e)
            return merged([self.page()], num_silent=1)
        answered = [page for page in pages if isinstance(page, bytes)]
        return merged(answered or [self.page()], num_silent=len(pages) - len(answered))


def labelled(page: bytes, replica: str) -> bytes:
    """`page` with `replica="..."` on every sample. The name must need no escape."""
    label = b'{%s="%s"' % (REPLICA.encode(), replica.encode())
    return _SAMPLE.sub(lambda found: found[1] + label + (b"," if found[2] else b"}"), page)


def merged(pages: Sequence[bytes], num_silent: int) -> bytes:
    """One page of labelled `pages`, with the samples of a family together as the format demands.

    `num_silent` replicas gave no page. The page says so, so that a gap does not look like idleness.
    """
    families: dict[bytes, list[bytes]] = {}
    for page in pages:
        for block in _FAMILY.split(page)[1:]:
            help_line, type_line, *samples = block.splitlines(keepends=True)
            families.setdefault(help_line + type_line, []).extend(samples)
    about = (
        f"# HELP {SILENT} Router replicas whose metrics are missing on this page.\n# TYPE {SILENT} gauge\n"
    )
    families[about.encode()] = [f"{SILENT} {num_silent}\n".encode()]
    return b"".join(head + b"".join(samples) for head, samples in families.items())
