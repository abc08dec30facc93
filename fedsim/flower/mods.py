"""Flower's client mods around clients that are trained already: what a mod does to the reply is done to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from flwr.app import Context, Message, RecordDict

from fedsim import keyed
from fedsim.flower.dice import Dice
from fedsim.flower.grid import own

Client = Callable[[Message, Context], Message]
Mod = Callable[[Message, Context, Client], Message]


class Modded:
    """The clients of a cohort as their mods, outermost first, present them. Each client keeps its Context."""

    def __init__(self, mods: Sequence[Mod], n: int, seed: int, dice: Dice) -> None:
        self.mods, self.n, self.seed, self.dice = mods, n, seed, dice
        self.contexts: dict[int, Context] = {}

    def reply(self, t: int, i: int, message: Message, content: RecordDict) -> Message:
        """What client i answers in round t to a message, its own answer being `content`. Mods draw from generators
        seeded by (seed, t, i). Raises ValueError for a mod that changes what the client is told."""
        if not self.mods:
            return Message(content, reply_to=message)
        asked = own(message.content)
        message.content = own(asked)

        def client(given: Message, context: Context) -> Message:
            if given.content != asked:
                raise ValueError(
                    "a mod changes what the client is told, and the cohort is trained already; "
                    "use InProcessGrid(ClientApp(mods=...), n)"
                )
            return Message(content, reply_to=given)

        def wrap(mod: Mod, inner: Client) -> Client:
            return lambda given, context: mod(given, context, inner)

        app: Client = client
        for mod in reversed(self.mods):
            app = wrap(mod, app)
        if i not in self.contexts:
            node: dict[str, Any] = {"partition-id": i, "num-partitions": self.n}
            self.contexts[i] = Context(1, i + 1, node, RecordDict(), {})
        with self.dice.held(keyed.seed(self.seed, "flower", "mod", t, i)):
            return app(message, self.contexts[i])
