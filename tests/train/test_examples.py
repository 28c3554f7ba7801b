"""Examples hold what serving asks and what it reads."""

from __future__ import annotations

import json

from r2_serve.config import RouterConfig
from r2_serve.prompts.conversation import asked
from r2_serve.types import Allocation
from r2_train.rollouts.described_pool import DescribedPool
from r2_train.stages.examples import allocated_plan_example
from tests.support.in_process import model as card
from tests.support.in_process import plan_of, routing

NAMES = ("small", "large", "decomposer", "allocator")


def test_decomposer_that_allocates_learns_the_reply_that_serving_reads() -> None:
    config = RouterConfig(models=tuple(card(name) for name in NAMES))
    pool = DescribedPool(config, routing(decomposer={"allocates": True}), "r2")
    plan = plan_of("find the tower", "say how high #1 is")
    example = allocated_plan_example(pool, "t", "How high is it?", plan, ("small", "large"))
    codec, limits = pool.codec_of("decomposer"), pool.routing.limits
    prompt = codec.render_decompose(asked("How high is it?"), limits.max_subtasks, pool.cards)
    assert example.messages == tuple(prompt)
    assert example.target is not None and json.loads(example.target)
    read = codec.parse_allocated(example.target, "How high is it?", pool.cards)
    assert read == (plan, Allocation(models=("small", "large")))
