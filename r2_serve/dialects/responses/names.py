"""Tools of the Responses API as tools of chat completions, and the names by which calls find their way back.

Chat completions know functions. So the other tools that a client runs itself become functions too: a custom
tool takes its free text as the one argument `input`, and a tool of a namespace has the name
`NAMESPACE__TOOL`. A model's call of such a function is given to the client as what it asked for.

Tools that the provider runs (`web_search`, `file_search`, `code_interpreter`, `mcp`, ...) cannot be said in
chat completions. Where the model may choose among other tools, they are left out, and the reply names them;
a request that has no others, or that demands one, is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256

from r2_serve.dialects.shapes import as_objects, object_in
from r2_serve.errors import InvalidRequest
from r2_serve.types import Json

MAX_NAME_CHARS = 64
"""The longest name of a function that chat completions take."""
INPUT = {"type": "string", "description": "The whole input of the tool, as plain text."}
_FUNCTION_KEYS = ("name", "description", "parameters")
_WITHOUT_EFFECT = frozenset({"type", "strict", "format", *_FUNCTION_KEYS})


@dataclass
class ToolNames:
    """The tools of one request, by the name that the model sees."""

    tools: list[Json] = field(default_factory=list)
    """The tools in the shape of chat completions."""
    custom: set[str] = field(default_factory=set)
    searches: set[str] = field(default_factory=set)
    """Tools with which the client searches for more tools."""
    spaced: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Namespace and name of each tool in a namespace."""
    left_out: list[str] = field(default_factory=list)
    """Paths of the tools and fields that cannot be said, with their kinds."""
    _known: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, tools: Sequence[Json], where: str = "tools") -> ToolNames:
        """Raises: InvalidRequest if a tool has no name."""
        names = cls()
        names.add(tools, where)
        return names

    def add(self, tools: Sequence[Json], where: str) -> None:
        """Takes further tools, such as those that a search of the client has found."""
        for position, tool in enumerate(tools):
            self._add(tool, f"{where}.{position}")

    def _add(self, tool: Json, where: str, namespace: str | None = None) -> None:
        match tool.get("type"):
            case "function":
                self._add_function(tool, where, namespace)
            case "custom":
                self.custom.add(self._add_function(_as_function(tool), where, namespace))
            case "tool_search" if tool.get("execution") == "client":
                self.searches.add(self._add_function(_as_search(tool), where, None))
            case "namespace":
                for position, member in enumerate(as_objects(tool.get("tools"))):
                    self._add(member, f"{where}.tools.{position}", _name(tool, where))
            case kind:
                self.left_out.append(f"{where} ({kind})")

    def _add_function(self, tool: Json, where: str, namespace: str | None) -> str:
        name = _name(tool, where)
        flat = flat_name(name, namespace)
        if namespace is not None:
            self.spaced[flat] = (namespace, name)
        function = {key: tool[key] for key in _FUNCTION_KEYS if tool.get(key) is not None}
        strict = {"strict": True} if tool.get("strict") else {}
        self.left_out += [f"{where}.{key}" for key in _unsaid(tool)]
        if flat not in self._known:
            self.tools.append({"type": "function", "function": {**function, "name": flat, **strict}})
        self._known.add(flat)
        return flat

    def call_item(self, name: str, call_id: str, arguments: str) -> Json:
        """The item of a model's call, without `id` and `status`."""
        namespace, tool = self.spaced.get(name, (None, name))
        space: Json = {} if namespace is None else {"namespace": namespace}
        if name in self.custom:
            text = free_text(arguments)
            return {"type": "custom_tool_call", "call_id": call_id, "name": tool, "input": text, **space}
        if name in self.searches:
            asked = {"call_id": call_id, "execution": "client", "arguments": object_in(arguments)}
            return {"type": "tool_search_call", **asked}
        call: Json = {"call_id": call_id, "name": tool, "arguments": arguments}
        return {"type": "function_call", **call, **space}

    def is_plain(self, name: str) -> bool:
        """Whether the arguments of a call go to the client piece by piece, as the model writes them."""
        return name not in self.custom and name not in self.searches


def flat_name(name: str, namespace: object) -> str:
    """The name of a tool in a namespace; one that would be too long ends in a digest."""
    flat = name if not namespace else f"{namespace}__{name}"
    if len(flat) <= MAX_NAME_CHARS:
        return flat
    return f"{flat[: MAX_NAME_CHARS - 9]}_{sha256(flat.encode()).hexdigest()[:8]}"


def free_text(arguments: str) -> str:
    """The input in the arguments of a custom tool; the arguments themselves if a model wrote no such JSON."""
    found = object_in(arguments).get("input")
    return found if isinstance(found, str) else arguments


def chat_choice(choice: object, names: ToolNames) -> object:
    """`tool_choice` of chat completions. Raises: InvalidRequest for a tool that cannot be said."""
    if choice is None or isinstance(choice, str):
        return choice
    if not isinstance(choice, dict):
        raise InvalidRequest("tool_choice must be a string or an object", "tool_choice", "invalid_type")
    if choice.get("type") == "allowed_tools":
        tools = enumerate(as_objects(choice.get("tools")))
        allowed = [_chosen(tool, f"tool_choice.tools.{position}") for position, tool in tools]
        return {"type": "allowed_tools", "allowed_tools": {"mode": choice.get("mode"), "tools": allowed}}
    return _chosen(choice, "tool_choice")


def _chosen(choice: Json, where: str) -> Json:
    if choice.get("type") not in ("function", "custom"):
        raise InvalidRequest(
            f"{where}: the tool {choice.get('type')!r} is run by the provider, and this model is not asked "
            "in the Responses dialect: choose a function or a custom tool",
            where,
            "unsupported_value",
        )
    name = flat_name(_name(choice, where), choice.get("namespace"))
    return {"type": "function", "function": {"name": name}}


def check_left_out(names: ToolNames, choice: object) -> None:
    """Raises: InvalidRequest if no tool is left, or if some are left out and a tool must be called."""
    kinds = [path for path in names.left_out if path.endswith(")")]
    if kinds and (not names.tools or choice == "required"):
        raise InvalidRequest(
            f"{kinds[0]}: this tool is run by the provider, and this model is not asked in the Responses "
            "dialect: leave it out, or ask a model whose engine is of kind openai-responses",
            kinds[0].split(" ")[0],
            "unsupported_tool",
        )


def _as_function(tool: Json) -> Json:
    """A custom tool as a function. Its grammar, which only OpenAI's models keep to, joins its description."""
    text, form = str(tool.get("description") or ""), tool.get("format")
    if isinstance(form, dict) and form.get("type") == "grammar":
        text += f"\n\nThe input must match this {form.get('syntax')} grammar:\n{form.get('definition')}"
    parameters = {"type": "object", "properties": {"input": INPUT}, "required": ["input"]}
    return {
        **tool,
        "description": text.strip(),
        "parameters": {**parameters, "additionalProperties": False},
    }


def _as_search(tool: Json) -> Json:
    """A client's search for more tools as a function."""
    return {**{key: tool[key] for key in tool if key != "execution"}, "name": "tool_search"}


def _unsaid(tool: Json) -> list[str]:
    return [key for key, value in tool.items() if value is not None and key not in _WITHOUT_EFFECT]


def _name(tool: Json, where: str) -> str:
    name = tool.get("name")
    if not isinstance(name, str) or not name:
        raise InvalidRequest(f"{where}.name is missing", f"{where}.name", "missing_required_parameter")
    return name
