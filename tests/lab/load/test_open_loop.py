"""The load generator keeps its own time: the server neither slows the load nor hides its own delays."""

from __future__ import annotations

import asyncio
from itertools import count

import pytest

from r2_serve.lab.load.open_loop import LoadReply, OpenLoop
from r2_serve.lab.load.records import LoadRecord
from r2_serve.lab.workload import Request
from r2_serve.lab.workload.request import Step
from tests.support import virtual_time

STEPS = (Step("small", 3),)


def every(gap_s: float, num_requests: int) -> list[Request]:
    return [Request(i, gap_s * i, "r2", STEPS) for i in range(num_requests)]


class StallingServer:
    """A server that needs 0.1 s for a request, one at a time or all at once, and answers none from 1 s to 3
    s."""

    def __init__(self, *, is_serial: bool = False) -> None:
        self._turn = asyncio.Semaphore(1 if is_serial else 10_000)

    async def __call__(self, request: Request, reply: LoadReply) -> None:
        async with self._turn:
            reply.status = 200
            await asyncio.sleep(0.1)
            now = virtual_time.now_s()
            if 1.0 <= now < 3.0:
                await asyncio.sleep(3.0 - now)


def run(
    requests: list[Request], server: StallingServer | None = None, *, max_open: int = 100
) -> tuple[list[LoadRecord], OpenLoop]:
    records: list[LoadRecord] = []

    async def main() -> OpenLoop:
        loop = OpenLoop(server or StallingServer(), max_open=max_open, on_end=records.append)
        await loop.run(requests)
        return loop

    loop = virtual_time.run(main())
    return sorted(records, key=lambda record: record.index), loop


def test_requests_are_sent_at_their_times_while_the_server_stalls() -> None:
    records, loop = run(every(0.05, 100))
    assert [record.sent_s for record in records] == pytest.approx([0.05 * i for i in range(100)], abs=1e-5)
    assert max(record.lateness_s for record in records) < 1e-5
    assert (loop.counts.num_sent, loop.counts.num_done, loop.counts.blocked_s) == (100, 100, 0.0)


@pytest.mark.parametrize("max_open", [100, 1])
def test_stall_of_two_seconds_shows_in_every_request_due_in_it(max_open: int) -> None:
    """A client that waits for its answers would see one slow request only (coordinated omission)."""
    records, _ = run(every(0.25, 40), max_open=max_open)
    stalled = [record for record in records if 1.0 <= record.intended_start_s < 2.8]
    assert len(stalled) == 8
    for record in stalled:
        assert record.latency_s >= 3.0 - record.intended_start_s - 1e-5
    assert max(record.latency_s for record in stalled) >= 1.9


def test_requests_are_late_and_none_is_lost_if_every_connection_is_taken() -> None:
    records, loop = run(every(0.05, 60), max_open=4)
    assert len(records) == 60 and all(record.outcome == "ok" for record in records)
    assert 1.8 < loop.counts.blocked_s < 3.0  # the stall, and until the backlog was sent
    late = [record.lateness_s for record in records if 1.2 <= record.intended_start_s < 1.4]
    assert min(late) > 1.5  # held through the stall
    for record in records:
        assert record.latency_s >= record.lateness_s


def test_open_requests_never_exceed_the_bound() -> None:
    under_way, most = 0, 0

    async def send(request: Request, reply: LoadReply) -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(1.0)
        under_way -= 1

    async def main() -> None:
        await OpenLoop(send, max_open=7, on_end=lambda _: None).run(every(0.01, 100))

    virtual_time.run(main())
    assert most == 7


def test_any_exception_of_one_request_is_one_failed_request() -> None:
    errors = [KeyError("delta"), RuntimeError("closed"), AttributeError("None"), RecursionError("deep")]

    async def send(request: Request, reply: LoadReply) -> None:
        if request.index < len(errors):
            raise errors[request.index]

    async def main(records: list[LoadRecord]) -> None:
        await OpenLoop(send, max_open=3, on_end=records.append).run(every(0.1, 10))

    records: list[LoadRecord] = []
    virtual_time.run(main(records))
    assert [record.outcome for record in records] == ["failed"] * 4 + ["ok"] * 6
    assert [record.error_kind for record in records[:4]] == [type(error).__name__ for error in errors]


def test_workload_is_read_as_it_is_sent() -> None:
    """Memory does not grow with the length of a run, nor with the delay of the server."""
    drawn = 0

    def endless() -> object:
        nonlocal drawn
        for i in count():
            drawn += 1
            yield Request(i, 0.001 * i, "r2", STEPS)

    async def never(request: Request, reply: LoadReply) -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        loop = OpenLoop(never, max_open=5, on_end=lambda _: None)
        task = asyncio.create_task(loop.run(endless()))  # type: ignore[arg-type]
        await asyncio.sleep(60)
        task.cancel()
        await asyncio.wait([task])

    virtual_time.run(main())
    assert drawn == 6


def test_interrupted_run_records_every_request_that_was_sent() -> None:
    records: list[LoadRecord] = []

    async def main() -> None:
        loop = OpenLoop(StallingServer(), max_open=100, on_end=records.append)
        task = asyncio.create_task(loop.run(every(0.25, 40)))
        await asyncio.sleep(2.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert loop.counts.num_sent == len(records) == 9

    virtual_time.run(main())
    by_outcome = {
        outcome: sum(record.outcome == outcome for record in records)
        for outcome in ("ok", "failed", "unfinished")
    }
    assert by_outcome == {"ok": 4, "failed": 0, "unfinished": 5}
