"""Many subscribers of `GET /v1/r2/events` in one process that does little else.

    python -m benchmarks.page_subscribers PORT COUNT

It says `ready` once each has got its first event, and ends with its input; then it says what all of them got.
"""

from __future__ import annotations

import asyncio
import sys

REQUEST = b"GET /v1/r2/events HTTP/1.1\r\nhost: localhost\r\n\r\n"


class Subscriber(asyncio.Protocol):
    """One connection. It counts, and reads no further than it must."""

    def __init__(self) -> None:
        self.is_open = asyncio.get_running_loop().create_future()
        self.num_answered = self.num_lost = self.num_reads = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        transport.write(REQUEST)

    def data_received(self, data: bytes) -> None:
        self.num_reads += 1
        self.num_answered += data.count(b"event: r2.answered")
        self.num_lost += data.count(b"event: r2.lost")
        if not self.is_open.done() and b"r2.watching" in data:
            self.is_open.set_result(None)


async def main(port: int, count: int) -> None:
    loop = asyncio.get_running_loop()
    made = [await loop.create_connection(Subscriber, "127.0.0.1", port) for _ in range(count)]
    subscribers = [subscriber for _, subscriber in made]
    await asyncio.gather(*(subscriber.is_open for subscriber in subscribers))
    print("ready", flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    totals = (
        sum(getattr(each, name) for each in subscribers) for name in ("num_answered", "num_lost", "num_reads")
    )
    print(*totals, flush=True)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
