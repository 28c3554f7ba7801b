"""Files for the operator of a router, made from its Serve config: a KubeRay manifest, and monitoring.

    serve_config.yaml ─▶ needs.py        GPUs, CPUs and environment variables that it asks its nodes for
                         rayservice.py   ─▶ `r2-serve kuberay`      a RayService, its pods as in pods.py, and
                                                                    the config as in pod_config.py
                         monitoring.py   ─▶ `r2-serve monitoring`   scraping, alert rules
                         dashboard.py                               and a Grafana dashboard
                         templates.py                               fills the YAML files of templates/

Nothing here starts or asks anything, and only the reader of the config imports Ray.
"""
