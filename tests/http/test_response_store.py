"""The store of responses: its limits, its owners, and several routers at one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from r2_serve.config import ResponsesConfig
from r2_serve.errors import ConfigError
from r2_serve.http.response_store import ResponseStore


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        self.now_s += 1
        return self.now_s


def store_of(clock: Clock | None = None, **limits: Any) -> ResponseStore:
    return ResponseStore(ResponsesConfig(**limits), clock or Clock())


def keep(store: ResponseStore, name: str, previous: str | None = None, text: str = "hi") -> bool:
    output = [{"id": f"msg_{name}", "type": "message", "role": "assistant", "content": "ok"}]
    response = {"id": name, "previous_response_id": previous, "status": "completed", "output": output}
    return store.keep("ann", response, ({"type": "message", "role": "user", "content": text},), "chat")


def known(store: ResponseStore, *names: str) -> list[str]:
    return [name for name in names if store.response("ann", name)]


def test_conversation_comes_in_order_with_all_its_turns() -> None:
    store = store_of()
    assert keep(store, "a", text="one") and keep(store, "b", "a", "two")
    earlier = store.earlier("ann", "b")
    assert earlier is not None and earlier.session == "chat"
    assert [item["content"] for item in earlier.items] == ["one", "ok", "two", "ok"]


def test_what_was_not_used_for_longest_goes_first() -> None:
    store = store_of(max_count=10)
    for number in range(9):
        keep(store, f"r{number}")
    assert store.earlier("ann", "r0")
    keep(store, "r9")
    keep(store, "r10")
    assert known(store, "r0", "r10") == ["r0", "r10"]
    assert known(store, "r1", "r2") == []


def test_conversation_in_use_stays_whole() -> None:
    store = store_of(max_count=10)
    keep(store, "first")
    keep(store, "second", "first")
    for number in range(30):
        assert store.earlier("ann", "second")
        keep(store, f"r{number}")
    assert known(store, "first", "second") == ["first", "second"]


def test_old_responses_are_forgotten() -> None:
    clock = Clock()
    store = store_of(clock, max_age_s=100)
    keep(store, "a")
    clock.now_s += 200
    assert store.earlier("ann", "a") is None
    assert known(store, "a") == []


def test_total_size_is_bounded() -> None:
    store = store_of(max_bytes=20_000)
    for number in range(20):
        assert keep(store, f"r{number}", text="x" * 3_000)
    assert 2 <= len(known(store, *(f"r{number}" for number in range(20)))) <= 6
    assert known(store, "r19")


def test_response_larger_than_the_whole_store_is_not_kept() -> None:
    store = store_of(max_bytes=2_000)
    assert not keep(store, "a", text="x" * 3_000)
    assert not keep(store_of(max_count=0), "a")


def test_conversation_with_a_forgotten_turn_is_not_known() -> None:
    store = store_of()
    keep(store, "a")
    keep(store, "b", "a")
    assert store.delete("ann", "a")
    assert store.earlier("ann", "b") is None and store.inputs("ann", "b") is None


def test_owners_see_their_own_responses_alone() -> None:
    store = store_of()
    keep(store, "a")
    for other in ("bob", None):
        assert store.response(other, "a") is store.earlier(other, "a") is store.inputs(other, "a") is None
        assert store.item(other, "msg_a") is None
        assert not store.delete(other, "a")
    assert known(store, "a")


def test_routers_of_one_machine_share_a_file(tmp_path: Path) -> None:
    path = str(tmp_path / "responses.sqlite")
    one, two = store_of(file=path), store_of(file=path)
    keep(one, "a")
    keep(two, "b", "a")
    assert one.earlier("ann", "b") is not None
    assert known(store_of(file=path), "a", "b") == ["a", "b"]


def test_failing_disk_keeps_nothing_and_fails_no_request(tmp_path: Path) -> None:
    store = store_of(file=str(tmp_path / "responses.sqlite"))
    store._db.execute("PRAGMA query_only=ON")
    assert not keep(store, "a")


def test_unusable_file_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"server\.responses\.file"):
        store_of(file=str(tmp_path))
