"""What providers of chat completions take of a conversation that came in another dialect."""

from __future__ import annotations

from typing import Any

from r2_serve.engines.portable import knows_developer, write_for_openai, write_portable
from r2_serve.types import Message, Sampling

IMAGE: Any = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
OTHER_DIALECT = Sampling(responses={})


def result(call_id: str, *parts: Any) -> Message:
    return Message(role="tool", content=parts, more={"tool_call_id": call_id})


def written(*messages: Message, sampling: Sampling = OTHER_DIALECT, write: Any = write_portable) -> Any:
    body = {"model": "m", "messages": [message.wire for message in messages]}
    return write(body, messages, sampling)["messages"]


def test_images_of_tool_results_follow_in_a_message_of_the_user() -> None:
    one, two, user, answer = written(
        result("1", {"type": "text", "text": "seen"}, IMAGE),
        result("2", IMAGE),
        Message(role="assistant", content="a cat"),
    )
    assert (one["role"], one["content"], two["role"]) == ("tool", "seen", "tool")
    assert isinstance(two["content"], str)
    assert user["role"] == "user" and [part["type"] for part in user["content"]] == ["text", "image_url"] * 2
    assert answer["role"] == "assistant"


def test_image_in_the_last_result_is_not_lost() -> None:
    assert [message["role"] for message in written(result("1", IMAGE))] == ["tool", "user"]


def test_conversation_of_a_chat_client_passes_as_it_came() -> None:
    (message,) = written(result("1", IMAGE), sampling=Sampling())
    assert message["content"] == (IMAGE,)


def test_developer_messages_are_system_messages_where_the_role_is_not_known() -> None:
    assert knows_developer("https://api.openai.com/v1") and not knows_developer("http://127.0.0.1:8000/v1")
    asked = Message(role="developer", content="be short")
    for sampling in (OTHER_DIALECT, Sampling()):
        assert written(asked, sampling=sampling, write=write_for_openai)[0]["role"] == "developer"
        assert written(asked, sampling=sampling)[0]["role"] == "system"


def test_thoughts_go_only_to_providers_that_may_read_them() -> None:
    more = {"reasoning_content": "two and two", "thinking_blocks": [{"type": "thinking"}]}
    thought = Message(role="assistant", content="four", more=more)
    for sampling in (OTHER_DIALECT, Sampling()):
        assert written(thought, sampling=sampling, write=write_for_openai)[0].keys() == {"role", "content"}
    assert written(thought)[0].keys() == {"role", "content", "reasoning_content"}
    assert written(thought, sampling=Sampling())[0].keys() == {"role", "content", *more}
