"""Continuous batching as arithmetic: sequences prefill, decode together, and wait for a place.

The scripted engine runs this model in real time, the simulator on a virtual clock. It leaves out how prefills
slow down decoding, the memory of the key-value cache, and preemption.

All decoding sequences advance at one rate, so the tokens that each has decoded since the start are one
number, the work W. A sequence that joins at W0 with n tokens to write ends at W = W0 + n. A heap holds these
ends, so that each operation takes O(log n).

Source: the virtual time of processor sharing (Demers et al., 1989, fair queueing).
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

from r2_serve.config import SpeedConfig


class Finished(NamedTuple):
    """A sequence's end. Times in seconds on the caller's clock."""

    sequence: int
    decode_start_s: float
    end_s: float


@dataclass(slots=True)
class _Sequence:
    prefill_s: float
    reply_tokens: float
    decode_start_s: float = -1.0
    work_at_start: float = 0.0


class Batch:
    """One replica's sequences. Times must not go back; between calls nothing needs to run.

    Written for the simulator, which spends most of its time here: heads of heaps are read in place.
    """

    def __init__(self, speed: SpeedConfig) -> None:
        self._speed = speed
        self._pace = 1.0
        self._full_rates = [
            speed.decode_tokens_per_s / (1.0 + speed.batch_slowdown * max(0, b - 1))
            for b in range(speed.max_batch_size + 1)
        ]
        """Tokens per second of each sequence at full pace, by the number that decode."""
        self._rates = self._full_rates
        self._now_s = 0.0
        self._work = 0.0
        self._num_decoding = 0
        self._num_prefilling = 0
        self._next_id = 0
        self._sequences: dict[int, _Sequence] = {}
        self._waiting: deque[int] = deque()
        self._prefilling: list[tuple[float, int]] = []
        """Heap of (time of the prefill's end, sequence)."""
        self._decoding: list[tuple[float, int]] = []
        """Heap of (work at the end, sequence). Below the heads there may be sequences that have left."""
        self._has_gone = False
        """Whether a sequence ever left early."""
        self._ended: list[Finished] = []

    def __len__(self) -> int:
        """Sequences in the engine, waiting ones among them."""
        return len(self._sequences)

    @property
    def num_waiting(self) -> int:
        """Sequences that wait for a place in the batch."""
        return len(self._waiting)

    def set_pace(self, now_s: float, pace: float) -> None:
        """Works at a share of its speed from `now_s`, as a card that others use too; prefills under way go on
        as they were."""
        self._run_to(now_s)
        self._pace, self._rates = pace, [rate * pace for rate in self._full_rates]

    def arrive(self, now_s: float, prompt_tokens: float, reply_tokens: float) -> int:
        """Adds a sequence, which waits while `max_batch_size` others are at work. Returns its id."""
        self._run_to(now_s)
        sequence = self._next_id
        self._next_id = sequence + 1
        self._sequences[sequence] = _Sequence(prompt_tokens / self._speed.prefill_tokens_per_s, reply_tokens)
        self._waiting.append(sequence)
        self._admit()
        return sequence

    def leave(self, now_s: float, sequence: int) -> None:
        """Frees the place of a cancelled sequence. Does nothing if the sequence has ended."""
        self._run_to(now_s)
        gone = self._sequences.pop(sequence, None)
        if gone is None:
            return
        self._has_gone = True
        if gone.decode_start_s >= 0:
            self._num_decoding -= 1
        elif sequence in self._waiting:
            self._waiting.remove(sequence)
        else:
            self._num_prefilling -= 1
        self._drop_gone()
        self._admit()

    def advance(self, now_s: float) -> list[Finished]:
        """The sequences that ended by `now_s` and were not returned before, in order."""
        self._run_to(now_s)
        ended, self._ended = self._ended, []
        return ended

    def next_event_s(self) -> float | None:
        """When a sequence next begins or ends decoding if none comes or leaves; None if none is at work."""
        if self._ended:
            return self._ended[0].end_s
        next_s = min(self._prefilling[0][0] if self._prefilling else math.inf, self._decode_end_s())
        return None if next_s == math.inf else next_s

    def no_end_before_s(self) -> float | None:
        """A time before which no sequence ends if none leaves; None if none is at work.

        It is often later than `next_event_s`, so that callers who only need ends look less often. It is exact
        while no sequence prefills.
        """
        if self._ended:
            return self._ended[0].end_s
        earliest_s = self._decode_end_s()
        if self._prefilling:
            rate, sequences = self._rates[self._num_decoding], self._sequences
            for end_s, sequence in self._prefilling:
                if end_s < earliest_s and sequence in sequences:
                    earliest_s = min(earliest_s, end_s + sequences[sequence].reply_tokens / rate)
        return None if earliest_s == math.inf else earliest_s

    def num_decoded(self, now_s: float, sequence: int) -> float:
        """Tokens that a sequence has written by `now_s`; infinity if it has ended."""
        self._run_to(now_s)
        known = self._sequences.get(sequence)
        if known is None:
            return math.inf
        return self._work - known.work_at_start if known.decode_start_s >= 0 else 0.0

    def tokens_per_s(self) -> float:
        """Rate of each sequence that decodes now."""
        return self._rates[self._num_decoding]

    def _run_to(self, now_s: float) -> None:
        prefilling, decoding = self._prefilling, self._decoding
        while True:
            decode_s = self._decode_end_s() if decoding else math.inf
            if prefilling and prefilling[0][0] <= now_s and prefilling[0][0] <= decode_s:
                begin_s, sequence = heapq.heappop(prefilling)
                self._pass_time(begin_s)
                self._begin_decoding(sequence)
            elif decode_s <= now_s:
                if decode_s > self._now_s:
                    self._now_s = decode_s
                self._end(*heapq.heappop(decoding))
            else:
                return self._pass_time(now_s)
            if self._has_gone:
                self._drop_gone()

    def _pass_time(self, to_s: float) -> None:
        if to_s > self._now_s:
            if self._num_decoding:
                self._work += (to_s - self._now_s) * self._rates[self._num_decoding]
            self._now_s = to_s

    def _begin_decoding(self, sequence: int) -> None:
        known = self._sequences[sequence]
        self._num_prefilling -= 1
        self._num_decoding += 1
        known.decode_start_s, known.work_at_start = self._now_s, self._work
        heapq.heappush(self._decoding, (self._work + known.reply_tokens, sequence))

    def _end(self, work: float, sequence: int) -> None:
        self._work = work  # exactly, so that rounding never leaves a sequence a moment short of its end
        self._num_decoding -= 1
        known = self._sequences.pop(sequence)
        self._ended.append(Finished(sequence, known.decode_start_s, self._now_s))
        if self._waiting:
            self._admit()

    def _admit(self) -> None:
        while self._waiting and self._num_decoding + self._num_prefilling < self._speed.max_batch_size:
            sequence = self._waiting.popleft()
            self._num_prefilling += 1
            prefill_s = self._sequences[sequence].prefill_s / self._pace
            heapq.heappush(self._prefilling, (self._now_s + prefill_s, sequence))

    def _decode_end_s(self) -> float:
        """When the first decoding sequence ends at the present rate; infinity if none decodes."""
        if not self._decoding:
            return math.inf
        left = self._decoding[0][0] - self._work
        return self._now_s + left / self._rates[self._num_decoding] if left > 0 else self._now_s

    def _drop_gone(self) -> None:
        for heap in (self._prefilling, self._decoding):
            while heap and heap[0][1] not in self._sequences:
                heapq.heappop(heap)
