"""Keeps secrets out of what is written: texts by value, and log records before any handler sees them.

A last line of defence. The first is that no secret is put into a text: the configuration names environment variables,
keys of clients are kept as digests, and the hosted engine says in its own words what went wrong.
"""

from __future__ import annotations

import logging
import os
import re
import traceback
from collections.abc import Iterable, Mapping

SECRET_NAME = re.compile(r"(KEY|KEYS|TOKEN|TOKENS|SECRET|SECRETS|PASSWORD|CREDENTIALS)$")
"""Environment variables taken to hold a secret, besides those that the configuration names."""
MIN_CHARS = 8
"""Shorter values are no secrets worth the name, and replacing them would tear ordinary texts apart."""
MARK = "[redacted]"


class Redactor:
    """Replaces every known secret in a text."""

    def __init__(self, secrets: Iterable[str]) -> None:
        longest_first = sorted({secret for secret in secrets if len(secret) >= MIN_CHARS}, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    @classmethod
    def of(cls, environment: Mapping[str, str] = os.environ, names: Iterable[str | None] = ()) -> Redactor:
        """Of the values of variables that `names` lists or that are called like secrets; of lists, each item too."""
        wanted = {name for name in environment if SECRET_NAME.search(name)} | {name for name in names if name is not None}
        values = [environment.get(name, "").strip() for name in wanted]
        return cls([*values, *(item.strip() for value in values for item in value.split(","))])

    def __call__(self, text: str) -> str:
        return self._pattern.sub(MARK, text) if self._pattern is not None else text

    def __repr__(self) -> str:
        return "Redactor()"


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
