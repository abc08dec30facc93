"""A Grid without a runtime: every message is answered in this process, by calling the ClientApp."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Sequence
from typing import Any

from flwr.app import ArrayRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fedsim.flower import private, wire

RAISED = 2  # Flower's error code for an exception in a ClientApp


class OwnGrid(Grid):
    """What a Grid without a runtime does the same way, whoever answers its messages."""

    _run: Any = None

    def set_run(self, run: Any) -> None:
        self._run = run

    @property
    def run(self) -> Any:
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)


class InProcessGrid(OwnGrid):
    """n nodes, node j being partition j of n, whose messages a ClientApp answers one after another.

    `clients` gives each node the clients that it hosts instead, such as ["0-499", "500-999"].

    An exception in the app becomes an error reply, as in Flower's runtimes. Each node keeps its Context. To lose
    messages or delay them, override `get_node_ids` and `deliver`.
    """

    def __init__(
        self, app: ClientApp, n: int, *, node_ids: Sequence[int] | None = None,
        clients: Sequence[str] | None = None, **run_config: Any,
    ) -> None:  # fmt: skip
        private.introduce()
        self.app = app
        self.node_ids = list(range(1, n + 1)) if node_ids is None else list(node_ids)
        if len(set(self.node_ids)) != n:
            raise ValueError(f"a grid of {n} nodes needs {n} different node ids, got {self.node_ids}")
        if clients is not None and len(clients) != n:
            raise ValueError(f"a grid of {n} nodes needs clients for each, got {len(clients)}")

        def config(j: int) -> dict[str, Any]:
            return {"partition-id": j, "num-partitions": n} if clients is None else {"clients": clients[j]}

        self.contexts = {
            node: Context(1, node, config(j), RecordDict(), dict(run_config)) for j, node in enumerate(self.node_ids)
        }
        self.sent = 0
        self._replies: dict[str, Message] = {}

    def get_node_ids(self) -> Iterable[int]:
        return list(self.node_ids)

    def deliver(self, message: Message) -> Message | None:
        """The node's reply, or None when it never comes."""
        try:
            return self.app(message, self.contexts[message.metadata.dst_node_id])
        except Exception:  # whatever a user's app raises is the node's answer
            return Message(Error(RAISED, traceback.format_exc()), reply_to=message)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            message.content = own(message.content)
            self.sent += 1
            private.stamp(message, f"message-{self.sent}")
            ids.append(message.metadata.message_id)
            reply = self.deliver(message)
            if reply is not None:
                self._replies[ids[-1]] = reply
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._replies.pop(i) for i in list(message_ids) if i in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return self.pull_messages(self.push_messages(messages))


def own(content: RecordDict) -> RecordDict:
    """The same content in records of its own: strategies hand one RecordDict to everybody, a real grid sends copies."""
    out = RecordDict()
    for name, record in content.items():
        out[name] = wire.share(record) if isinstance(record, ArrayRecord) else type(record)(dict(record))  # type: ignore[arg-type]
    return out
