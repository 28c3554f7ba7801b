"""The requests to the router and their times: a workload file becomes a stream of requests, the same for real
and simulated runs.

Nothing here sends or waits, imports Ray or speaks HTTP. The stream depends on the file and its seed alone.
Reading order: `request`, `arrivals`, `trace_file`, `tasks`, `workload`.
"""

from r2_serve.lab.workload.request import Request, Step
from r2_serve.lab.workload.workload import EXAMPLES, SCRIPTED_POOL, Slo, Workload, load_workload

__all__ = ["EXAMPLES", "SCRIPTED_POOL", "Request", "Slo", "Step", "Workload", "load_workload"]
