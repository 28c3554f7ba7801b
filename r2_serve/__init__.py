"""R2 (Route-and-Reason): a router that gives each subtask of a query to the cheapest model able to solve it.

The folders tell the path of a request, from the top down:

1. `cli`          the command `r2-serve`.
2. `lab`          evaluation, load, experiments and simulation: it measures the router and serves nothing.
3. `ops`          publishing of adapters, deployment files, Ray on this machine.
4. `app`          the wiring diagram: the Ray Serve applications that a config file names.
5. `cluster`      the Ray shell: the deployments, and how they reach each other.
6. `serve_config` the config file, read strictly.
7. `http`         the wire: `POST /v1/chat/completions`, keys, admission.
8. `router`       decompose, allocate, execute, synthesize: the method.
9. `calls`        one call of one model: retries, the ledger, cooldowns.
10. `engines`, `prompts`, `grading`: how a model is run, how it is spoken to, whether an answer is right.
"""

from pathlib import Path

__version__ = "0.2.0"

EMBEDDED = Path(__file__).parent / "embedded"
"""The shipped models, one folder each."""
EMBEDDED_CONFIG = EMBEDDED / "serve_config.yaml"
"""The config that serves them."""
