"""Client keys: who may ask, for which models, with how much money. No key is kept in clear.

A keys file is a YAML list with one entry per key, made by `r2-serve keys new`. It holds SHA-256 digests only:
a key is 256 random bits, which no search can find, so a slow password hash would cost time on each request
without any gain. The file is read again when it changes, so a key is added or revoked without a restart.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import os
import secrets
import time
from collections import Counter
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from r2_serve.config import Config, ServerConfig
from r2_serve.errors import ConfigError
from r2_serve.files import encoding_fault
from r2_serve.types import Priority

log = logging.getLogger(__name__)
PREFIX = "sk-r2-"
"""Every key begins with it, so that scanners for secrets recognize keys."""
RANDOM_BYTES = 32
LOOK_AGAIN_S = 1.0
"""The shortest time between two looks at the keys file's date."""


class ClientKey(Config):
    """The entry of one key in the keys file."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    """The key's owner, in logs and spend. A new key of the same name continues the old key's spend."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """SHA-256 of the key, in hexadecimal digits."""
    models: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Models it may ask for, virtual or of the pool; None for all. A virtual model may use its whole pool."""
    budget_usd: Decimal | None = Field(default=None, gt=0)
    """The most it may spend in a period, in USD; None for no limit."""
    budget_period: Literal["total", "month", "day"] = "total"
    """The period after which the budget is full again, in UTC; `total` never ends."""
    priority: Priority = "user"
    """The highest rank of its requests in a busy model: `user`, `batch` or `training`."""

    def may_ask(self, model: str) -> bool:
        return self.models is None or model in self.models

    @property
    def is_restricted(self) -> bool:
        """A restricted key may not see what others spend."""
        return self.models is not None or self.budget_usd is not None


_ENTRIES = TypeAdapter(tuple[ClientKey, ...])


def new_key(name: str, **fields: object) -> tuple[str, ClientKey]:
    """A fresh key, to be shown once, and its entry. Raises: pydantic.ValidationError if a field is wrong."""
    key = PREFIX + secrets.token_urlsafe(RANDOM_BYTES)
    return key, ClientKey.model_validate({"name": name, "sha256": _digest(key).hex(), **fields})


def entry_text(entry: ClientKey) -> str:
    """The entry as an item of a keys file."""
    return yaml.safe_dump([entry.model_dump(mode="json", exclude_defaults=True)], sort_keys=False)


def read_keys_file(path: Path) -> tuple[ClientKey, ...]:
    """Raises: ConfigError if the file holds no key or cannot be read, if an entry is wrong, or if a name or
    digest stands twice."""
    entries = _read_entries(path)
    if not entries:
        raise ConfigError(f"{path} holds no key: add the entry that `r2-serve keys new --name NAME` prints")
    return entries


def _read_entries(path: Path) -> tuple[ClientKey, ...]:
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
        entries = _ENTRIES.validate_python([] if given is None else given)
    except UnicodeDecodeError as e:
        raise ConfigError(f"cannot read the keys file {path}: {encoding_fault(e)}") from e
    except (OSError, yaml.YAMLError) as e:
        raise ConfigError(f"cannot read the keys file {path}: {e}") from e
    except ValidationError as e:
        # The input is left out because a key in clear may stand in the place of its digest.
        first = e.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the whole file"
        hint = "a keys file is a YAML list of entries as `r2-serve keys new` prints them"
        raise ConfigError(f"{path}: {where}: {first['msg']}; {hint}") from None
    for kind in ("name", "sha256"):
        values = Counter(getattr(entry, kind) for entry in entries)
        for value in (value for value, count in values.items() if count > 1):
            raise ConfigError(f"{path}: {kind} {value!r} stands twice")
    return entries


class KeyRing:
    """The keys that open the endpoint; without any key it is open to all."""

    def __init__(
        self,
        fixed: tuple[ClientKey, ...] = (),
        path: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fixed, self._path, self._clock = fixed, path, clock
        self._stamp = _stamp(path) if path is not None else None
        self._from_file = read_keys_file(path) if path is not None else ()
        self._look_again = 0.0

    @classmethod
    def of(cls, server: ServerConfig, environment: Mapping[str, str] = os.environ) -> KeyRing:
        """The keys in the environment and in the keys file that `server` names.

        Raises: ConfigError if a named place holds no key, so that the endpoint is never open by accident.
        """
        path = Path(server.keys_file) if server.keys_file is not None else None
        return cls(_keys_of_environment(server.api_keys_env, environment), path)

    @property
    def is_required(self) -> bool:
        return bool(self._fixed) or self._path is not None

    def find(self, authorization: str | None) -> ClientKey | None:
        """The key in an Authorization header; the time it takes reveals nothing of the known keys."""
        scheme, _, key = (authorization or "").partition(" ")
        digest, found = _digest(key.strip()).hex(), None
        for known in self.known():
            if hmac.compare_digest(digest, known.sha256):
                found = known
        return found if scheme.lower() == "bearer" else None

    def known(self) -> tuple[ClientKey, ...]:
        """The keys in force."""
        if self._path is not None and self._clock() >= self._look_again:
            self._look_again = self._clock() + LOOK_AGAIN_S
            self._read_again(self._path)
        return (*self._fixed, *self._from_file)

    def _read_again(self, path: Path) -> None:
        """Reads a changed file. If it is gone or broken, the last good keys stay and the log says so.

        A file without entries lets no key in, so that the last key can be revoked.
        """
        stamp = _stamp(path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._from_file = _read_entries(path)
            log.info("keys file %s read again: %d keys", path, len(self._from_file))
        except ConfigError as e:
            log.error("the last good keys stay in force: %s", e.message)


def require_keys(host: str, server: ServerConfig) -> None:
    """Raises: ConfigError if other machines can reach `host` and no key is asked for."""
    if server.api_keys_env is None and server.keys_file is None and not is_loopback(host):
        unset = "neither `server.keys_file` nor `server.api_keys_env` of the router is set"
        todo = "set one of them (`r2-serve keys new` makes a key), or serve at 127.0.0.1"
        raise ConfigError(
            f"{host} is not a loopback address, and {unset}: anyone could spend your money; {todo}"
        )


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _keys_of_environment(name: str | None, environment: Mapping[str, str]) -> tuple[ClientKey, ...]:
    """The comma-separated keys in variable `name`; they may ask for every model and have no budget."""
    if name is None:
        return ()
    keys = [key.strip() for key in environment.get(name, "").split(",") if key.strip()]
    if not keys:
        hint = "put comma-separated client keys in it"
        raise ConfigError(f"server.api_keys_env names {name}, which is not set or empty: {hint}")
    return tuple(ClientKey(name=f"env-{i}", sha256=_digest(key).hex()) for i, key in enumerate(keys, 1))


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size
