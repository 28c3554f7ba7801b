"""What the grammar of plans admits, token by token, for the transformers engine and for GRPO's rollouts."""

from __future__ import annotations

import json

import pytest

from r2_serve.prompts import get_codec

torch = pytest.importorskip("torch")
pytest.importorskip("xgrammar")
pytestmark = [pytest.mark.engine, pytest.mark.smoke]

from r2_serve.engines.grammar import Grammars  # noqa: E402
from r2_train.stages.model_files import load_tokenizer  # noqa: E402
from tests.support.tiny_checkpoint import tool_checkpoint  # noqa: E402


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> object:
    return load_tokenizer(tool_checkpoint(tmp_path_factory.mktemp("characters")))


def admitted(tokenizer: object, schema: dict[str, object], reply: str) -> str:
    """The beginning of `reply` that a model may write."""
    vocabulary = len(tokenizer)  # type: ignore[arg-type]
    constraint, taken = Grammars(tokenizer, vocabulary, [1]).constraint(schema), 0  # type: ignore[arg-type]
    for character in reply:
        logits = torch.zeros(vocabulary)
        constraint.apply(logits)
        token = tokenizer.convert_tokens_to_ids(character)  # type: ignore[attr-defined]
        if logits[token] < 0:
            break
        constraint.accept(token)
        taken += 1
    return reply[:taken]


@pytest.mark.parametrize("text", ["3 plus 9", "#1 and #2", "(a) find it", "...", " ", "--", "........a"])
def test_steps_without_a_word_cannot_be_written(tokenizer: object, text: str) -> None:
    """A model copied the `...` of its prompt into each step, and every such plan was refused afterwards."""
    schema = get_codec("instruct").plan_schema(2)
    assert schema is not None
    step = {"id": 1, "text": text, "depends_on": [], "needs_query": True}
    reply = json.dumps({"subtasks": [step]})
    is_step = any(map(str.isalnum, text[:6]))
    assert (admitted(tokenizer, schema, reply) == reply) == is_step
