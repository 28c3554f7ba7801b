"""GPUs: who has which, what waits for one, and what all of it costs."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from r2_serve.lab.simulate.clock import Clock
from r2_serve.lab.simulate.hardware import Cluster, Nodes

SECONDS_PER_HOUR = 3600.0


@dataclass
class _Node:
    capacity: float
    free: float
    idle_since_s: float | None = None


@dataclass
class Place:
    """What a replica asked for, and the node that it got; None while it waits."""

    gpus: float
    placed: Callable[[], None]
    node: _Node | None = None


@dataclass
class Machines:
    """The nodes of a cluster. Replicas are placed first come, first served, on the fullest node that has room."""

    clock: Clock
    config: Cluster
    paid_gpu_seconds: float = 0.0
    _nodes: list[_Node] = field(default_factory=list)
    _waiting: deque[Place] = field(default_factory=deque)
    _num_booting: int = 0
    _num_used: float = 0.0
    _counted_s: float = 0.0

    def __post_init__(self) -> None:
        nodes = self.config.nodes
        sizes = [nodes.gpus_per_node] * nodes.min_nodes if nodes else [self.config.gpus or math.inf]
        self._nodes = [_Node(size, size, idle_since_s=0.0) for size in sizes]

    @property
    def num_nodes(self) -> int:
        return len(self._nodes)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def ask(self, gpus: float, placed: Callable[[], None]) -> Place:
        """`placed()` is called when there is room: at once, or later."""
        place = Place(gpus, placed)
        self._waiting.append(place)
        self._place_waiting()
        return place

    def give_back(self, place: Place) -> None:
        """The replica has stopped, or is no longer wanted."""
        self._count()
        if place.node is None:
            self._waiting.remove(place)
            return
        self._num_used -= place.gpus
        place.node.free += place.gpus
        if place.node.free >= place.node.capacity:
            place.node.idle_since_s = self.clock.now
            self._retire_later(place.node)
        self._place_waiting()

    def cost_usd(self) -> float:
        """Until now."""
        self._count()
        return self.paid_gpu_seconds / SECONDS_PER_HOUR * self.config.gpu_usd_per_hour

    def _place_waiting(self) -> None:
        while self._waiting:
            place = self._waiting[0]
            node = min((n for n in self._nodes if n.free >= place.gpus), key=lambda n: n.free, default=None)
            if node is None:
                self._boot()
                return
            self._count()
            self._waiting.popleft()
            node.free -= place.gpus
            node.idle_since_s = None if place.gpus else node.idle_since_s
            self._num_used += place.gpus
            place.node = node
            place.placed()

    def _boot(self) -> None:
        """As many nodes as what waits would fill, as far as they are allowed."""
        nodes = self.config.nodes
        if nodes is None:
            return
        wanted = (
            math.ceil(sum(place.gpus for place in self._waiting) / nodes.gpus_per_node) - self._num_booting
        )
        allowed = nodes.max_nodes - len(self._nodes) - self._num_booting
        for _ in range(min(wanted, allowed)):
            self._count()
            self._num_booting += 1
            self.clock.after(nodes.boot_s, self._booted, nodes)

    def _booted(self, nodes: Nodes) -> None:
        self._count()
        self._num_booting -= 1
        self._nodes.append(_Node(nodes.gpus_per_node, nodes.gpus_per_node, idle_since_s=self.clock.now))
        self._retire_later(self._nodes[-1])
        self._place_waiting()

    def _retire_later(self, node: _Node) -> None:
        if self.config.nodes is not None:
            self.clock.after(self.config.nodes.idle_timeout_s, self._retire, (node, node.idle_since_s))

    def _retire(self, due: tuple[_Node, float | None]) -> None:
        node, since_s = due
        nodes = self.config.nodes
        if (
            nodes is not None
            and since_s is not None
            and node.idle_since_s == since_s
            and len(self._nodes) > nodes.min_nodes
        ):
            self._count()
            self._nodes.remove(node)

    def _count(self) -> None:
        """Pays for the time since it was last called."""
        nodes = self.config.nodes
        paid = (len(self._nodes) + self._num_booting) * nodes.gpus_per_node if nodes else self._num_used
        self.paid_gpu_seconds += paid * (self.clock.now - self._counted_s)
        self._counted_s = self.clock.now
