"""What the errors of real providers mean, in their own words."""

from __future__ import annotations

import json
from typing import Any

import pytest

from r2_serve.engines.provider_errors import failure_from_body, failure_from_status
from r2_serve.errors import (
    ContextOverflow,
    EngineError,
    EngineRefused,
    EngineUnavailable,
    InvalidReply,
    NotStarted,
    OperatorFault,
)

OVERFLOWS = {
    "OpenAI": "This model's maximum context length is 8192 tokens. However, your messages resulted in 8545 "
    "tokens. Please reduce the length of the messages.",
    "OpenAI Responses": "Your input exceeds the context window of this model. Please adjust your input.",
    "Anthropic": "prompt is too long: 213462 tokens > 200000 maximum",
    "Anthropic with its reply": "input length and `max_tokens` exceed context limit: 188240 + 21333 > "
    "200000, decrease input length or `max_tokens` and try again",
    "vLLM": "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens.",
    "vLLM decoder": "The decoder prompt (length 5000) is longer than the maximum model length of 4096.",
    "vLLM now": "'max_tokens' or 'max_completion_tokens' is too large: 5000. This model's maximum context "
    "length is 4096 tokens and your request has 100 input tokens.",
    "SGLang": "The input (9000 tokens) is longer than the model's context length (8192 tokens).",
    "DeepSeek": "This model's maximum context length is 65536 tokens. However, you requested 70000 tokens",
    "DashScope": "<400> InternalError.Algo.InvalidParameter: Range of input length should be [1, 129024]",
    "DashScope total": "Total message token length exceed model limit (1000000 tokens).",
    "Gemini": "The input token count (1196265) exceeds the maximum number of tokens allowed (1048575).",
    "Mistral": "Prompt contains 40960 tokens and 0 draft tokens, too large for model with 32768 maximum "
    "context length",
    "Together": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 8193. Given: 9000",
    "llama.cpp": "the request exceeds the available context size, try increasing it",
    "llama.cpp now": "request (5000 tokens) exceeds the available context size (4096 tokens)",
    "Ollama": "the input length exceeds the context length",
    "Ollama cloud": "prompt too long; exceeded max context length by 12 tokens",
    "LM Studio": "The number of tokens to keep from the initial prompt is greater than the context length.",
    "xAI": "This model's maximum prompt length is 131072 but the request contains 537812 tokens.",
    "Groq": "Please reduce the length of the messages or completion.",
    "Moonshot": "Invalid request: Your request exceeded model token limit: 262144 (requested: 300000)",
    "MiniMax": "invalid params, context window exceeds limit (2013)",
    "Zhipu": "Prompt exceeds max length",
    "Bedrock": "Input is too long for requested model.",
    "Copilot": "prompt token count of 140000 exceeds the limit of 128000",
    "Fireworks": "The prompt is too long: 9000, model maximum context length: 8192",
}


@pytest.mark.parametrize("provider", OVERFLOWS)
@pytest.mark.parametrize("status", [400, 413, 422, 500])
def test_prompt_that_is_too_long_is_known_in_the_words_of_every_provider(provider: str, status: int) -> None:
    error = {"message": OVERFLOWS[provider], "type": "invalid_request_error", "code": None}
    failure = failure_from_body(status, {"error": error})
    assert type(failure) is ContextOverflow
    assert (failure.status, failure.code) == (400, "context_length_exceeded")
    assert failure.message == OVERFLOWS[provider]


NOT_OVERFLOWS: dict[str, tuple[int, str]] = {
    "too many tokens a minute": (429, "Request too large for gpt-4o on tokens per min (TPM): Limit 30000"),
    "the same as 413": (413, "Request too large for model `x` on tokens per minute (TPM): Limit 6000"),
    "too long a reply": (400, "max_tokens is too large: 100000. This model supports at most 16384 tokens"),
    "a body of too many bytes": (413, "Request exceeds the maximum size"),
}


@pytest.mark.parametrize("case", NOT_OVERFLOWS)
def test_another_limit_is_not_taken_for_a_prompt_that_is_too_long(case: str) -> None:
    status, text = NOT_OVERFLOWS[case]
    failure = failure_from_body(status, {"error": {"message": text}})
    assert not isinstance(failure, ContextOverflow)
    assert failure.status == status


BODIES: dict[str, tuple[int | None, Any, type[EngineError], tuple[int, str, str | None, str | None], str]] = {
    "a parameter of OpenAI's": (
        400,
        {
            "error": {
                "message": "Unsupported value: 'temperature'",
                "type": "invalid_request_error",
                "param": "temperature",
                "code": "unsupported_value",
            }
        },
        EngineRefused,
        (400, "invalid_request_error", "unsupported_value", "temperature"),
        "Unsupported value: 'temperature'",
    ),
    "a filter of Azure's": (
        400,
        {
            "error": {
                "message": "The response was filtered due to the prompt triggering Azure OpenAI's content "
                "management policy.",
                "type": None,
                "param": "prompt",
                "code": "content_filter",
            }
        },
        EngineRefused,
        (400, "invalid_request_error", "content_filter", "prompt"),
        "The response was filtered",
    ),
    "a risk of DeepSeek's": (
        400,
        {"error": {"message": "Content Exists Risk", "type": "invalid_request_error"}},
        EngineRefused,
        (400, "invalid_request_error", "content_filter", None),
        "Content Exists Risk",
    ),
    "moderation by OpenRouter": (
        403,
        {"error": {"code": 403, "message": "Your chosen model requires moderation and was flagged"}},
        EngineRefused,
        (400, "invalid_request_error", "content_filter", None),
        "flagged",
    ),
    "an overflow behind OpenRouter": (
        400,
        {
            "error": {
                "code": 400,
                "message": "Provider returned error",
                "metadata": {"raw": "prompt is too long: 213462 tokens > 200000 maximum"},
            }
        },
        ContextOverflow,
        (400, "invalid_request_error", "context_length_exceeded", None),
        "Provider returned error",
    ),
    "a list by Gemini": (
        400,
        [{"error": {"code": 400, "message": "Please use a valid role", "status": "INVALID_ARGUMENT"}}],
        EngineRefused,
        (400, "invalid_request_error", None, None),
        "Please use a valid role",
    ),
    "a wrong key at Gemini": (
        400,
        [{"error": {"code": 400, "message": "API key not valid. Please pass a valid API key."}}],
        OperatorFault,
        (502, "api_error", "upstream_misconfigured", None),
        "API key not valid",
    ),
    "a text by Ollama": (
        400,
        {"error": "json: cannot unmarshal"},
        EngineRefused,
        (400, "invalid_request_error", None, None),
        "json: cannot unmarshal",
    ),
    "a model that DeepSeek does not know": (
        400,
        {"error": {"message": "Model Not Exist", "type": "invalid_request_error"}},
        OperatorFault,
        (502, "api_error", "upstream_misconfigured", None),
        "Model Not Exist",
    ),
    "a low balance at Anthropic": (
        400,
        {
            "type": "error",
            "error": {"type": "invalid_request_error", "message": "Your credit balance is too low"},
        },
        OperatorFault,
        (502, "api_error", "upstream_misconfigured", None),
        "credit balance",
    ),
    "a file that is not there": (
        404,
        {"error": {"message": "No such File", "type": "invalid_request_error", "param": "file_id"}},
        EngineRefused,
        (404, "invalid_request_error", None, "file_id"),
        "No such File",
    ),
    "details of FastAPI": (
        422,
        {"detail": [{"loc": ["body", "n"], "msg": "too many"}]},
        EngineRefused,
        (422, "invalid_request_error", None, None),
        "too many",
    ),
    "a rate limit of Mistral's": (
        429,
        {"object": "error", "message": "Requests rate limit exceeded", "type": "requests", "code": "1300"},
        NotStarted,
        (429, "requests", "rate_limit_exceeded", None),
        "Requests rate limit exceeded",
    ),
    "an overloaded Anthropic": (
        529,
        {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}},
        EngineUnavailable,
        (503, "overloaded_error", "upstream_unavailable", None),
        "Overloaded",
    ),
    "an overloaded Anthropic within a stream": (
        None,
        {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}},
        EngineUnavailable,
        (503, "overloaded_error", "upstream_unavailable", None),
        "Overloaded",
    ),
    "a request that is wrong, within a stream": (
        None,
        {"error": {"type": "invalid_request_error", "message": "no such tool", "param": "tools"}},
        EngineRefused,
        (400, "invalid_request_error", None, "tools"),
        "no such tool",
    ),
    "an error of no kind": (
        None,
        {"error": {"message": "it broke"}},
        InvalidReply,
        (502, "api_error", "invalid_upstream_reply", None),
        "it broke",
    ),
}


@pytest.mark.parametrize("case", BODIES)
def test_error_keeps_what_the_client_can_act_on(case: str) -> None:
    status, body, kind, shown, text = BODIES[case]
    failure = failure_from_body(status, body)
    assert type(failure) is kind
    assert (failure.status, failure.kind, failure.code, failure.param) == shown
    assert text in failure.message


@pytest.mark.parametrize("status", [301, 401, 402, 403, 404, 405])
def test_refusal_of_the_routers_own_key_or_address_is_never_the_clients(status: int) -> None:
    failure = failure_from_status(status, {}, b"<html>no</html>")
    assert isinstance(failure, OperatorFault)
    assert (failure.status, failure.is_lasting) == (502, True)
    assert f"status {status}" in failure.message and "operator" in failure.message


def test_wait_that_the_provider_asks_for_is_kept() -> None:
    body = json.dumps({"error": {"message": "slow down"}}).encode()
    failure = failure_from_status(429, {"retry-after": "7"}, body)
    assert isinstance(failure, NotStarted)
    assert (failure.status, failure.retry_after_s, failure.args) == (429, 7.0, ("slow down", 7.0))
