"""Adapters on disk: whole or absent, never overwritten, never a pickle, never of another codec."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from r2_serve.adapters import check_adapter, read_adapter, write_adapter
from r2_serve.errors import ConfigError
from r2_serve.types import AdapterManifest, ModelCard
from tests import ROOT
from tests.support.small_adapters import adapter, lora_source, manifest

CARD = ModelCard(name="planner", usd_per_mtok_in=1, usd_per_mtok_out=2)


def test_adapter_is_read_back_with_a_hash_of_every_file(tmp_path: Path) -> None:
    source = lora_source(tmp_path / "source")
    (source / "training_args.bin").write_bytes(b"a pickle that a trainer leaves")
    directory = write_adapter(source, tmp_path / "adapters", manifest("dec-0001"))
    read = read_adapter(directory)
    assert read == manifest("dec-0001", files=read.files)
    assert set(read.files) == {"adapter_config.json", "adapter_model.safetensors"}
    assert {file.name for file in directory.iterdir()} == {*read.files, "adapter.json"}


def test_whole_checkpoint_holds_its_tokenizer(tmp_path: Path) -> None:
    for name in (
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "optimizer.pt",
    ):
        (tmp_path / "source" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "source" / name).write_text(name)
    written = read_adapter(write_adapter(tmp_path / "source", tmp_path, manifest("tiny-0001", kind="full")))
    assert set(written.files) == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
    }


def test_taken_or_reserved_name_is_refused_and_its_owner_stays(tmp_path: Path) -> None:
    directory = adapter(tmp_path, "dec-0001")
    before = {file.name: file.read_bytes() for file in directory.iterdir()}
    with pytest.raises(ConfigError, match=r"exists already.*never used again"):
        write_adapter(lora_source(tmp_path / "other", b"other weights"), tmp_path, manifest("dec-0001"))
    assert {file.name: file.read_bytes() for file in directory.iterdir()} == before
    with pytest.raises(ConfigError, match="reserved"):
        adapter(tmp_path, "base")


@pytest.mark.parametrize("killed_in", ["os.fsync", "pathlib.Path.rename"])
def test_writer_killed_halfway_leaves_no_adapter_and_a_free_name(tmp_path: Path, killed_in: str) -> None:
    """The process kills itself in the named call: between two files, or after all and before the rename."""
    module, _, function = killed_in.rpartition(".")
    code = f"""
import os, pathlib, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from tests.support.small_adapters import adapter
{module}.{function} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
adapter(pathlib.Path({str(tmp_path)!r}), "dec-0001")
"""
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -9
    assert [
        path.name for path in tmp_path.iterdir() if not path.name.startswith(".") and path.name != "trained"
    ] == []
    with pytest.raises(ConfigError, match="no adapter in"):
        read_adapter(tmp_path / "dec-0001")
    assert read_adapter(adapter(tmp_path, "dec-0001")).name == "dec-0001"


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    source = lora_source(tmp_path / "source")
    (source / "adapter_model.safetensors").rename(source / "adapter_model.bin")
    with pytest.raises(ConfigError, match=r"adapter_model\.bin.*pickles"):
        write_adapter(source, tmp_path, manifest("dec-0001"))
    assert not (tmp_path / "dec-0001").exists()
    directory = adapter(tmp_path, "dec-0002")
    (directory / "model.pt").write_bytes(b"slipped in later")
    with pytest.raises(ConfigError, match=r"model\.pt.*may run code"):
        read_adapter(directory)


def test_changed_missing_or_foreign_file_is_named(tmp_path: Path) -> None:
    directory = adapter(tmp_path, "dec-0001")
    weights = directory / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes() + b"!")
    with pytest.raises(ConfigError, match=r"adapter_model\.safetensors is not what was written"):
        read_adapter(directory)
    weights.unlink()
    with pytest.raises(ConfigError, match=r"cannot read adapter_model\.safetensors"):
        read_adapter(directory)
    path = directory / "adapter.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"files": content["files"] | {"../../etc/passwd": "0" * 64}}))
    with pytest.raises(ConfigError, match="plain file names"):
        read_adapter(directory)


def test_broken_manifest_is_refused_with_its_reason(tmp_path: Path) -> None:
    directory = adapter(tmp_path, "dec-0001")
    path = directory / "adapter.json"
    content = json.loads(path.read_text())
    for change, message in (
        ({"module": "planner"}, "module: Input should be 'decomposer' or 'allocator'"),
        ({"extra": 1}, "extra: Extra inputs are not permitted"),
        ({"name": "dec-0007"}, "says name 'dec-0007', but the directory is 'dec-0001'"),
        ({"files": {}}, "lists no"),
    ):
        path.write_text(json.dumps(content | change))
        with pytest.raises(ConfigError, match=message):
            read_adapter(directory)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": "other"}, "for base 'other', not 'planner'"),
        ({"codec": "compact"}, "codec 'compact', but 'planner' speaks 'instruct'"),
        (
            {"codec_version": 99},
            "version 99 of codec 'instruct'; this software has version [0-9]+, .*retrain",
        ),
    ],
)
def test_adapter_of_another_base_codec_or_version_is_refused_with_what_to_do(
    changes: dict[str, object], message: str
) -> None:
    check_adapter(manifest("dec-0001"), CARD)
    with pytest.raises(ConfigError, match=message):
        check_adapter(manifest("dec-0001", **changes), CARD)


def test_names_stay_inside_their_directory() -> None:
    for name in ("../up", "a/b", ".hidden", ""):
        with pytest.raises(ValueError, match="name"):
            AdapterManifest.model_validate(manifest("x").model_dump() | {"name": name})
