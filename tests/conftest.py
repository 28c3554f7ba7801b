"""Before any test imports ray: the environment of our own clusters, with a token of this run."""

import os

from hypothesis import HealthCheck, settings

from r2_serve.ops.local.cluster import prepare_environment

prepare_environment()
os.environ.setdefault(
    "RAY_worker_niceness", "0"
)  # Ray's own is 15, which starves replicas where other tests load the machine

settings.register_profile("loaded", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("loaded")  # how fast a shared machine draws examples is no claim about the code
