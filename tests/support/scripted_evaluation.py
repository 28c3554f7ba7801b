"""Sums as an evaluation: tasks, scripted models that solve them, and runners over both.

`small` answers a whole question wrongly if its first number is divisible by 3, and is then unsure of it; it
answers every single step correctly. `large` answers everything correctly. So the answer of each policy is
known in advance.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from r2_serve.config import (
    AllocatorConfig,
    DecomposerConfig,
    ModelConfig,
    RouterConfig,
    RoutingConfig,
    VirtualModelConfig,
)
from r2_serve.engines.scripted import Reply, ScriptedEngine
from r2_serve.grading.graders import Grader
from r2_serve.grading.rows import Task, task_of
from r2_serve.lab.evaluation.asker import Asker, InProcessAsker
from r2_serve.lab.evaluation.booked import Keeper, booked_engines
from r2_serve.lab.evaluation.desk import Setting
from r2_serve.lab.evaluation.manifest import Manifest, data_sha256, pool_models, queries_sha256, setting_of
from r2_serve.lab.evaluation.policies import PolicyConfig
from r2_serve.lab.evaluation.runner import Examiner, OnRow, Runner, RunOptions
from r2_serve.types import Completion, Engine, Message, Sampling, Usage
from tests.support.in_process import allocation_json, model, plan_json

NAMES = ("small", "large", "decomposer", "allocator")
PAIR = "small,large"
POLICIES = (
    "r2",
    "single:small",
    "single:large",
    "cot:large",
    "tot:small",
    f"datashunt:{PAIR}",
    f"dot:{PAIR}",
    "random",
    f"final-only:{PAIR}",
    f"cascade:{PAIR}",
)
Script = Callable[[Sequence[Message], Sampling], Reply]


def sums(num_tasks: int) -> tuple[Task, ...]:
    """`Add i and 2i.`, i from 1."""
    return tuple(
        task_of("words", {"id": f"sum-{i}", "query": f"Add {i} and {2 * i}.", "gold": str(3 * i)})
        for i in range(1, num_tasks + 1)
    )


def numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def question(messages: Sequence[Message]) -> str:
    """What the client asked, without our text after it."""
    return messages[-1].text.partition("\n\n<")[0]


def decompose(messages: Sequence[Message], sampling: Sampling) -> Reply:
    first, second = numbers(question(messages))
    return plan_json(f"recall {first}", f"recall {second}", "add #1 and #2")


def small(messages: Sequence[Message], sampling: Sampling) -> Reply:
    return _worker(messages, sampling, is_weak=True)


def large(messages: Sequence[Message], sampling: Sampling) -> Reply:
    return _worker(messages, sampling, is_weak=False)


def _worker(messages: Sequence[Message], sampling: Sampling, *, is_weak: bool) -> Reply:
    prompt = messages[-1].content
    if "Do not answer yet. Split" in prompt:
        return decompose(messages, sampling)
    if messages[0].content.startswith("You judge how hard"):
        return "hard" if numbers(prompt)[0] % 3 == 0 else "easy"
    if messages[0].content.startswith("You judge a proposed"):
        return "9"
    if "<step>" in prompt:
        return _completion(_step(prompt), 0.99, sampling)
    is_wrong = is_weak and numbers(prompt)[0] % 3 == 0
    return _completion("0" if is_wrong else str(sum(numbers(prompt))), 0.5 if is_wrong else 0.99, sampling)


def _step(prompt: str) -> str:
    step = prompt.rpartition("<step>\n")[2]
    if step.startswith("recall"):
        return str(numbers(step)[0])
    return str(sum(int(answer) for answer in re.findall(r"^=> (\d+)$", prompt, re.MULTILINE)[-2:]))


def _completion(text: str, probability: float, sampling: Sampling) -> Reply:
    logprobs = (math.log(probability),) * 2 if sampling.logprobs else None
    return Completion(
        text=text, usage=Usage(prompt_tokens=10, completion_tokens=2), finish_reason="stop", logprobs=logprobs
    )


def scripts(**changed: Script | Sequence[Reply]) -> dict[str, Any]:
    allocation = [allocation_json("small", "small", "large")]
    return {"small": small, "large": large, "decomposer": decompose, "allocator": allocation, **changed}


def configs(**cards: Any) -> tuple[RouterConfig, RoutingConfig]:
    virtual = VirtualModelConfig(
        pool=("small", "large"),
        decomposer=DecomposerConfig(model="decomposer", num_samples=1),
        allocator=AllocatorConfig(model="allocator"),
        plan="always",
    )
    models = tuple(model(name, **cards) for name in NAMES)
    return RouterConfig(models=models), RoutingConfig(virtual_models={"r2": virtual})


def engines_of(replies: Mapping[str, Any]) -> dict[str, ScriptedEngine]:
    return {name: ScriptedEngine(reply) for name, reply in replies.items()}


def asker_of(engines: Mapping[str, Engine], keeper: Keeper | None = None, **cards: Any) -> Asker:
    def engine_for(card: ModelConfig) -> Engine:
        return engines[card.name]

    booked = engine_for if keeper is None else booked_engines(engine_for, {}, keeper)
    return InProcessAsker(*configs(**cards), booked)


def setting(**cards: Any) -> Setting:
    return setting_of(*configs(**cards), "r2")


def manifest_of(tasks: Sequence[Task], policies: Sequence[str], **changed: Any) -> Manifest:
    router, _ = configs()
    fields: dict[str, Any] = {
        "benchmark": "words",
        "data": "sums",
        "data_sha256": data_sha256(tasks),
        "queries_sha256": queries_sha256(tasks),
        "num_tasks": len(tasks),
        "split": "all",
        "limit": None,
        "policies": tuple(policies),
        "policy_config": PolicyConfig(),
        "seed": 0,
        "virtual_model": "r2",
        "pool": ("small", "large"),
        "models": pool_models(router),
        "prices_as_of": "",
        "endpoint": None,
        "config_sha256": "-",
        "code_version": "-",
    }
    return Manifest(**{**fields, **changed})


def runner_of(
    directory: Path,
    tasks: Sequence[Task],
    policies: Sequence[str],
    asker: Asker | None = None,
    *,
    on_row: OnRow | None = None,
    keeper: Keeper | None = None,
    **options: Any,
) -> Runner:
    """A run of `policies`; further keywords are `RunOptions`."""
    own = asker or asker_of(engines_of(scripts()))
    shown = {"on_row": on_row} if on_row else {}
    given = RunOptions(**options)
    examiner = Examiner(own, Grader(), setting())
    return Runner(directory, manifest_of(tasks, policies), tasks, examiner, given, keeper=keeper, **shown)


def lines_of(directory: Path, *, is_whole: bool = True) -> list[dict[str, Any]]:
    """Every row; where the run was killed, without a torn last line."""
    text = (directory / "rows.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines(keepends=True) if is_whole or line.endswith("\n")]
