"""Publishing: a trained adapter enters the running application, or leaves it, without a restart or a lost
request.

    adapter directory + config file ─▶ plan.py         application, virtual models, the file's next texts
                                       config_file.py  changes a text, keeps its comments
                                       steps.py        loads, names, routes; undoes failures
                                       rayservice.py   on Kubernetes, by the custom resource

`r2_serve.cluster.serve_api` deploys the file and waits. The config file is the source of truth: the cluster
runs what it says. Nothing here imports Ray.
"""
