"""The environment of every Ray process of a cluster: that of a local cluster, less what only fits one machine.

`cluster.yaml` has it in its start commands and a test holds it to this; a manifest is made from it.
"""

from __future__ import annotations

from r2_serve.local_cluster import ENVIRONMENT

LOCAL_ONLY = ("RAY_AUTH_TOKEN", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")
"""A token made for one run, and the switch that keeps Ray's ports on loopback, where no other node could reach them."""
CLUSTER_ENVIRONMENT = {name: value for name, value in ENVIRONMENT.items() if name not in LOCAL_ONLY}
