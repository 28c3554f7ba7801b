"""Files for whoever runs the router, made from the Serve config that it runs: a KubeRay manifest, and monitoring.

    serve_config.yaml ─▶ needs.py          GPUs, CPUs and environment variables that it asks its nodes for
                         rayservice.py     ─▶ `r2-serve kuberay`      a RayService, of the pods in pods.py
                         prometheus.py     ─▶ `r2-serve monitoring`   scraping,
                         alerts.py                                    rules,
                         panels.py, dashboard.py                      a Grafana dashboard,
                         operator.py                                  and all three as objects of Prometheus' operator

Everything here is data made from data: nothing is started or asked, and Ray is imported by the reader of the config alone.
`environment` is what every process of a cluster has to have, here and in cluster.yaml.
"""
