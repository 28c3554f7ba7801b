"""A discrete-event model of a whole deployment: `r2-serve simulate` answers in minutes what a cluster shows
in hours.

The model is not an emulation of Ray. Its events are those that decide latency and cost: a call reaches a
replica, a batch ends a sequence, the autoscaler decides. The time between them is a constant overhead.
Batching is the scripted engine's own arithmetic (`r2_serve.engines.batching`), and Ray Serve's own code
decides on scaling, on the simulated clock. docs/simulation.md says what is left out and how far the results
are from real runs.

Reading order: `clock`, `hardware`, `sizes`, `calls`, `replicas`, `machines`, `deployment`, `hosted`,
`metrics_path`, `autoscaler`, `system`, `router`, `forecasts`, `results`, `simulation`, `compare`, `cli`.
"""
