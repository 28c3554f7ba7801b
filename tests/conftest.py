"""Before any test imports ray: the environment of our own clusters, with a token of this run."""

from r2_serve.local_cluster import prepare_environment

prepare_environment()
