"""The adapters of one engine by name. A name is used once: engines and caches key on it."""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

from r2_serve.errors import ConfigError, EngineRefused

T = TypeVar("T")


class NamedAdapters(Generic[T]):
    """Maps the name of each adapter to what the engine keeps of it. Safe to use from several threads."""

    def __init__(self) -> None:
        self._by_name: dict[str, T] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._by_name)

    def values(self) -> list[T]:
        return list(self._by_name.values())

    def check_free(self, name: str) -> None:
        """Raises: ConfigError if the name is taken."""
        if name in self._by_name:
            raise ConfigError(f"adapter {name!r} exists already: a new version needs a new name")

    def add(self, name: str, adapter: T) -> None:
        """Raises: ConfigError if the name is taken."""
        with self._lock:
            self.check_free(name)
            self._by_name[name] = adapter

    def get(self, name: str) -> T:
        """Raises: EngineRefused if the name is unknown."""
        try:
            return self._by_name[name]
        except KeyError:
            raise EngineRefused(f"no adapter {name!r}; this engine has {sorted(self._by_name)}") from None

    def pop(self, name: str) -> T:
        """Removes the adapter. Raises: EngineRefused if the name is unknown."""
        with self._lock:
            adapter = self.get(name)
            del self._by_name[name]
            return adapter
