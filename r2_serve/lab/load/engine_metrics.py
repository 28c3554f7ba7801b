"""The metrics of engines, read from the pages that Ray's nodes show to Prometheus.

vLLM exports `ray_vllm_*` with the id of its replica. Of other engines the calls at their replicas are
known, by Ray Serve's own metrics. Ray renews a page every few seconds. Source: Ray Serve 2.60,
`_private/replica.py`; vLLM 0.29, `v1/metrics/ray_wrappers.py`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress

import httpx

from r2_serve.lab.load.records import EngineState

PAGE_TIMEOUT_S = 2.0
_SAMPLE = re.compile(
    r"^ray_(serve_replica_processing_queries|vllm_num_requests_running|vllm_num_requests_waiting"
    r"|vllm_kv_cache_usage_perc)\{([^}]*)\} (\S+)$",
    re.MULTILINE,
)
_LABEL = re.compile(r'(\w+)="([^"]*)"')


def read_engines(urls: Iterable[str]) -> dict[str, EngineState]:
    """The engines of all nodes with these pages, by APPLICATION/DEPLOYMENT. A page that fails is left out."""
    pages: list[str] = []
    for url in urls:
        with suppress(httpx.HTTPError):
            pages.append(httpx.get(url, timeout=PAGE_TIMEOUT_S, trust_env=False).text)
    return engine_states(pages)


def engine_states(pages: Iterable[str]) -> dict[str, EngineState]:
    """The engines on Prometheus pages. A replica's values are those of its last sample on any page."""
    values: dict[str, dict[str, float]] = defaultdict(dict)
    deployment_of: dict[str, str] = {}
    for name, labels, value in (match for page in pages for match in _SAMPLE.findall(page)):
        known = dict(_LABEL.findall(labels))
        replica = known.get("replica") or known.get("ReplicaId") or ""
        values[replica][name] = float(value)
        if "application" in known and "deployment" in known:
            deployment_of[replica] = f"{known['application']}/{known['deployment']}"
    return {
        name: _state([values[replica] for replica, own in deployment_of.items() if own == name])
        for name in sorted(set(deployment_of.values()))
    }


def _state(replicas: list[dict[str, float]]) -> EngineState:
    used = [known["vllm_kv_cache_usage_perc"] for known in replicas if "vllm_kv_cache_usage_perc" in known]
    at_work = (
        known.get("vllm_num_requests_running", known.get("serve_replica_processing_queries", 0.0))
        for known in replicas
    )
    return EngineState(
        running=round(sum(at_work)),
        waiting=round(sum(known.get("vllm_num_requests_waiting", 0.0) for known in replicas)),
        kv_use=max(used) if used else None,
    )
