"""Engine metrics of a run's timeline, read from pages as Ray's nodes show them."""

from __future__ import annotations

from r2_serve.lab.load.engine_metrics import engine_states
from r2_serve.lab.load.records import EngineState

SERVE = 'ray_serve_replica_processing_queries{{application="{app}",deployment="Model",replica="{id}"}} {n}'
VLLM = 'ray_vllm_{name}{{ReplicaId="{id}",model_name="m"}} {n}'


def test_vllm_reports_its_own_sequences_and_other_engines_count_by_calls_at_replicas() -> None:
    first = [
        "# HELP ray_vllm_num_requests_running Number of requests.",
        SERVE.format(app="m-large", id="a", n=9.0),
        VLLM.format(name="num_requests_running", id="a", n=4.0),
        VLLM.format(name="num_requests_waiting", id="a", n=5.0),
        VLLM.format(name="kv_cache_usage_perc", id="a", n=0.75),
        SERVE.format(app="m-small", id="c", n=2.0),
    ]
    second = [
        SERVE.format(app="m-large", id="b", n=3.0),
        VLLM.format(name="num_requests_running", id="b", n=3.0),
        VLLM.format(name="kv_cache_usage_perc", id="b", n=0.5),
        SERVE.format(app="m-small", id="d", n=1.0),
    ]
    assert engine_states(["\n".join(first), "\n".join(second)]) == {
        "m-large/Model": EngineState(running=7, waiting=5, kv_use=0.75),
        "m-small/Model": EngineState(running=3),
    }


def test_page_without_engines_gives_none() -> None:
    assert engine_states(["ray_node_cpu 1.0\n", ""]) == {}
