"""The nodes of a cluster and their GPUs: which replica holds which, what waits for one, and what they cost.

A replica asks for one or more bundles of GPUs, as Ray's placement groups do. A share of a GPU has to fit one
card, and shares of several replicas may stand on it; more than one GPU are whole cards. Source: Ray 2.60,
`src/ray/common/scheduling/resource_instance_set.cc`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from r2_serve.lab.simulate.clock import Clock
from r2_serve.lab.simulate.hardware import Cluster

SECONDS_PER_HOUR = 3600.0
_LEAST = 1e-9
"""GPUs below this are a rounding error."""


class Sharer(Protocol):
    """A replica on a share of a card."""

    def set_pace(self, pace: float) -> None:
        """Works at this share of its speed from now on."""
        ...


@dataclass(eq=False)
class Card:
    """One GPU. Replicas at work share its time evenly; an idle one takes none."""

    free: float = 1.0
    _at_work: dict[Sharer, None] = field(default_factory=dict)

    def begin(self, replica: Sharer) -> None:
        self._at_work[replica] = None
        self._set_paces()

    def end(self, replica: Sharer) -> None:
        if replica in self._at_work:
            del self._at_work[replica]
            self._set_paces()

    def _set_paces(self) -> None:
        for replica in self._at_work:
            replica.set_pace(1 / len(self._at_work))


@dataclass(frozen=True)
class Need:
    """The GPUs that a replica asks for together."""

    bundles: tuple[float, ...] = ()
    """One number, or one for each bundle of a placement group."""
    is_on_one_node: bool = False
    """True for STRICT_PACK; else the bundles may stand on several nodes if no node has room for all."""

    @property
    def gpus(self) -> float:
        return sum(self.bundles)

    def __str__(self) -> str:
        return f"GPU {' + '.join(f'{bundle:g}' for bundle in self.bundles) or 0}"


NO_GPUS = Need()
Slot = tuple[Card, float]
"""A card and the share of it."""


@dataclass(eq=False)
class _Node:
    name: str
    cards: list[Card]
    used: float = 0.0
    idle_since_s: float | None = None

    @property
    def free(self) -> float:
        return len(self.cards) - self.used


class _Unlimited(_Node):
    """A node that has as many cards as are asked for."""

    def grow(self, num: int) -> None:
        num_free = sum(card.free >= 1 for card in self.cards)
        self.cards += [Card() for _ in range(num - num_free)]


@dataclass(eq=False)
class Place:
    """The GPUs that a replica asked for, and what it got; `slots` is None while it waits."""

    need: Need
    on_placed: Callable[[Place], None]
    on_lost: Callable[[Place], None]
    """Is called if a node of the place dies."""
    slots: list[tuple[_Node, Slot]] | None = None

    @property
    def shared_card(self) -> Card | None:
        """The card of which the place has a share; None if its cards are its own."""
        slots = self.slots or ()
        return slots[0][1][0] if len(slots) == 1 and slots[0][1][1] < 1 else None


class Machines:
    """The nodes of a cluster. Replicas are placed in order, each on the emptiest node or the fullest."""

    def __init__(self, clock: Clock, config: Cluster) -> None:
        self._clock, self._config = clock, config
        self._numbers = itertools.count(1)
        self._nodes: list[_Node] = []
        if (nodes := config.nodes) is not None:
            self._nodes = [self._new_node(nodes.gpus_per_node) for _ in range(nodes.min_nodes)]
        elif config.gpus is not None:
            self._nodes = [self._new_node(config.gpus)]
        else:
            self._nodes = [_Unlimited("all", [])]
        self._waiting: list[Place] = []
        self._placed: dict[Place, None] = {}
        self._num_booting, self._num_used, self._counted_s = 0, 0.0, 0.0
        self.paid_gpu_seconds = self.node_seconds = 0.0

    @property
    def has_nodes(self) -> bool:
        return self._config.nodes is not None or self._config.gpus is not None

    @property
    def num_nodes(self) -> int:
        return len(self._nodes)

    def in_use(self) -> dict[str, float]:
        """GPUs in use on each node that is up or boots; empty if there are no nodes, only GPUs."""
        if isinstance(self._nodes[0] if self._nodes else None, _Unlimited):
            return {}
        booting = {f"boots-{number}": 0.0 for number in range(1, self._num_booting + 1)}
        return {node.name: round(node.used, 6) for node in self._nodes} | booting

    def could_hold(self, need: Need) -> bool:
        """False if a replica would wait for ever, as what has to be on one node is larger than a node."""
        nodes = self._config.nodes
        size = nodes.gpus_per_node if nodes else self._config.gpus
        largest = need.gpus if need.is_on_one_node else max(need.bundles, default=0.0)
        return size is None or largest <= size

    def ask(
        self,
        need: Need,
        on_placed: Callable[[Place], None],
        on_lost: Callable[[Place], None],
    ) -> Place:
        """Asks for a place; `on_placed` is called with it as soon as there is room, which may be at once."""
        place = Place(need, on_placed, on_lost)
        self._waiting.append(place)
        self._place_waiting()
        return place

    def place_now(
        self,
        need: Need,
        on_placed: Callable[[Place], None],
        on_lost: Callable[[Place], None],
    ) -> Place:
        """A place for a replica that runs from the beginning, on a node that is up then."""
        nodes = self._config.nodes
        while nodes and _slots(self._nodes, need) is None and len(self._nodes) < nodes.max_nodes:
            self._nodes.append(self._new_node(nodes.gpus_per_node))
        return self.ask(need, on_placed, on_lost)

    def give_back(self, place: Place) -> None:
        """Frees the place of a replica that has stopped or is no longer wanted."""
        self._count()
        if place.slots is None:
            self._waiting.remove(place)
            return
        del self._placed[place]
        for node, (card, share) in place.slots:
            card.free += share
            node.used -= share
            self._num_used -= share
            if node.used < _LEAST:
                node.idle_since_s = self._clock.now
                self._retire_later(node)
        self._place_waiting()

    def kill_node(self) -> None:
        """Ends the node with the most GPUs in use at once, and whatever stands on it."""
        node = max(self._nodes, key=lambda node: node.used, default=None)
        if node is None or isinstance(node, _Unlimited):
            return
        self._count()
        self._nodes.remove(node)
        lost = [place for place in self._placed if any(at is node for at, _ in place.slots or ())]
        for place in lost:
            place.on_lost(place)  # its owner gives it back
        if self._config.nodes is not None:
            for _ in range(self._config.nodes.min_nodes - len(self._nodes) - self._num_booting):
                self._boot_one()
        self._place_waiting()

    def cost_usd(self) -> float:
        """Cost until now."""
        self._count()
        return self.paid_gpu_seconds / SECONDS_PER_HOUR * self._config.gpu_usd_per_hour

    # -- places ------------------------------------------------------------------------------------------

    def _place_waiting(self) -> None:
        for place in list(self._waiting):
            if place.slots is None and (slots := self._room_for(place.need)) is not None:
                self._take(place, slots)
        if self._waiting:
            self._boot()

    def _take(self, place: Place, slots: list[tuple[_Node, Slot]]) -> None:
        self._count()
        self._waiting.remove(place)
        self._placed[place] = None
        place.slots = slots
        for node, (card, share) in slots:
            card.free -= share
            node.used += share
            node.idle_since_s = None
            self._num_used += share
        place.on_placed(place)

    def _room_for(self, need: Need) -> list[tuple[_Node, Slot]] | None:
        return _slots(self._nodes, need, spreads=not self._config.packs)

    # -- nodes -------------------------------------------------------------------------------------------

    def _new_node(self, num_gpus: float) -> _Node:
        cards = [Card() for _ in range(max(1, round(num_gpus)))]
        return _Node(f"node-{next(self._numbers)}", cards, idle_since_s=0.0)

    def _boot(self) -> None:
        """Boots as many nodes as the waiting replicas would fill besides what is free, within the limit."""
        nodes = self._config.nodes
        if nodes is None or len(self._nodes) + self._num_booting >= nodes.max_nodes:
            return
        packed = [_Node("", [Card(card.free) for card in node.cards], node.used) for node in self._nodes]
        for place in self._waiting:
            while (slots := _slots(packed, place.need)) is None and len(packed) < nodes.max_nodes:
                packed.append(_Node("", [Card() for _ in range(round(nodes.gpus_per_node))]))
            for node, (card, share) in slots or ():
                card.free -= share
                node.used += share
        for _ in range(len(packed) - len(self._nodes) - self._num_booting):
            self._boot_one()

    def _boot_one(self) -> None:
        assert self._config.nodes is not None
        self._count()
        self._num_booting += 1
        self._clock.after(self._config.nodes.boot_s, self._booted, self._config.nodes.gpus_per_node)

    def _booted(self, num_gpus: float) -> None:
        self._count()
        self._num_booting -= 1
        node = self._new_node(num_gpus)
        node.idle_since_s = self._clock.now
        self._nodes.append(node)
        self._retire_later(node)
        self._place_waiting()

    def _retire_later(self, node: _Node) -> None:
        if self._config.nodes is not None:
            self._clock.after(self._config.nodes.idle_timeout_s, self._retire, (node, node.idle_since_s))

    def _retire(self, due: tuple[_Node, float | None]) -> None:
        """Lets an idle node go, unless it has worked since or is one of the least."""
        node, since_s = due
        is_idle = since_s is not None and node.idle_since_s == since_s and node in self._nodes
        if is_idle and self._config.nodes is not None and len(self._nodes) > self._config.nodes.min_nodes:
            self._count()
            self._nodes.remove(node)

    def _count(self) -> None:
        """Pays for the time since the last count."""
        nodes, passed_s = self._config.nodes, self._clock.now - self._counted_s
        num_nodes = len(self._nodes) + self._num_booting
        self.paid_gpu_seconds += passed_s * (num_nodes * nodes.gpus_per_node if nodes else self._num_used)
        self.node_seconds += passed_s * num_nodes
        self._counted_s = self._clock.now


def _slots(nodes: Iterable[_Node], need: Need, *, spreads: bool = False) -> list[tuple[_Node, Slot]] | None:
    """A place for all bundles, on one node if one has room, else on several; None if there is none now."""
    if not need.bundles:
        return []
    ordered = sorted(nodes, key=lambda node: node.free, reverse=spreads)
    for node in ordered:
        if isinstance(node, _Unlimited):
            node.grow(sum(map(math.ceil, need.bundles)))
        if (slots := _on_node(node, need.bundles, {})) is not None:
            return [(node, slot) for slot in slots]
    if need.is_on_one_node:
        return None
    taken: dict[Card, float] = {}
    found: list[tuple[_Node, Slot]] = []
    for bundle in sorted(need.bundles, reverse=True):
        tried = ((node, _on_node(node, (bundle,), taken)) for node in ordered)
        at = next(((node, slots) for node, slots in tried if slots is not None), None)
        if at is None:
            return None
        found += [(at[0], slot) for slot in at[1]]
        for card, share in at[1]:
            taken[card] = taken.get(card, 0.0) + share
    return found


def _on_node(node: _Node, bundles: Sequence[float], taken: dict[Card, float]) -> list[Slot] | None:
    """Cards for the bundles, the largest first, each share on the fullest card that has room for it."""
    taken, found = dict(taken), []
    for bundle in sorted(bundles, reverse=True):
        share, num_cards = (bundle, 1) if bundle < 1 else (1.0, math.ceil(bundle - _LEAST))
        room = [(card.free - taken.get(card, 0.0), card) for card in node.cards]
        fitting = sorted((left, i) for i, (left, _) in enumerate(room) if left >= share - _LEAST)
        if len(fitting) < num_cards:
            return None
        for _, i in fitting[:num_cards]:
            card = node.cards[i]
            taken[card] = taken.get(card, 0.0) + share
            found.append((card, share))
    return found
