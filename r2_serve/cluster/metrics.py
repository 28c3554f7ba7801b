"""The metrics of all router replicas on one page: Serve's proxy gives a scrape to any one of them, which asks the others.

Why not `ray.util.metrics`: docs/monitoring.md.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from ray import serve
from ray.serve.handle import DeploymentHandle

from r2_serve.cluster.metric_pages import labelled, merged

TIMEOUT_S = 3.0
"""For every replica's page; well under Prometheus' own limit (10 s), so that one silent replica costs its own page alone."""
_log = logging.getLogger(__name__)


class ReplicaMetrics:
    """`own` renders this replica's metrics; `PAGE_METHOD` of the deployment must give `page()`."""

    PAGE_METHOD = "metrics_page"

    def __init__(self, own: Callable[[], bytes]) -> None:
        self._own = own
        self._siblings: DeploymentHandle | None = None

    def page(self) -> bytes:
        """This replica's samples, with its name."""
        return labelled(self._own(), serve.get_replica_context().replica_id.unique_id)

    async def every_page(self) -> bytes:
        """Every replica's samples. Where the others cannot be asked, this one's, which says that some are missing."""
        context = serve.get_replica_context()
        try:
            if self._siblings is None:
                self._siblings = serve.get_deployment_handle(context.deployment, context.app_name)
            pages = await self._siblings.broadcast(self.PAGE_METHOD).results_async(
                timeout_s=TIMEOUT_S, return_exceptions=True
            )
        except Exception as e:  # noqa: BLE001 - whatever it is, what this replica counts must not be lost with it
            _log.warning("metrics of the other router replicas are missing: %s: %s", type(e).__name__, e)
            return merged([self.page()], num_silent=1)
        answered = [page for page in pages if isinstance(page, bytes)]
        return merged(answered or [self.page()], num_silent=len(pages) - len(answered))
