"""A discrete-event model of a whole deployment: `r2-serve simulate` answers in minutes what a cluster would show in hours.

Not an emulation of Ray: events are those that decide latency and cost (a call reaches a replica, a batch ends a sequence, the
autoscaler decides), everything between them is a constant overhead. Batching is the scripted engine's own arithmetic
(`r2_serve.engines.batching`), scaling decisions are Ray Serve's own code on the simulated clock. What is left out, and how far
from real runs that is, stands in docs/simulation.md.

Reading order: `clock`, `hardware`, `sizes`, `calls`, `replicas`, `machines`, `deployment`, `hosted`, `queries`, `router`,
`metrics_path`, `autoscaler`, `forecasts`, `system`, `simulation`, `results`, `results_files`, `compare`, `cli`.
"""
