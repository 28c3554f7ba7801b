"""LangChain's ChatOpenAI."""

import openai
from checks import ANSWER, BASE_URL, HI, KEY, check, not_offered, raised
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

llm = ChatOpenAI(model="r2", base_url=BASE_URL, api_key=KEY, temperature=0)


class Shape(BaseModel):
    answer: str


def chat() -> None:
    assert llm.invoke("Which is it?").content == ANSWER
    assert llm.invoke([("system", "Be brief."), ("user", "Which is it?")]).content == ANSWER
    assert [reply.content for reply in llm.batch(["a", "b"])] == [ANSWER, ANSWER]


def stream() -> None:
    assert "".join(chunk.content for chunk in llm.stream("Which is it?")) == ANSWER


def usage() -> None:
    assert llm.invoke("Which is it?").usage_metadata["total_tokens"] > 0
    last = None
    for chunk in ChatOpenAI(model="r2", base_url=BASE_URL, api_key=KEY, stream_usage=True).stream(
        "Which is it?"
    ):
        last = chunk if last is None else last + chunk
    assert last.usage_metadata["output_tokens"] > 0


def error() -> None:
    assert raised(
        openai.NotFoundError, lambda: ChatOpenAI(model="nope", base_url=BASE_URL, api_key=KEY).invoke("x")
    ).code
    raised(
        openai.AuthenticationError,
        lambda: ChatOpenAI(model="r2", base_url=BASE_URL, api_key="wrong").invoke("x"),
    )
    assert raised(openai.BadRequestError, lambda: llm.bind_tools([Shape]).invoke("x")).param == "tools"


for claim in (chat, stream, usage, error):
    check(claim.__name__, claim)
assert HI
not_offered("models")
