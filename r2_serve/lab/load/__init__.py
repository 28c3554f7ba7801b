"""`r2-serve load`: sends a workload to an endpoint as an open loop, and reports what users would have seen.

Latencies count from the time at which a request was to be sent, so that a server which stalls cannot hide it
by slowing its own load (coordinated omission). This is not a benchmark of one model: it measures the router's
answers and their cost.
Reading order: `records`, `open_loop`, `client`, `replicas`, `monitor`, `run_directory`, `summary`, `cells`,
`plots`, `page`, `session`, `cli`.
"""
