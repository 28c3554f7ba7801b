"""R2: a router that breaks a query into subtasks and gives each to the cheapest model able to solve it.

The path of a request, one module per step:

1. `http`         `POST /v1/chat/completions` with `model: "r2"`: schema, key, queue.
2. `decomposer`   sample N plans, reject the invalid, keep the best by conciseness, practicality, coherence.
3. `allocator`    one pool model per subtask.
4. `executor`     ready-queue DAG: a subtask starts the moment its last dependency is answered.
5. `ledger`       every call is reserved before it starts and settled to its actual usage.
6. `pipeline`     puts 2-5 together and makes the answer; `traces` keeps the record.
7. `deployments`  the same, as Ray Serve actors; `app.build` is the wiring diagram.
"""

__version__ = "0.1.0"
