"""The features that each client shows with each model, and one line of JSON per cell on standard output."""

from __future__ import annotations

import base64
import json
import os
import struct
import time
import traceback
import zlib
from collections.abc import Callable
from functools import partial

ROOT, KEY, SPENT_KEY = os.environ["R2_ROOT"], os.environ["R2_KEY"], os.environ["R2_SPENT_KEY"]
BASE_URL = f"{ROOT}/v1"
TARGETS = os.environ["R2_TARGETS"].split(",")
CLIENT = os.environ["R2_CLIENT"]
WANTED = os.environ.get("R2_FEATURES")

ANSWER = "The whole answer of six words."
THOUGHT = "The user wants an answer, so I weigh it."
CITIES = ("Oslo", "Rome")
TOLD = "The tools say: sun in Oslo; sun in Rome"
"""The answer after the results of `weather`."""
WEATHER_SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
REFUSED = "refused at try 1"
"""A part of the provider's message when it refuses a request with 400."""


class Impossible(Exception):
    """The feature cannot work, for the reason given; the check has seen that it is so."""


def weather(city: str) -> str:
    """The tool of every client."""
    return f"sun in {city}"


def call_both(note: str, tool: str = "weather") -> str:
    """A question that the scripted model answers with two calls at the same time."""
    return "\n".join([note, *(f"CALL {tool} {json.dumps({'city': city})}" for city in CITIES)])


def fails(status: int, times: int, note: str) -> str:
    """A question that the provider refuses some times."""
    return f"FAIL {status} x{times} #{note}"


def long_text(note: str) -> str:
    """A prompt of 2,000 tokens, which providers cache."""
    return f"{note} " + "Answer in the words of a careful clerk. " * 200


def png() -> bytes:
    """A picture of one red point."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\x00\xff\x00\x00")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


PNG = base64.b64encode(png()).decode()
DATA_URL = f"data:image/png;base64,{PNG}"
SEEN = f"I see image/png of {len(png())} bytes"

Feature = Callable[[str, str], object]
_features: dict[str, Feature | str] = {}


def feature(function: Feature) -> Feature:
    """Registers a feature: a function of the model's name and of a note, which is in no other cell, that
    raises where the feature does not work."""
    _features[function.__name__] = function
    return function


def impossible(reason: str, *names: str) -> None:
    """The client cannot show these features."""
    _features.update(dict.fromkeys(names, reason))


def run() -> None:
    """Runs every feature with every model."""
    for name, function in _features.items():
        for target in TARGETS if not WANTED or name in WANTED.split(",") else ():
            note = f"{CLIENT}-{target}-{name}"
            if isinstance(function, str):
                _print(target, name, "impossible", function)
            else:
                report(target, name, partial(function, target, note))


def report(target: str, name: str, claim: Callable[[], object]) -> None:
    """Runs `claim`, which raises where it does not hold, and may say what it saw."""
    started, outcome = time.monotonic(), "works"
    try:
        seen = claim()
        reason = seen if isinstance(seen, str) else ""
    except Impossible as e:
        outcome, reason = "impossible", str(e)
    except Exception as e:
        traceback.print_exc()
        outcome, reason = "failed", f"{type(e).__name__}: {e}"[:500]
    _print(target, name, outcome, reason, time.monotonic() - started)


def _print(target: str, name: str, outcome: str, reason: str, took_s: float = 0.0) -> None:
    cell = {"target": target, "feature": name, "outcome": outcome, "reason": reason}
    print("R2-CELL " + json.dumps({**cell, "took_s": round(took_s, 2)}), flush=True)


def raised(
    kinds: type[BaseException] | tuple[type[BaseException], ...], call: Callable[[], object]
) -> BaseException:
    """The error that `call` raises."""
    try:
        came = call()
    except kinds as e:
        return e
    raise AssertionError(f"no {kinds} was raised, but {came!r:.200} came")


def same(got: object, expected: object) -> None:
    """Raises: AssertionError with both values."""
    assert got == expected, f"got {got!r:.300}, expected {expected!r:.300}"
