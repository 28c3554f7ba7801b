"""What the config sections refuse, and what they say then."""

import pytest
from pydantic import BaseModel, ValidationError

from r2_serve.config import LimitsConfig, ServerConfig
from r2_serve.config.engines import SpeedConfig


@pytest.mark.parametrize(
    ("section", "field"),
    [
        (LimitsConfig, "deadline_s"),
        (LimitsConfig, "max_cost_usd"),
        (ServerConfig, "max_running"),
        (SpeedConfig, "decode_tokens_per_s"),
    ],
)
def test_yes_and_no_are_refused_as_numbers(section: type[BaseModel], field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        section.model_validate({field: True})
    assert {
        "loc": (field,),
        "msg": "must be a number, got true or false (YAML reads yes and no so, too)",
    } in [{"loc": error["loc"], "msg": error["msg"]} for error in caught.value.errors()]
