"""Every client: its script in `clients/`, the package whose version is shown, and where that is installed."""

from __future__ import annotations

from dataclasses import dataclass

FEATURES = {
    "plain": "plain",
    "streamed": "streamed",
    "tools": "tools",
    "tools_streamed": "tools, streamed",
    "image": "image",
    "structured": "structured",
    "history": "history",
    "usage": "usage",
    "reasoning": "reasoning",
    "errors": "errors",
    "models": "models",
}
"""Titles of the columns."""


@dataclass(frozen=True)
class Client:
    """One row of the table."""

    name: str
    """The name on the command line."""
    label: str
    script: str
    package: str
    environment: str = "venv"
    """Virtual environment of the package, or `node`."""
    is_agent: bool = True
    """Whether the table of all features has it; the others run a few checks alone."""


CLIENTS = (
    Client("openai_chat", "openai, chat", "openai_chat.py", "openai"),
    Client("openai_responses", "openai, Responses", "openai_responses.py", "openai"),
    Client("openai_node_chat", "openai for Node, chat", "openai_chat_node.mjs", "openai", "node"),
    Client(
        "openai_node_responses", "openai for Node, Responses", "openai_responses_node.mjs", "openai", "node"
    ),
    Client("agents_responses", "openai-agents, Responses", "openai_agents.py", "openai-agents"),
    Client("agents_chat", "openai-agents, chat", "openai_agents.py", "openai-agents"),
    Client("langchain_chat", "LangChain agent, chat", "langchain_agent.py", "langchain"),
    Client("langchain_responses", "LangChain agent, Responses", "langchain_agent.py", "langchain"),
    Client("ai_sdk_openai", "@ai-sdk/openai, Responses", "ai_sdk.mjs", "@ai-sdk/openai", "node"),
    Client(
        "ai_sdk_compatible", "@ai-sdk/openai-compatible", "ai_sdk.mjs", "@ai-sdk/openai-compatible", "node"
    ),
    Client("litellm", "LiteLLM, chat", "litellm_sdk.py", "litellm"),
    Client("instructor", "instructor, chat", "instructor_sdk.py", "instructor", "venv-instructor"),
    Client("pydantic_ai_chat", "pydantic-ai, chat", "pydantic_ai_agent.py", "pydantic-ai-slim"),
    Client("pydantic_ai_responses", "pydantic-ai, Responses", "pydantic_ai_agent.py", "pydantic-ai-slim"),
    Client("pydantic_ai_messages", "pydantic-ai, Messages", "pydantic_ai_agent.py", "pydantic-ai-slim"),
    Client("anthropic", "anthropic, Messages", "anthropic_sdk.py", "anthropic"),
    Client("opencode", "opencode, chat", "opencode.py", "opencode-ai", "node"),
    Client("codex", "codex, Responses", "codex.py", "@openai/codex", "node"),
    Client("claude_code", "Claude Code, Messages", "claude_code.py", "@anthropic-ai/claude-code", "node"),
    Client("llm", "llm", "llm_command.py", "llm", is_agent=False),
    Client("lm_eval", "lm-evaluation-harness", "lm_eval_chat.py", "lm_eval", is_agent=False),
    Client("inspect", "inspect-ai", "inspect_model.py", "inspect-ai", is_agent=False),
    Client("schema", "schemathesis", "schema.py", "schemathesis", is_agent=False),
)
