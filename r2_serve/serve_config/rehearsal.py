"""A config with the scripted engine in place of every model: the same applications, replicas and GPUs.

It serves experiments on a machine without GPUs (`local_nodes` counts them), and trials of a config before it
costs money.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from r2_serve.config import ModelConfig, ModelServerConfig, ScriptedEngineConfig, SpeedConfig
from r2_serve.serve_config.document import YamlMapping
from r2_serve.serve_config.reader import ServeConfig

USUAL_SPEEDS: Mapping[str, SpeedConfig] = {
    "slm": SpeedConfig(start_s=5, prefill_tokens_per_s=8000, decode_tokens_per_s=100, batch_slowdown=0.02),
    "mlm": SpeedConfig(start_s=8, prefill_tokens_per_s=4000, decode_tokens_per_s=60, batch_slowdown=0.03),
    "llm": SpeedConfig(start_s=12, prefill_tokens_per_s=2000, decode_tokens_per_s=40, batch_slowdown=0.05),
}
"""Speeds by group for models of unknown speed. They are chosen for short experiments, not measured; real
models take minutes to start."""


def rehearsed(config: ServeConfig, speeds: Mapping[str, SpeedConfig] | None = None) -> ServeConfig:
    """`config` with scripted engines, which need hardly any CPU; `speeds` are by model name.

    Each engine gives the reply that a task of `r2_serve.lab.workload` asks for.
    """
    speeds = speeds or {}
    served = {model.engine.app: model for model in config.router.models if model.engine.kind == "served"}
    return replace(
        config,
        router=config.router.model_copy(
            update={"models": tuple(_with_engine(model, speeds) for model in config.router.models)}
        ),
        model_apps={
            app: ModelServerConfig(engine=_scripted(served[app], speeds)) if app in served else server
            for app, server in config.model_apps.items()
        },
        raw={
            **config.raw,
            "applications": [
                _without_cpus(app) if app["name"] in served else app for app in config.raw["applications"]
            ],
        },
    )


def _with_engine(model: ModelConfig, speeds: Mapping[str, SpeedConfig]) -> ModelConfig:
    """The router itself scripts hosted models, which no application serves."""
    if model.engine.kind == "served":
        return model
    return model.model_copy(update={"engine": _scripted(model, speeds)})


def _without_cpus(app: YamlMapping) -> YamlMapping:
    """A model's application, with replicas that ask for GPUs alone."""
    deployments = [
        {**deployment, "ray_actor_options": {**deployment.get("ray_actor_options", {}), "num_cpus": 0}}
        for deployment in app.get("deployments", [])
    ]
    return {**app, "deployments": deployments}


def _scripted(model: ModelConfig, speeds: Mapping[str, SpeedConfig]) -> ScriptedEngineConfig:
    return ScriptedEngineConfig(
        kind="scripted", replies=("{asked}",), speed=speeds.get(model.name, USUAL_SPEEDS[model.group])
    )
