"""What is asked of the router, and when: a workload file to a stream of requests, the same for real runs and for simulated ones.

Not a client and not a clock: nothing here sends or waits, imports Ray or speaks HTTP. The stream is a function of the file and
its seed alone. Reading order: `request`, `arrivals`, `trace_file`, `tasks`, `workload`, `reader`.
"""

from r2_serve.lab.workload.reader import EXAMPLES, SCRIPTED_POOL, example_names, example_path, load_workload
from r2_serve.lab.workload.request import Request, Step
from r2_serve.lab.workload.workload import Slo, Workload

__all__ = [
    "EXAMPLES",
    "SCRIPTED_POOL",
    "Request",
    "Slo",
    "Step",
    "Workload",
    "example_names",
    "example_path",
    "load_workload",
]
