"""The Ray Serve config: one YAML file that says all of it, read strictly.

    applications:
    - {name: m-MODEL, import_path: r2_serve.app:build_model, args: ModelServerConfig}      one per local model
    - {name: r2, import_path: r2_serve.app:build, args: RouterConfig,
       deployments: [{name: Router, user_config: RoutingConfig}, ...]}

`serve deploy` takes the same file but drops keys that it does not know without a word, so check it here
first: every key of Ray Serve's schema and of R2's, then what must hold between sections (`checks`).
"""

from r2_serve.serve_config.document import Problem, parse_yaml, read_yaml
from r2_serve.serve_config.reader import ServeConfig, check, load, load_without_ray, own_problems

__all__ = [
    "Problem",
    "ServeConfig",
    "check",
    "load",
    "load_without_ray",
    "own_problems",
    "parse_yaml",
    "read_yaml",
]
