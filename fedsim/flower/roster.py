"""Which node is which client.

Nodes of Flower have random ids that change when a node comes back; a strategy's memory needs clients 0..n-1 that stay
the same. So every node is asked once (a `query` message) for "partition-id", "num-partitions", "num-examples" and what
it "understands" of a strategy's work; any ClientApp may answer, ours does.

By partition, when any node says which one it holds: client i is whoever holds partition i, n is what they say it is. A
node that comes back finds its memory; when two hold the same partition the one that came last is it (of two that came
at once, the one with the larger node id). Nodes that do not say are left out. A node that the question did not reach
is asked again next round.

A node may hold several clients, which it lists as "clients" (`over` only). When two hold the same client, what was said
of partitions goes for that client.

By order otherwise: clients are numbered as their nodes first appear, those that appear at once by node id, and a node
that comes back under another id is another client.

n is fixed when a run begins: the number given, else what the nodes say, else how many there are. Who joins later gets
a free number, if n was given larger; otherwise it is left out, with one warning.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedsim.flower import private, wire

log = logging.getLogger("flwr.fedsim")  # a child of Flower's own, so it shows where Flower's lines show


class WrongNodes(OSError):
    """The nodes of a grid are not the clients of the task."""


class Card(NamedTuple):
    """What a node says of itself."""

    partition: int | None = None
    partitions: int | None = None
    examples: float | None = None
    understands: frozenset[str] = frozenset()
    clients: tuple[int, ...] | None = None  # of a node that hosts many
    fault: str | None = None  # why it cannot say which


class Roster:
    """Clients 0..n-1 and the nodes that are them."""

    def __init__(self, n: int | None = None, ask: bool = True, timeout: float = 60.0) -> None:
        self.n = n
        self.ask = ask
        self.timeout = timeout
        self.by: Literal["partition", "order"] | None = None
        self.node_of: dict[int, int] = {}  # client -> node
        self.client_of: dict[int, int] = {}  # node -> client
        self.cards: dict[int, Card] = {}  # node -> what it said
        self.examples: dict[int, float] = {}  # client -> latest count heard
        self.there: set[int] = set()  # the nodes there when last looked

    def wait(self, grid: Grid, least: int, patience: float) -> None:
        """Returns when `least` nodes are there. Raises TimeoutError after `patience` seconds."""
        end = time.monotonic() + patience
        while (there := len(set(grid.get_node_ids()))) < least:
            if time.monotonic() >= end:
                raise TimeoutError(
                    f"only {there} of {least} nodes were there after {patience:g} s; start more SuperNodes, "
                    "or lower min_available_nodes and min_train_nodes"
                )
            time.sleep(min(1.0, max(patience / 20, 0.01)))

    def here(self, grid: Grid) -> list[int]:
        """The clients that are there, ascending. Asks nodes not met before who they are."""
        nodes = sorted(set(grid.get_node_ids()))
        new = [node for node in nodes if node not in self.cards]
        if new:
            self._meet(grid, new, set(nodes))
        self.there = set(nodes)
        return sorted(client for client, node in self.node_of.items() if node in self.there)

    def hosts(self, node: int) -> bool:
        """Whether a node gets one message for all its clients."""
        return node in self.cards and self.cards[node].clients is not None

    def check(self, n: int) -> None:
        """Raises WrongNodes where the nodes met do not divide clients 0 to n-1 among them."""
        holders: dict[int, list[int]] = {}
        for node in sorted(self.there & self.cards.keys()):
            card = self.cards[node]
            if card.fault is not None:
                raise WrongNodes(f"node {node} does not say which clients it hosts: {card.fault}")
            if card.partitions not in (None, n):
                raise WrongNodes(
                    f"node {node} is one of {card.partitions} partitions but the task has {n} clients; start "
                    f"the nodes with num-partitions={n}, or set clients = {card.partitions}"
                )
            if beyond := [client for client in card.clients or () if client >= n]:
                raise WrongNodes(f"node {node} hosts {listed(beyond)} but the task has {n} clients, 0 to {n - 1}")
            for client in card.clients or ([] if card.partition is None else [card.partition]):
                holders.setdefault(client, []).append(node)
        twice = {client: tuple(nodes) for client, nodes in holders.items() if len(nodes) > 1}
        if twice := {client: nodes for client, nodes in twice.items() if any(map(self.hosts, nodes))}:
            first = twice[min(twice)]
            same = sorted(client for client, nodes in twice.items() if nodes == first)
            more = (
                f" (and {len(twice) - len(same)} more clients are with several nodes)" if len(twice) > len(same) else ""
            )
            raise WrongNodes(
                f"{listed(same)} {'are' if len(same) > 1 else 'is'} with several nodes, {', '.join(map(str, first))}"
                f"{more}; give each client to one node"
            )

    def understands(self, client: int) -> frozenset[str]:
        return self.cards[self.node_of[client]].understands

    def _meet(self, grid: Grid, new: list[int], there: set[int]) -> None:
        cards = self._query(grid, new) if self.ask else {node: Card() for node in new}
        self.cards.update(cards)  # a node that could not be reached gets none, and is asked again next round
        if self.by is None and cards:
            said = (card.partition is not None or card.clients is not None or card.fault for card in cards.values())
            self.by = "partition" if any(said) else "order"
            self.n = self.n or self._count(cards)
        for node in sorted(cards):
            self._place(node, cards[node], there)

    def _count(self, cards: Mapping[int, Card]) -> int:
        told = [card.partitions for card in cards.values() if card.partitions]
        held = [card.partition + 1 for card in cards.values() if card.partition is not None]
        held += [max(card.clients) + 1 for card in cards.values() if card.clients]
        return max(told) if told else max([*held, len(cards)])

    def _place(self, node: int, card: Card, there: set[int]) -> None:
        if node in self.client_of:  # known from a checkpoint
            return
        if card.clients is not None or card.fault is not None:
            self._place_all(node, card.clients or (), there)
            return
        client, n = card.partition if self.by == "partition" else len(self.client_of), self.n or 0
        if client is None:
            log.warning("node %d is left out: it does not say its partition-id, and others do", node)
            return
        if client >= n:
            log.warning(
                "node %d%s is left out: the run began with n = %d clients; give num_clients to keep room for more",
                node, f" with partition-id {client}" if self.by == "partition" else "", n,
            )  # fmt: skip
            return
        former = self.node_of.get(client)
        if former is not None:
            self.client_of.pop(former, None)
            if former in there:
                log.warning("nodes %d and %d both hold partition %d: the former is left out", former, node, client)
        self.node_of[client], self.client_of[node] = node, client
        if card.examples is not None:
            self.examples[client] = card.examples

    def _place_all(self, node: int, clients: tuple[int, ...], there: set[int]) -> None:
        formers = {self.node_of[client] for client in clients if client in self.node_of} - {node}
        for former in formers:
            self.client_of.pop(former, None)
            if former in there:
                log.warning("nodes %d and %d both hold clients: those they share go to the latter", former, node)
        self.node_of.update(dict.fromkeys((client for client in clients if client < (self.n or 0)), node))

    def _query(self, grid: Grid, nodes: Iterable[int]) -> dict[int, Card]:
        """What the nodes say of themselves; a node that the question did not reach is not in it."""
        messages = [Message(RecordDict(), node, MessageType.QUERY) for node in nodes]
        cards = {}
        for reply in grid.send_and_receive(messages, timeout=self.timeout):
            if not reply.has_error():
                cards[reply.metadata.src_node_id] = card_of(reply.content)
            elif reply.error.code not in private.UNREACHED:
                cards[reply.metadata.src_node_id] = Card()  # an app that answers no queries
        return cards

    def as_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: plain JSON."""
        return {
            "n": self.n,
            "by": self.by,
            "examples": {str(client): count for client, count in self.examples.items()},
            "nodes": {str(node): client for node, client in self.client_of.items()} if self.by == "order" else {},
        }

    def restore(self, kept: Mapping[str, Any]) -> None:
        """Goes on with the clients of a checkpoint. By order, nodes keep their numbers where their ids are known."""
        self.n, self.by = kept["n"], kept["by"]
        self.examples = {int(client): float(count) for client, count in kept["examples"].items()} | self.examples
        self.client_of = {int(node): client for node, client in kept["nodes"].items()}
        self.node_of = {client: node for node, client in self.client_of.items()}


def card_of(content: RecordDict) -> Card:
    """What a query's reply says, in whichever of its records."""
    said = wire.values(content)

    def whole(key: str) -> int | None:
        value = wire.number(said.get(key))
        return int(value) if value is not None and value == int(value) and value >= 0 else None

    ours = wire.ours(content)
    clients, fault = ours.get("clients"), ours.get("fault")
    understands = said.get("understands", [])
    examples = wire.number(said.get("num-examples"))
    return Card(
        whole("partition-id"),
        whole("num-partitions"),
        examples if examples is not None and examples > 0 else None,
        frozenset(understands if isinstance(understands, list) else [understands]),
        tuple(map(int, clients)) if isinstance(clients, list) else None,
        fault if isinstance(fault, str) else None,
    )


def listed(clients: list[int], most: int = 10) -> str:
    """Some clients in words."""
    shown = ", ".join(map(str, clients[:most])) + (f" and {len(clients) - most} more" if len(clients) > most else "")
    return f"client{'s' if len(clients) > 1 else ''} {shown}"


def spans_of(clients: Iterable[int]) -> str:
    """Numbers as "0-3,7"."""
    runs: list[list[int]] = []
    for client in sorted(set(clients)):
        if runs and runs[-1][1] == client - 1:
            runs[-1][1] = client
        else:
            runs.append([client, client])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
