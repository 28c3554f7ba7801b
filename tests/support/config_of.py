"""A `ServeConfig` of a text, read without Ray, for tests of what is made from it."""

from __future__ import annotations

from r2_serve.serve_config import ServeConfig, own_problems, parse_yaml
from r2_serve.serve_config.document import Document
from r2_serve.serve_config.reader import applications_of


def config_of(text: str) -> ServeConfig:
    document = parse_yaml(text)
    assert isinstance(document, Document), document
    file, problems = own_problems(document, {})
    assert [problem for problem in problems if problem.severity == "error"] == []
    assert file.router is not None and file.routing is not None and file.router_app is not None
    return ServeConfig(
        router=file.router,
        routing=file.routing,
        model_apps=dict(file.model_configs),
        router_app_name=file.router_app.name,
        written=document.raw,
        raw={**document.raw, "applications": applications_of(file)},
        http_host=file.http_options["host"],
        http_port=file.http_options["port"],
        proxy_location=document.raw["proxy_location"],
    )
