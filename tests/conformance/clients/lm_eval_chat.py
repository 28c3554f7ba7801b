"""lm-evaluation-harness: `local-chat-completions`, one generation. Its scores are not compared here."""

import os

from cells import ANSWER, BASE_URL, KEY, SPENT_KEY, Impossible, feature, raised, run, same

os.environ["OPENAI_API_KEY"] = KEY
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalChatCompletion
from requests import HTTPError, Response
from tenacity import RetryError


def ask(model: str, text: str, key: str = KEY) -> list[str]:
    os.environ["OPENAI_API_KEY"] = key
    url = f"{BASE_URL}/chat/completions"
    lm = LocalChatCompletion(base_url=url, model=model, num_concurrent=1, max_retries=1)
    question = lm.apply_chat_template([{"role": "user", "content": text}])
    options = {"until": ["\n\n"], "max_gen_toks": 64, "do_sample": False}
    return lm.generate_until([Instance("generate_until", {}, (question, options), 0)])


def response_of(error: BaseException) -> Response:
    """What the endpoint answered when the client gave up."""
    found = error.last_attempt.exception() if isinstance(error, RetryError) else error
    return found.response


def check_seed(model: str, note: str) -> None:
    """Raises: Impossible for a model whose API has no `seed`, once the refusal is seen."""
    if model in ("responses", "messages"):
        refused = raised((RetryError, HTTPError), lambda: ask(model, note))
        assert "seed" in response_of(refused).text, refused
        raise Impossible("it always sends `seed`, which Responses and Messages do not have")


@feature
def plain(model: str, note: str) -> None:
    check_seed(model, note)
    same(ask(model, note), [ANSWER])


@feature
def errors(model: str, note: str) -> None:
    def status_of(asked: str, key: str) -> int:
        error = raised((RetryError, HTTPError), lambda: ask(asked, note, key))
        return response_of(error).status_code

    check_seed(model, note)
    asked = (("nope", KEY), (model, "wrong"), (model, SPENT_KEY))
    same([status_of(*each) for each in asked], [404, 401, 429])


run()
