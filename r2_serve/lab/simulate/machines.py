"""The GPUs of a cluster: which replica holds which, what waits for one, and what they cost."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from r2_serve.lab.simulate.clock import Clock
from r2_serve.lab.simulate.hardware import Cluster

SECONDS_PER_HOUR = 3600.0


@dataclass(eq=False)
class _Node:
    capacity: float
    free: float
    idle_since_s: float | None = None


@dataclass(eq=False)
class Place:
    """The GPUs that a replica asked for, and the node that it got; `node` is None while it waits."""

    gpus: float
    on_placed: Callable[[Place], None]
    node: _Node | None = None


class Machines:
    """The nodes of a cluster. Replicas are placed in order, each on the fullest node with room."""

    def __init__(self, clock: Clock, config: Cluster) -> None:
        self._clock, self._config = clock, config
        nodes = config.nodes
        sizes = [nodes.gpus_per_node] * nodes.min_nodes if nodes else [config.gpus or math.inf]
        self._nodes = [_Node(size, size, idle_since_s=0.0) for size in sizes]
        self._waiting: deque[Place] = deque()
        self._num_booting, self._num_used, self._counted_s = 0, 0.0, 0.0
        self.paid_gpu_seconds = 0.0

    @property
    def num_nodes(self) -> int:
        return len(self._nodes)

    def ask(self, gpus: float, on_placed: Callable[[Place], None]) -> Place:
        """Asks for a place; `on_placed` is called with it as soon as there is room, which may be at once."""
        place = Place(gpus, on_placed)
        self._waiting.append(place)
        self._place_waiting()
        return place

    def give_back(self, place: Place) -> None:
        """Frees the place of a replica that has stopped or is no longer wanted."""
        self._count()
        if place.node is None:
            self._waiting.remove(place)
            return
        self._num_used -= place.gpus
        place.node.free += place.gpus
        if place.node.free >= place.node.capacity:
            place.node.idle_since_s = self._clock.now
            self._retire_later(place.node)
        self._place_waiting()

    def cost_usd(self) -> float:
        """Cost until now."""
        self._count()
        return self.paid_gpu_seconds / SECONDS_PER_HOUR * self._config.gpu_usd_per_hour

    def _place_waiting(self) -> None:
        while self._waiting:
            place = self._waiting[0]
            node = min((n for n in self._nodes if n.free >= place.gpus), key=lambda n: n.free, default=None)
            if node is None:
                return self._boot()
            self._count()
            self._waiting.popleft()
            node.free -= place.gpus
            node.idle_since_s = None if place.gpus else node.idle_since_s
            self._num_used += place.gpus
            place.node = node
            place.on_placed(place)
        return None

    def _boot(self) -> None:
        """Boots as many nodes as the waiting replicas would fill, within the limit."""
        if (nodes := self._config.nodes) is None:
            return
        asked = math.ceil(sum(place.gpus for place in self._waiting) / nodes.gpus_per_node)
        for _ in range(min(asked, nodes.max_nodes - len(self._nodes)) - self._num_booting):
            self._count()
            self._num_booting += 1
            self._clock.after(nodes.boot_s, self._booted, nodes.gpus_per_node)

    def _booted(self, num_gpus: float) -> None:
        self._count()
        self._num_booting -= 1
        self._nodes.append(_Node(num_gpus, num_gpus, idle_since_s=self._clock.now))
        self._retire_later(self._nodes[-1])
        self._place_waiting()

    def _retire_later(self, node: _Node) -> None:
        if self._config.nodes is not None:
            self._clock.after(self._config.nodes.idle_timeout_s, self._retire, (node, node.idle_since_s))

    def _retire(self, due: tuple[_Node, float | None]) -> None:
        """Lets an idle node go, unless it has worked since or is one of the least."""
        node, since_s = due
        is_idle = since_s is not None and node.idle_since_s == since_s
        if is_idle and self._config.nodes is not None and len(self._nodes) > self._config.nodes.min_nodes:
            self._count()
            self._nodes.remove(node)

    def _count(self) -> None:
        """Pays for the time since the last count."""
        nodes = self._config.nodes
        paid = (len(self._nodes) + self._num_booting) * nodes.gpus_per_node if nodes else self._num_used
        self.paid_gpu_seconds += paid * (self._clock.now - self._counted_s)
        self._counted_s = self._clock.now
