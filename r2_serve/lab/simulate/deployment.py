"""One Serve deployment: the queue of its handles, the choice of a replica, and replicas that start, serve,
drain and stop.

All handles of a deployment count as one. That each process keeps its own queue shows only where a deployment
is much smaller than the number of its callers.
Source: Ray Serve 2.60, `_private/request_router/` (power of two choices, polling of full replicas) and
`deployment_state.py`.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from r2_serve.lab.simulate.calls import AT_REPLICA, IN_QUEUE, ON_ITS_WAY, OVER, Replica, SimulatedCall
from r2_serve.lab.simulate.clock import Clock
from r2_serve.lab.simulate.machines import NO_GPUS, Machines, Need, Place
from r2_serve.lab.simulate.replicas import StageReplica

LONGEST_POLL_S = 0.5
"""Longest interval after which a handle with a queue asks full replicas again."""
POLLS_PER_REPLICA = 2
"""Queued requests that ask at the same time, for each running replica."""
REPLACED_AFTER_S = 1.0
"""Time until the controller, which looks ten times a second, has seen a death and replaces it."""
NUM_PAIRS = 4
"""Pairs of replicas that are looked at before a call goes to the queue."""


@dataclass(frozen=True)
class DeploymentOptions:
    """Options of one deployment, in Serve's words and units."""

    name: str
    max_ongoing_requests: int
    max_queued_requests: int = -1
    """Most queued requests; -1 is no limit."""
    need: Need = NO_GPUS
    """GPUs of each replica."""
    start_s: Callable[[], float] = lambda: 0.0
    """Gives the time that the next replica takes to start on a node that is up."""
    stop_s: float = 0.0
    """Shortest time that a replica takes to stop."""
    hop_s: float = 0.0
    """Time of a call to the deployment and back."""
    initial_replicas: int = 1
    can_die: bool = False
    """False for replicas whose calls' ends are known from their start."""


class Deployment:
    """A deployment with its replicas and the calls that wait for them."""

    def __init__(
        self,
        clock: Clock,
        options: DeploymentOptions,
        make_replica: Callable[[Deployment], Replica],
        machines: Machines,
        draw: random.Random,
    ) -> None:
        self.name, self.options = options.name, options
        self.running: list[Replica] = []
        self.running_version = 0
        """Number that changes whenever `running` does."""
        self.num_at_work = 0
        """Calls at replicas or on their way to one."""
        self.num_queued = 0
        self.num_calls = 0
        self.target_num_replicas = options.initial_replicas
        self.first_call: Callable[[], None] = _nothing
        """Called before the first call is handled."""
        self.found_no_replica: Callable[[], None] = _nothing
        """Called when a call comes while no replica runs."""
        self._clock, self._machines, self._random = clock, machines, draw.random
        self._make_replica = make_replica
        self._queue: deque[SimulatedCall] = deque()
        self._starting: list[Place] = []
        self._stopping: set[Replica] = set()
        self._places: dict[Replica, Place] = {}
        self._max_ongoing = options.max_ongoing_requests
        self._hop_s = options.hop_s
        for _ in range(options.initial_replicas):
            self._start_now()

    def submit(self, call: SimulatedCall) -> None:
        """Sends the call to a replica, queues it or refuses it."""
        call.target = self
        self.num_calls += 1
        if self.num_calls == 1:
            self.first_call()
        replica = self._choose()
        if replica is not None:
            self._send(call, replica)
        elif 0 <= self.options.max_queued_requests <= self.num_queued:
            call.state = OVER
            call.owner.call_failed(call, "backpressure", None)
        else:
            call.state = IN_QUEUE
            self.num_queued += 1
            self._queue.append(call)
            if not self.running:
                self.found_no_replica()

    def cancel(self, call: SimulatedCall) -> None:
        """Drops the call in any state without a word to its owner."""
        state, call.state = call.state, OVER
        if state == IN_QUEUE:
            self.num_queued -= 1  # it is passed over when its turn comes
        elif state == AT_REPLICA:
            assert call.replica is not None
            call.replica.abandon(call)
            self._freed(call.replica)

    def release(self, call: SimulatedCall) -> None:
        """Ends a call that a stage holds."""
        call.state = OVER
        assert isinstance(call.replica, StageReplica)
        call.replica.end()
        self._freed(call.replica)

    def _choose(self) -> Replica | None:
        """The less busy of two, as Serve's power of two choices does; None if none of the pairs has room."""
        running, random, limit = self.running, self._random, self._max_ongoing
        count = len(running)
        if count < 2:
            return running[0] if count and running[0].num_ongoing < limit else None
        for _ in range(NUM_PAIRS):
            first = int(random() * count)
            second = int(random() * (count - 1))
            one, other = running[first], running[second + (second >= first)]
            chosen = other if other.num_ongoing < one.num_ongoing else one
            if chosen.num_ongoing < limit:
                return chosen
        return None

    def _send(self, call: SimulatedCall, replica: Replica) -> None:
        replica.num_ongoing += 1
        self.num_at_work += 1
        call.replica = replica
        hop_s = self._hop_s + call.delay_s
        if replica.takes_s is not None:  # its end is known already: one event less
            call.state = AT_REPLICA
            call.begun_s = self._clock.now + hop_s
            self._clock.after(hop_s + replica.takes_s, replica.end_of, call)
            return
        call.state = ON_ITS_WAY
        if hop_s:
            self._clock.after(hop_s, self._arrive, call)
        else:
            self._arrive(call)

    def _arrive(self, call: SimulatedCall) -> None:
        assert call.replica is not None
        if call.state == OVER:  # cancelled on its way
            self._freed(call.replica)
            return
        if call.replica.is_dead:
            self._lose(call)
            return
        call.state = AT_REPLICA
        call.begun_s = self._clock.now
        call.replica.begin(call)

    def done(self, call: SimulatedCall, replica: Replica) -> None:
        """Ends a call that a replica has answered."""
        call.state = OVER
        self._freed(replica)
        call.owner.call_done(call)

    def refused(self, call: SimulatedCall, replica: Replica) -> None:
        """Ends a call that found no place in a stage, not even in its queue."""
        call.state = OVER
        self._freed(replica)
        call.owner.call_failed(call, "overloaded", None)

    def _freed(self, replica: Replica) -> None:
        replica.num_ongoing -= 1
        self.num_at_work -= 1
        if self.num_queued:
            num_polls = min(self.num_queued, POLLS_PER_REPLICA * len(self.running))
            self._clock.after(self._random() * LONGEST_POLL_S / max(1, num_polls), self._poll, None)
        if replica.num_ongoing == 0 and replica in self._stopping:
            self._clock.after(0.0, self._stopped_if_idle, replica)

    def _poll(self, _: None) -> None:
        """Sends calls from the head of the queue while a replica has room."""
        while self.num_queued:
            replica = self._choose()
            if replica is None:
                return
            call = self._queue.popleft()
            if call.state == IN_QUEUE:
                self.num_queued -= 1
                self._send(call, replica)

    @property
    def num_starting(self) -> int:
        return len(self._starting)

    @property
    def num_waiting(self) -> int:
        """The starting replicas that have no node yet."""
        return sum(place.slots is None for place in self._starting)

    @property
    def num_stopping(self) -> int:
        return len(self._stopping)

    def scale_to(self, num_replicas: int) -> None:
        """Starts or stops replicas. Those that have not started stop first, then the newest."""
        self.target_num_replicas = num_replicas
        missing = num_replicas - len(self.running) - len(self._starting)
        for _ in range(missing):
            self._start()
        for _ in range(-missing):
            self._stop_one()

    def _start(self) -> None:
        self._starting.append(self._machines.ask(self.options.need, self._placed, self._lost))

    def _start_now(self) -> None:
        """Starts a replica that runs from the beginning."""
        place = self._machines.place_now(self.options.need, lambda _: None, self._lost)
        self._starting.append(place)
        self._started(place)

    def _placed(self, place: Place) -> None:
        self._clock.after(self.options.start_s(), self._started, place)

    def _started(self, place: Place) -> None:
        if place not in self._starting:
            return  # it was stopped meanwhile
        self._starting.remove(place)
        replica = self._make_replica(self)
        replica.stand_on(place.shared_card)
        self._places[replica] = place
        self.running.append(replica)
        self.running_version += 1
        self._poll(None)

    def _stop_one(self) -> None:
        if self._starting:
            self._machines.give_back(self._starting.pop())
            return
        replica = self.running.pop()
        self.running_version += 1
        self._stopping.add(replica)
        self._clock.after(self.options.stop_s, self._stopped_if_idle, replica)
        replica.stops_s = self._clock.now + self.options.stop_s

    def kill_one(self) -> None:
        """Ends the oldest replica at once: its calls fail, and Serve starts another in its place."""
        if self.running:
            self._lost(self._places[self.running[0]])

    def _lost(self, place: Place) -> None:
        """Drops a replica that has died, or whose node has."""
        replica = next((replica for replica, own in self._places.items() if own is place), None)
        if replica is None:
            self._starting.remove(place)
        else:
            del self._places[replica]
            self._stopping.discard(replica)
            if replica in self.running:
                self.running.remove(replica)
                self.running_version += 1
            for call in replica.die():
                self._lose(call)
        self._machines.give_back(place)
        self._clock.after(REPLACED_AFTER_S, self._replace, None)

    def _lose(self, call: SimulatedCall) -> None:
        """Ends a call whose replica has died."""
        call.state = OVER
        assert call.replica is not None
        self._freed(call.replica)
        call.owner.call_failed(call, "died", None)

    def _replace(self, _: None) -> None:
        self.scale_to(self.target_num_replicas)

    def _stopped_if_idle(self, replica: Replica) -> None:
        is_idle = replica.num_ongoing == 0 and replica in self._stopping
        if is_idle and self._clock.now >= replica.stops_s - 1e-9:
            self._stopping.remove(replica)
            self._machines.give_back(self._places.pop(replica))


def _nothing() -> None:
    return None
