"""Whether a simulated query goes whole to one model, as `plan` of its virtual model says.

With `plan: auto` the rules are those of `router.plan_or_not`, by the true lengths of answers, which the
router has to expect. So a plan that the router would drop once it knows its cost is not sampled here.
"""

from __future__ import annotations

from collections.abc import Mapping

from r2_serve.config import VirtualModelConfig
from r2_serve.lab.simulate.sizes import Sizes
from r2_serve.lab.simulate.system import PooledModel
from r2_serve.router.plan_or_not import SHORT_QUERY_TOKENS


def goes_whole(virtual: VirtualModelConfig, models: Mapping[str, PooledModel], sizes: Sizes) -> bool:
    """Whether the query is answered by one call of the default model."""
    if virtual.policy.startswith("one:") or virtual.plan == "never":
        return True
    if virtual.plan == "always":
        return False

    def usd(name: str, prompt_tokens: float, reply_tokens: float) -> float:
        return models[name].usd_per_token_in * prompt_tokens + models[name].usd_per_token_out * reply_tokens

    direct = usd(virtual.fallback_model, sizes.text, sizes.replies[-1])
    planning = usd(virtual.decomposer.model, sizes.plan_prompt, sizes.plan_reply)
    if virtual.policy == "learned" and not virtual.decomposer.allocates:
        planning += usd(virtual.allocator.model, sizes.pick_prompt, sizes.pick_reply)
    steps = sum(map(usd, sizes.form.models, sizes.prompts, sizes.replies))
    is_short = virtual.plan_file is None and sizes.text < SHORT_QUERY_TOKENS
    return is_short or steps >= direct or planning > float(virtual.planning_share) * direct
