"""Keeps secrets out of all that is written: texts by value, log records before any handler sees them.

This is the last line of defence. The first is that no secret is put into a text: the configuration names
environment variables, client keys are kept as digests, and the hosted engine words its own errors.
"""

from __future__ import annotations

import json
import logging
import os
import re
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar, cast

from r2_serve.config import HostedEngineConfig, RouterConfig

SECRET_NAME = re.compile(r"(KEY|KEYS|TOKEN|TOKENS|SECRET|SECRETS|PASSWORD|CREDENTIALS)$")
"""Environment variables that count as secrets, in addition to those that the configuration names."""
MIN_CHARS = 8
"""Shorter values are not replaced: they protect nothing, and they occur in ordinary texts."""
MARK = "[redacted]"
JSON_DEPTH = 2
"""A provider's error is often JSON, and our trace holds its text, so a secret may be escaped twice."""
T = TypeVar("T")


class Redactor:
    """Replaces every known secret in a text, also in the escaped form that it has in JSON."""

    def __init__(self, secrets: Iterable[str]) -> None:
        forms = {form for secret in secrets if len(secret) >= MIN_CHARS for form in _forms(secret)}
        longest_first = sorted(forms, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    @classmethod
    def of(cls, environment: Mapping[str, str] = os.environ, names: Iterable[str | None] = ()) -> Redactor:
        """Knows the values of `names` and of variables called like secrets; each item of a list too."""
        wanted = {name for name in environment if SECRET_NAME.search(name)} | {*names} - {None}
        values = [environment.get(name or "", "").strip() for name in wanted]
        return cls([*values, *(item.strip() for value in values for item in value.split(","))])

    def __call__(self, text: str) -> str:
        return self._pattern.sub(MARK, text) if self._pattern is not None else text

    def __repr__(self) -> str:
        return "Redactor()"


def redactor_of(config: RouterConfig) -> Redactor:
    """A redactor of every secret that `config` names, and of variables that are called like secrets."""
    engines = [model.engine for model in config.models]
    hosted = [engine.api_key_env for engine in engines if isinstance(engine, HostedEngineConfig)]
    return Redactor.of(names=[config.server.api_keys_env, *hosted])


def redacted(value: T, redact: Callable[[str], str], *, spared: str) -> T:
    """A JSON value with every string in it redacted, except keys and the value of the key `spared`."""

    def clean(item: object) -> object:
        if isinstance(item, str):
            return redact(item)
        if isinstance(item, dict):
            return {name: child if name == spared else clean(child) for name, child in item.items()}
        return [clean(child) for child in item] if isinstance(item, list) else item

    return cast(T, clean(value))


def _forms(secret: str) -> set[str]:
    """The secret as it is and as JSON shows it, with characters beyond ASCII escaped or not."""
    forms = {secret}
    for _ in range(JSON_DEPTH):
        forms |= {json.dumps(form, ensure_ascii=flag)[1:-1] for form in forms for flag in (True, False)}
    return forms


class _RedactedLogs:
    """A factory of log records without secrets; it serves every logger and handler of the process."""

    def __init__(self, redact: Redactor) -> None:
        self.redact = redact
        self._make = logging.getLogRecordFactory()

    def __call__(self, *args: object, **kwargs: object) -> logging.LogRecord:
        record: logging.LogRecord = self._make(*args, **kwargs)
        try:
            message = record.getMessage()
        except (TypeError, ValueError, KeyError):
            return record  # logging itself reports a wrong format string
        if (clean := self.redact(message)) != message:
            record.msg, record.args = clean, None
        if record.exc_info and record.exc_info[0] is not None:
            text = "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")
            if (clean := self.redact(text)) != text:
                record.exc_info, record.exc_text = None, clean
        return record


def redact_logs(redact: Redactor) -> None:
    """Redacts all logs of this process from now on. Call it at the start of a deployment or a command."""
    current = logging.getLogRecordFactory()
    if isinstance(current, _RedactedLogs):
        current.redact = redact
    else:
        logging.setLogRecordFactory(_RedactedLogs(redact))
