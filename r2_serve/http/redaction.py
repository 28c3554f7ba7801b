"""Keeps secrets out of what is written: texts by value, and log records before any handler sees them.

A last line of defence. The first is that no secret is put into a text: the configuration names environment variables,
keys of clients are kept as digests, and the hosted engine says in its own words what went wrong.
"""

from __future__ import annotations

import json
import logging
import os
import re
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import Any

SECRET_NAME = re.compile(r"(KEY|KEYS|TOKEN|TOKENS|SECRET|SECRETS|PASSWORD|CREDENTIALS)$")
"""Environment variables taken to hold a secret, besides those that the configuration names."""
MIN_CHARS = 8
"""Shorter values are no secrets worth the name, and replacing them would tear ordinary texts apart."""
MARK = "[redacted]"
JSON_DEPTH = 2
"""A provider's error is often JSON, and ours holds its text: inside a trace it is escaped twice."""


class Redactor:
    """Replaces every known secret in a text, also where it stands escaped in JSON."""

    def __init__(self, secrets: Iterable[str]) -> None:
        forms = {form for secret in secrets if len(secret) >= MIN_CHARS for form in _forms(secret)}
        longest_first = sorted(forms, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    @classmethod
    def of(cls, environment: Mapping[str, str] = os.environ, names: Iterable[str | None] = ()) -> Redactor:
        """Of the values of variables that `names` lists or that are called like secrets; of lists, each item too."""
        wanted = {name for name in environment if SECRET_NAME.search(name)} | {
            name for name in names if name is not None
        }
        values = [environment.get(name, "").strip() for name in wanted]
        return cls([*values, *(item.strip() for value in values for item in value.split(","))])

    def __call__(self, text: str) -> str:
        return self._pattern.sub(MARK, text) if self._pattern is not None else text

    def __repr__(self) -> str:
        return "Redactor()"


def redacted(value: Any, redact: Callable[[str], str], *, spared: str) -> Any:
    """A JSON value with every string in it redacted, but for keys and for what stands under the key `spared`."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {
            name: item if name == spared else redacted(item, redact, spared=spared)
            for name, item in value.items()
        }
    if isinstance(value, list):
        return [redacted(item, redact, spared=spared) for item in value]
    return value


def _forms(secret: str) -> set[str]:
    """As it is, and as JSON has it, with characters beyond ASCII escaped or not."""
    forms = {secret}
    for _ in range(JSON_DEPTH):
        forms |= {
            json.dumps(form, ensure_ascii=is_ascii)[1:-1] for form in forms for is_ascii in (True, False)
        }
    return forms


class _RedactedLogs:
    """A factory of log records: what is made by it can be given to any logger and handler of the process."""

    def __init__(self, redact: Redactor) -> None:
        self.redact = redact
        self._make = logging.getLogRecordFactory()

    def __call__(self, *args: object, **kwargs: object) -> logging.LogRecord:
        record: logging.LogRecord = self._make(*args, **kwargs)
        try:
            message = record.getMessage()
        except (TypeError, ValueError, KeyError):
            return record  # a wrong format string: logging reports it itself
        if (redacted := self.redact(message)) != message:
            record.msg, record.args = redacted, None
        if record.exc_info and record.exc_info[0] is not None:
            text = "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")
            if (redacted := self.redact(text)) != text:
                record.exc_info, record.exc_text = None, redacted
        return record


def redact_logs(redact: Redactor) -> None:
    """From now on, in this whole process. For the edges: a deployment's start, a command."""
    current = logging.getLogRecordFactory()
    if isinstance(current, _RedactedLogs):
        current.redact = redact
    else:
        logging.setLogRecordFactory(_RedactedLogs(redact))
