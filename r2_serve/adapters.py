"""Adapters on disk: what training writes and serving loads. No Ray, no torch.

    NAME/   adapter.json              AdapterManifest: base, codec, data, metrics, hashes of the files
            adapter_config.json, adapter_model.safetensors               kind lora
            config.json, model.safetensors, tokenizer.json, ...          kind full: a whole tiny checkpoint

A directory is complete or absent: it is written under a draft name and renamed. A name is used once, as
engines cache by name. Weights are safetensors; pickles, which can run code when loaded, are refused."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from pydantic import ValidationError

from r2_serve.errors import ConfigError
from r2_serve.files import new_directory
from r2_serve.prompts import get_codec
from r2_serve.types import AdapterManifest, ModelCard

MANIFEST = "adapter.json"
BASE = "base"
"""Stands for the model without adapter on the command line, so no adapter may have this name."""
WEIGHTS = {"lora": "adapter_model.safetensors", "full": "model.safetensors"}
CONFIGS = {"lora": "adapter_config.json", "full": "config.json"}
TOKENIZER_FILES = (
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab*",
    "merges.txt",
)
OTHER_FILES = {"lora": (), "full": ("generation_config.json", *TOKENIZER_FILES)}
"""Files copied if they exist, in addition to weights and config."""
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


def write_adapter(source: Path, parent: Path, manifest: AdapterManifest) -> Path:
    """Copy what serving needs from `source` to the new directory `parent/NAME`, with `manifest` and hashes.

    The directory appears whole or not at all, even if the process is killed or the machine fails.

    Raises: ConfigError if the name is taken or reserved, a file is missing, or the weights are a pickle.
    """
    if manifest.name == BASE:
        raise ConfigError(f"adapter name {BASE!r} is reserved: it stands for the model without adapter")
    target = parent / manifest.name
    if target.exists():
        raise _taken(target)
    names = _files_to_copy(source, manifest.kind)
    try:
        with new_directory(target) as draft:
            hashes = {name: _copy(source / name, draft / name) for name in names}
            written = manifest.model_copy(update={"files": hashes})
            (draft / MANIFEST).write_text(written.model_dump_json(indent=2), encoding="utf-8")
    except OSError as e:
        if not target.exists():
            raise
        raise _taken(target) from e  # another process was first
    return target


def read_adapter(directory: Path) -> AdapterManifest:
    """The manifest of the adapter in `directory`, once every file that it lists was found unchanged.

    Raises: ConfigError saying which file is missing, changed or not allowed.
    """
    manifest = _read_manifest(directory)
    pickles = sorted(file.name for file in directory.iterdir() if file.suffix in PICKLES)
    if pickles:
        raise ConfigError(f"adapter {directory}: {pickles} may run code when loaded; keep safetensors only")
    missing = [
        name for name in (CONFIGS[manifest.kind], WEIGHTS[manifest.kind]) if name not in manifest.files
    ]
    if missing:
        raise ConfigError(
            f"adapter {directory}: its {MANIFEST} lists no {missing}, which kind {manifest.kind!r} needs"
        )
    foreign = [name for name in manifest.files if Path(name).name != name or Path(name).suffix in PICKLES]
    if foreign:
        raise ConfigError(
            f"adapter {directory}: its {MANIFEST} lists {foreign}; allowed are plain file names, no pickles"
        )
    for name, expected in manifest.files.items():
        _check_file(directory, name, expected)
    return manifest


def check_adapter(manifest: AdapterManifest, base: ModelCard) -> None:
    """Raises: ConfigError if the adapter was made for another base, or another codec than `base` has now."""
    if manifest.base != base.name:
        raise ConfigError(
            f"adapter {manifest.name!r} was trained for base {manifest.base!r}, not {base.name!r}: "
            "publish it for its own base"
        )
    if manifest.codec != base.codec:
        raise ConfigError(
            f"adapter {manifest.name!r} was trained with codec {manifest.codec!r}, but {base.name!r} speaks "
            f"{base.codec!r}: retrain it with that codec, or correct `codec` of the model"
        )
    check_codec_version(manifest)


def check_codec_version(manifest: AdapterManifest) -> None:
    """Raises: ConfigError if this software writes other prompts than the adapter was trained on."""
    try:
        version = get_codec(manifest.codec).version
    except KeyError as e:
        raise ConfigError(
            f"adapter {manifest.name!r} was trained with codec {manifest.codec!r}, which this version lacks"
        ) from e
    if manifest.codec_version != version:
        raise ConfigError(
            f"adapter {manifest.name!r} was trained with version {manifest.codec_version} of codec "
            f"{manifest.codec!r}; this software has version {version}, whose prompts differ: "
            "retrain it and publish the result under a new name"
        )


def _read_manifest(directory: Path) -> AdapterManifest:
    path = directory / MANIFEST
    try:
        manifest = AdapterManifest.model_validate_json(path.read_bytes())
    except OSError as e:
        raise ConfigError(
            f"no adapter in {directory}: cannot read {MANIFEST} ({e.strerror}); "
            "r2_serve.adapters.write_adapter makes it"
        ) from e
    except ValidationError as e:
        first = e.errors(include_input=False)[0]
        raise ConfigError(f"{path}: {'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}") from e
    if manifest.name != directory.resolve().name:
        raise ConfigError(
            f"{path} says name {manifest.name!r}, but the directory is {directory.resolve().name!r}: "
            "they must be the same"
        )
    return manifest


def _check_file(directory: Path, name: str, expected: str) -> None:
    path = directory / name
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as e:
        raise ConfigError(f"adapter {directory}: cannot read {name} ({e.strerror})") from e
    if found != expected:
        raise ConfigError(
            f"adapter {directory}: {name} is not what was written: its SHA-256 is {found[:12]}..., "
            f"{MANIFEST} says {expected[:12]}...; write the adapter anew, under a new name"
        )


def _files_to_copy(source: Path, kind: str) -> list[str]:
    needed = [CONFIGS[kind], WEIGHTS[kind]]
    missing = [name for name in needed if not (source / name).is_file()]
    if missing:
        pickles = sorted(file.name for file in source.glob("*") if file.suffix in PICKLES)
        instead = f"; {pickles} are pickles: save as safetensors (safe_serialization=True)" if pickles else ""
        raise ConfigError(f"no {kind} adapter in {source}: {missing} missing{instead}")
    others = {file.name for pattern in OTHER_FILES[kind] for file in source.glob(pattern) if file.is_file()}
    return [*needed, *sorted(others - set(needed))]


def _copy(source: Path, target: Path) -> str:
    """Copies a file; the SHA-256 of the copy."""
    shutil.copyfile(source, target)
    with target.open("rb") as copy:
        return hashlib.file_digest(copy, "sha256").hexdigest()


def _taken(target: Path) -> ConfigError:
    message = f"adapter {target.name!r} exists already in {target.parent}"
    return ConfigError(f"{message}: names are never used again, choose a new one")
