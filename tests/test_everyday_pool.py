"""The shipped pool of everyday problems: what its config says is what the manifest measured."""

from __future__ import annotations

import json
from statistics import fmean

from r2_serve import EMBEDDED, EMBEDDED_CONFIG
from r2_serve.lab.domains import everyday_steps
from r2_serve.serve_config import load

MAX_BYTES = 8_000_000
MANIFEST = json.loads((EMBEDDED / "manifest.json").read_text())
SERVED = load(EMBEDDED_CONFIG)
POOL = [SERVED.router.model(name) for name in SERVED.routing.virtual_models["r2-everyday"].pool]


def test_prices_and_skills_of_the_config_are_those_of_the_manifest() -> None:
    assert [card.name for card in POOL] == MANIFEST["pools"]["everyday"]
    for card in POOL:
        entry = MANIFEST["models"][card.name]
        assert (
            int(card.usd_per_mtok_in * 1_000_000) == int(card.usd_per_mtok_out * 1_000_000) == entry["params"]
        )
        assert card.skills == {kind: rate for kind, rate in entry["metrics"].items() if rate >= 0.3}


def test_pool_has_nine_workers_in_three_groups_and_the_largest_is_the_strongest() -> None:
    assert len(POOL) == 9
    assert {card.group for card in POOL} == {"slm", "mlm", "llm"}
    assert sorted(POOL, key=lambda card: card.usd_per_mtok_out) == POOL
    means = [fmean(card.skills.get(kind, 0.0) for kind in everyday_steps.KINDS) for card in POOL]
    assert max(means) == means[-1]
    assert all(POOL[-1].skills[kind] >= 0.9 for kind in everyday_steps.KINDS)


def test_no_worker_is_the_best_at_its_price_everywhere() -> None:
    best = {
        kind: min(
            (card for card in POOL if card.skills.get(kind, 0.0) >= 0.97),
            key=lambda card: card.usd_per_mtok_out,
            default=POOL[-1],
        ).name
        for kind in everyday_steps.KINDS
    }
    assert len(set(best.values())) >= 5


def test_shipped_models_take_less_than_eight_megabytes() -> None:
    assert sum(path.stat().st_size for path in EMBEDDED.rglob("*") if path.is_file()) < MAX_BYTES
