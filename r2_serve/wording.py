"""The errors of pydantic in words for people who do not know Python."""

from __future__ import annotations

_PLAIN = {
    "decimal": "a number such as 0.25",
    "float": "a number such as 0.25",
    "int": "a whole number",
    "bool": "true or false",
    "tuple": "a list such as [a, b]",
    "list": "a list such as [a, b]",
    "set": "a list such as [a, b]",
    "frozen": "a list such as [a, b]",
    "dict": "a mapping of keys to values",
}
"""What is expected, by the first word of the type of pydantic's error."""


def in_plain_words(kind: str, message: str) -> str:
    """Pydantic's message of an error of the type `kind`, without the words of Python's types."""
    if kind == "missing":
        return "is missing"
    message = message.removeprefix("Value error, ")
    wanted = message.removeprefix("Input should be ")
    if wanted == message:
        return message
    first, _, rest = kind.partition("_")
    if rest in ("parsing", "type", "from_float", "set_type"):
        wanted = _PLAIN.get(first, wanted)
    return f"expected {'a number ' if wanted.startswith(('greater', 'less')) else ''}{wanted}"
