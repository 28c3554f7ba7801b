"""A router on a changed pool is compared with the one that was trained anew for it."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from benchmarks.recovery import REFIT, recovered, refitting
from r2_serve.lab.ladder.study import Row
from r2_train.config import load_config
from r2_train.retrain import CONFIGS

pytestmark = pytest.mark.train


def row(num_right: int, usd: float) -> Row:
    right = (np.arange(100) < num_right).astype(float)
    return Row("r2", right, np.full(100, usd), np.zeros(100), {})


def test_the_share_is_the_saving_over_that_of_the_router_that_was_trained_anew() -> None:
    full, largest = row(97, 4.0), row(95, 10.0)
    found = recovered("without x", "as it was", row(96, 5.5), full, largest)
    assert found.saving == pytest.approx(0.45)
    assert found.share == pytest.approx(4.5 / 6)
    assert found.share_ci95 == pytest.approx((0.75, 0.75)), "every problem costs the same"
    assert found.points == pytest.approx(-1.0)
    assert recovered("without x", "trained anew", full, full, largest).share == 1.0


def test_a_refit_starts_from_the_checkpoint_and_keeps_the_other_settings_of_the_trainer() -> None:
    config = load_config(CONFIGS / "embedded-everyday.yaml")
    refit = refitting(config, "there").allocator.sft
    assert (refit.base, refit.fresh) == ("there", False)
    assert refit.trainer == {**config.allocator.sft.trainer, **REFIT}
