"""The environment of every Ray process of a cluster: that of a local cluster, less what only fits one machine.

`cluster.yaml` has it in its start commands and a test holds it to this; a manifest is made from it.
"""

from __future__ import annotations

import re

from r2_serve.ops.local.cluster import ENVIRONMENT

LOCAL_ONLY = re.compile(
    "RAY_AUTH_TOKEN|RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER|RAY_SERVE_(ENABLE_HA_PROXY|HAPROXY_.*|DIRECT_INGRESS_.*)"
)
"""A token made for one run; the switch that keeps Ray's ports on loopback, where no other node could reach them; and HAProxy, which several
nodes have not been tried with (docs/operations.md)."""
CLUSTER_ENVIRONMENT = {name: value for name, value in ENVIRONMENT.items() if not LOCAL_ONLY.fullmatch(name)}
