"""The names of policies: `dot:SMALL,LARGE@0.97` to the policy, and all that a setting offers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from r2_serve.config.imported import imported, is_import_path
from r2_serve.errors import ConfigError, InvalidRequest
from r2_serve.lab.evaluation.desk import EvalPolicy, Setting
from r2_serve.lab.evaluation.policies import (
    ALL,
    R2,
    RANDOM,
    TUNABLE,
    TUNED,
    Cascade,
    ChainOfThought,
    DataShunt,
    DivisionOfThoughts,
    Own,
    PolicyConfig,
    Routed,
    Single,
    TreeOfThoughts,
)
from r2_serve.router.policies import AllocationPolicy


def parse_policy(name: str, setting: Setting, config: PolicyConfig) -> EvalPolicy:
    """The policy called `name`. Raises: ConfigError if there is none, or if it names an unknown model.

    `dot`, `datashunt` and `cascade` may end with a threshold of their own: `dot:SMALL,LARGE@0.97`.
    """
    plain, tau = split_tau(name)
    config = config if tau is None else config.model_copy(update={"tau": tau})
    kind, _, details = plain.partition(":")
    models = tuple(details.split(",")) if details else ()
    known = tuple(setting.cards) if kind in ("single", "cascade", "datashunt") else setting.pool
    known = (*known, *setting.gates) if kind in ("all", "final-only") else known
    unknown = [model for model in models if model not in known and kind in KINDS]
    if unknown:
        raise ConfigError(f"policy {name!r}: no model {unknown[0]!r}; choose among {', '.join(known)}")
    match kind, models:
        case "r2", ():
            return Routed(name)
        case "random", ():
            return random_policy({})
        case "single", (model,):
            return Single(name, model)
        case "cot", (model,):
            return ChainOfThought(name, model)
        case "tot", (model,):
            return TreeOfThoughts(name, model, config)
        case "datashunt", (small, large):
            return DataShunt(name, small, large, config)
        case "dot", (small, large):
            return DivisionOfThoughts(name, small, large, config)
        case "final-only", (small, large):
            return Routed(name, f"final-only:{small},{large}")
        case "cascade", (_, _, *_):
            return Cascade(name, models, config)
    with suppress(InvalidRequest):
        AllocationPolicy.parse(name, setting.pool, setting.gates)
        return Routed(name, name)
    if is_import_path(name) and kind not in (*KINDS, *SERVED):
        imported(name)
        return Own(name)
    raise ConfigError(f"unknown policy {name!r}; {FORMS}")


KINDS = (R2, RANDOM, ALL, "single", "cot", "tot", "datashunt", "dot", "final-only", "cascade")
BY_CONFIDENCE = ("dot", "cascade")
"""Kinds that read how sure every model but the last is of its tokens."""
SERVED = ("all", "one", "final-only", "random", "learned", "cheapest")
"""Kinds of policies of serving (`router.policies`)."""


def split_tau(name: str) -> tuple[str, float | None]:
    """The name of a policy without the threshold at its end, and that threshold.

    Raises: ConfigError if the threshold is not between 0 and 1.
    """
    plain, mark, text = name.rpartition("@")
    if not mark or name.partition(":")[0] not in TUNABLE:
        return name, None
    try:
        tau = float(text)
    except ValueError:
        return name, None
    if not 0 <= tau <= 1:
        raise ConfigError(f"policy {name!r}: the threshold {text} is not between 0 and 1")
    return plain, tau


def named_models(policy: str) -> set[str]:
    """The models that the name of a policy names."""
    return {model for model in split_tau(policy)[0].partition(":")[2].split(",") if model}


FORMS = (
    "one of r2, single:MODEL, cot:MODEL, tot:MODEL, datashunt:SMALL,LARGE, dot:SMALL,LARGE, random, "
    "final-only:SMALL,LARGE, cascade:M1,M2,..., a policy of serving such as all:MODEL, your own as "
    "MODULE:NAME, or all"
)


def random_policy(shares: dict[str, float]) -> EvalPolicy:
    """Each subtask goes to a model drawn with these shares; without shares, uniformly from the pool."""
    weights = ",".join(f"{model}={share:.6g}" for model, share in shares.items())
    return Routed(RANDOM, f"random:{weights}" if weights else "random")


def all_policies(setting: Setting) -> tuple[str, ...]:
    """`all`: every kind of policy on a pool, each constant allocation, and the tuned baselines.

    SMALL of `final-only` is the third-largest model or the smallest one.
    """
    pool = setting.pool
    small, large = pool[max(0, len(pool) - 3)], pool[-1]
    left_out = without_confidence(setting)
    alone = (f"single:{model}" for model in pool)
    constant = (f"all:{model}" for model in pool)
    prompted = (f"cot:{large}", f"tot:{large}")
    final_only = (f"final-only:{small},{large}",) if small != large else ()
    kinds = [kind for kind in TUNABLE if kind not in left_out] if len(pool) > 1 else []
    tuned = tuple(f"{kind}:{TUNED}" for kind in kinds)
    return (R2, *alone, *constant, *prompted, *tuned, *final_only, RANDOM)


def without_confidence(setting: Setting) -> tuple[str, ...]:
    """The kinds of policies that no models of the pool can have, as they read the confidence of a model that
    another one follows."""
    return BY_CONFIDENCE if setting.mute.issuperset(setting.pool[:-1]) else ()


def reads_nothing(kind: str, models: Sequence[str], setting: Setting) -> bool:
    """Whether a policy of this kind reads the confidence of a model that reports none."""
    return kind in BY_CONFIDENCE and not setting.mute.isdisjoint(models[:-1])


def fixed(name: str, setting: Setting) -> str:
    """The policy in place of `KIND:tuned` where there are too few tasks to tune on.

    It has the third-largest model or the smallest one, and the largest; `cascade` has the whole pool. Models
    whose confidence it reads must report one.
    """
    kind = name.partition(":")[0]
    mute = setting.mute if kind in BY_CONFIDENCE else frozenset()
    pool = [*(model for model in setting.pool[:-1] if model not in mute), setting.pool[-1]]
    models = pool if kind == "cascade" else (pool[max(0, len(pool) - 3)], pool[-1])
    return f"{kind}:{','.join(models)}"
