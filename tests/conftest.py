"""Before any test imports ray: the environment of our own clusters, with a token of this run."""

import os

from r2_serve.local_cluster import prepare_environment

prepare_environment()
os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's own is 15, which starves replicas where other tests load the machine
