"""The adapters that one engine holds, changed while it serves: all of a change happens, or nothing of it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

from r2_serve.adapters import MANIFEST, check_codec_version, read_adapter
from r2_serve.errors import ConfigError
from r2_serve.types import LocalEngine


class AdapterSlots:
    """The adapters loaded in addition to those that `engine` started with."""

    def __init__(self, engine: LocalEngine) -> None:
        self._engine = engine
        self._loaded: dict[str, str] = {}
        """Directories by adapter name."""
        self._changing = asyncio.Lock()

    @property
    def names(self) -> list[str]:
        return sorted(self._loaded)

    async def load(self, name: str, path: str) -> None:
        """Loads one more adapter. Raises: ConfigError if it cannot be loaded; nothing has changed then."""
        await self.change_to({**self._loaded, name: path})

    async def unload(self, name: str) -> None:
        """Drops one adapter, if it is loaded; requests under way keep it."""
        await self.change_to({known: path for known, path in self._loaded.items() if known != name})

    async def change_to(self, wanted: Mapping[str, str]) -> None:
        """Loads what is missing and drops what is no longer wanted; requests under way keep their adapters.

        Raises: ConfigError if an adapter cannot be loaded; nothing has changed then.
        """
        async with self._changing:
            moved = sorted(name for name, path in self._loaded.items() if wanted.get(name, path) != path)
            if moved:
                rule = "a new version needs a new name"
                raise ConfigError(f"adapters {moved} are loaded from another directory: {rule}")
            await self._add({name: path for name, path in wanted.items() if name not in self._loaded})
            for name in self._loaded.keys() - wanted.keys():
                await self._engine.unload_adapter(name)
            self._loaded = dict(wanted)

    async def _add(self, adapters: Mapping[str, str]) -> None:
        added: list[str] = []
        try:
            for name, path in adapters.items():
                await asyncio.to_thread(_check_on_disk, name, Path(path))
                await self._engine.load_adapter(name, path)
                added.append(name)
        except BaseException:
            for name in added:
                await self._engine.unload_adapter(name)
            raise


def _check_on_disk(name: str, directory: Path) -> None:
    """Checks the manifest, if there is one: adapters made by other tools have none. Raises: ConfigError."""
    if not (directory / MANIFEST).is_file():
        return
    manifest = read_adapter(directory)
    if manifest.name != name:
        message = f"{directory} holds adapter {manifest.name!r}, not {name!r}"
        raise ConfigError(f"{message}: call it by its own name")
    check_codec_version(manifest)
