"""lm-evaluation-harness: `local-chat-completions` with one generation. Its scores are not compared here."""

import os

from checks import ANSWER, BASE_URL, KEY, SPENT_KEY, check, not_offered, raised

os.environ["OPENAI_API_KEY"] = KEY
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalChatCompletion
from requests import HTTPError
from tenacity import RetryError


def ask(model: str, key: str = KEY) -> list[str]:
    os.environ["OPENAI_API_KEY"] = key
    lm = LocalChatCompletion(
        base_url=f"{BASE_URL}/chat/completions", model=model, num_concurrent=1, max_retries=1
    )
    question = lm.apply_chat_template([{"role": "user", "content": "Which is it?"}])
    request = Instance(
        "generate_until", {}, (question, {"until": ["\n\n"], "max_gen_toks": 64, "do_sample": False}), 0
    )
    return lm.generate_until([request])


def chat() -> None:
    assert ask("r2") == [ANSWER]


def status_of(model: str, key: str) -> int:
    """The status of the HTTP error that it gave up on."""
    error = raised((RetryError, HTTPError), lambda: ask(model, key))
    found = error.last_attempt.exception() if isinstance(error, RetryError) else error
    return found.response.status_code


def error() -> None:
    statuses = [status_of(model, key) for model, key in (("nope", KEY), ("r2", "wrong"), ("r2", SPENT_KEY))]
    assert statuses == [404, 401, 429], statuses


check("chat", chat)
check("error", error)
not_offered("stream", "usage", "models")
