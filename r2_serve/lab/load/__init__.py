"""`r2-serve load`: sends a workload to an endpoint as an open loop, and reports what users would have seen.

Latencies count from when a request was to be sent, so that a server which stalls cannot hide it by slowing its own load
(coordinated omission). Not a benchmark of one model: what is measured is answers of the router, with their cost.
Reading order: `records`, `open_loop`, `client`, `replicas`, `monitor`, `run_directory`, `summary`, `plots`, `page`, `session`, `cli`.
"""
