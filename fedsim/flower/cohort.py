"""A Grid whose nodes are a task's clients, trained a cohort at a time: any Flower strategy on the fast engine.

    grid = CohortGrid(task, LocalSGD(lr=0.1, steps=5), schedule=schedule)
    FedAdam(fraction_evaluate=0.0).start(grid, initial_arrays(task), num_rounds=100)

The messages of a round are gathered and their clients trained in one call of the engine. Replies hold tensors, summed
up when they are read, never serialised. Node i + 1 is client i. All strategies that flwr brings along work, but for the
two of XGBoost, whose models are trees: there are no gradient steps to take together.

Who is there in round t is whom row t of the schedule chose (everybody, without a schedule): with fraction_train=1.0
exactly those train, as in `fedsim.simulate`. Who drops out (effort 0) is asked and does not answer.

Too few. Flower's strategies wait in `get_node_ids` until min_available_nodes are there, and a schedule's row never
changes while somebody waits. `rounds` sees it coming and leaves the round empty. `Strategy.start` cannot: there, a
strategy that asks for a third time, after a pause, is given all clients so that it goes on (a second is lost), all its
messages are answered by errors, and the round is empty as well. If even all clients are too few, it is a ValueError.

Rounds. `Strategy.start` sends twice a round, to train and to evaluate, empty lists included; so the grid knows where
it is. A loop of your own sets `grid.t` before each round.

Randomness. Flower's strategies draw from Python's and numpy's global generators (sampling, the noise of differential
privacy). While a strategy is at work they are seeded from (seed, round, phase), and then put back: from `get_node_ids`
to the messages it sends, and, in `Strategy.start` and `rounds`, from the train replies to the next call of the grid.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MessageType, MetricRecord, RecordDict
from torch import Tensor

from fedsim import keyed
from fedsim.engine import Engine, choose
from fedsim.flower import private, wire
from fedsim.flower.arrays import records
from fedsim.flower.dice import Dice
from fedsim.flower.evaluation import own_figures, tested_figures
from fedsim.flower.gathered import finite, only, together
from fedsim.flower.grid import RAISED, OwnGrid
from fedsim.flower.mods import Mod, Modded
from fedsim.flower.replies import Absence
from fedsim.local import LocalSGD
from fedsim.participation import Row, Schedule
from fedsim.simulation import default_engine
from fedsim.strategy import Round, Work
from fedsim.task import Task

log = logging.getLogger("flwr.fedsim")  # a child of Flower's own, so it shows where Flower's lines show

NOT_THERE = 5  # Flower's error code for a node that is not available
PAUSE = 0.9  # seconds between two looks at the nodes: a strategy that waits sleeps for 1


class CohortGrid(OwnGrid):
    """The clients of a task as nodes of Flower, trained together by an engine (default: as `simulate`'s).

    A train message is answered with the arrays and num-examples, loss, train_loss (the same), steps, lr and span; a
    client's minibatches follow from (seed, round, client) as in `simulate`. "proximal-mu" in the config is the work's
    mu. objective="uniform" has every client say num-examples 1, so that strategies which weigh by it weigh equally.
    An evaluate message is answered with loss and accuracy on the client's own examples, or the task's test examples
    (evaluate="test"). A query is answered as `client_app` does.

    An update that is not finite is an error reply and an entry in `absences` (on_failure="absent"), or stops the run
    (on_failure="stop") as `simulate` would. `mods` are Flower's client mods that change replies, such as
    fixedclipping_mod.

    Raises ValueError for arrays that are not the task's, a schedule that is over or is for other clients, work that
    the clients do not understand, and strategies that want more clients than there are.
    """

    def __init__(
        self, task: Task, local: LocalSGD, *, schedule: Schedule | None = None, engine: Engine | None = None,
        seed: int = 0, objective: Literal["examples", "uniform"] = "examples",
        evaluate: Literal["own", "test"] = "own", on_failure: Literal["absent", "stop"] = "absent",
        mods: Sequence[Mod] = (),
    ) -> None:  # fmt: skip
        for name, given, known in (
            ("objective", objective, ("examples", "uniform")),
            ("evaluate", evaluate, ("own", "test")),
            ("on_failure", on_failure, ("absent", "stop")),
        ):
            if given not in known:
                raise ValueError(f"{name} must be {known[0]!r} or {known[1]!r}, got {given!r}")
        if schedule is not None and schedule.n != task.n:
            raise ValueError(f"schedule has {schedule.n} clients but the task has {task.n}; draw it with n={task.n}")
        private.introduce()
        if engine is None:
            engine = choose(task, local, task.n) if schedule is None else default_engine(task, local, schedule)
        self.task, self.local, self.schedule, self.engine = task, local, schedule, engine
        self.seed, self.objective, self.evaluate, self.on_failure = seed, objective, evaluate, on_failure
        self.mods = tuple(mods)
        self.form = wire.Form.of_layout(task.layout, task.dtype)
        self.absences: list[Absence] = []
        self.last: Round | None = None  # what the latest round of training gave
        self.dice = Dice()
        self._modded = Modded(self.mods, task.n, seed, self.dice)
        self._paced = True  # rounds follow from what is sent
        self._t, self._trained = 0, False
        self._polls, self._seen, self._everyone = 0, 0.0, False
        self._sent = 0
        self._replies: dict[str, Message] = {}

    # Rounds ----------------------------------------------------------------------------------------------------------

    @property
    def t(self) -> int:
        """The round: 0, 1, ... Setting it begins that round, and from then on rounds begin by setting it only."""
        return self._t

    @t.setter
    def t(self, t: int) -> None:
        self.dice.release()
        self._t, self._trained, self._paced = t, False, False
        self._fresh()

    @property
    def row(self) -> Row:
        """Who is there in this round, and how much they do."""
        if self.schedule is None:
            everyone = torch.arange(self.task.n)
            return Row(everyone, everyone, torch.ones(self.task.n))
        if self._t >= len(self.schedule):
            raise ValueError(
                f"the schedule is over after {len(self.schedule)} rounds and the strategy begins another; "
                "draw a longer one, lower num_rounds, or set grid.t = 0 to begin again"
            )
        return self.schedule[self._t]

    def _fresh(self) -> None:
        """Nobody has looked at the nodes yet."""
        self._polls, self._everyone = 0, False

    # Flower's verbs --------------------------------------------------------------------------------------------------

    def get_node_ids(self) -> Iterable[int]:
        """Who is there, ascending; everybody when the strategy was seen to wait (see the module)."""
        now = time.monotonic()
        self._polls += 1
        waits = self._polls > 2 and now - self._seen > PAUSE
        self._seen = now
        try:
            there = self.row.chosen.tolist()
            if waits and self._everyone:
                raise ValueError(
                    f"round {self._t}: the strategy waits for more clients than there are ({self.task.n}); "
                    "lower min_available_nodes and min_train_nodes"
                )
        except ValueError:
            self.dice.release()
            raise
        if waits:
            log.warning("round %d is empty: the strategy waits for more than the %d clients there", self._t, len(there))
            self._everyone = True
        if self._polls == 1:
            self.dice.hold(keyed.seed(self.seed, "flower", "evaluate" if self._trained else "train", self._t))
        return [i + 1 for i in (range(self.task.n) if self._everyone else there)]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        self.dice.release()
        for message in messages:
            self._sent += 1
            private.stamp(message, f"message-{self._sent}")
        kinds = {kind_of(message) for message in messages}
        if messages and kinds == {MessageType.QUERY}:
            replies = [self._describe(message) for message in messages]
        else:
            replies = self._round(messages, kinds)
        for reply in replies:
            self._replies[reply.metadata.reply_to_message_id] = reply
        return [message.metadata.message_id for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        found = [self._replies.pop(i) for i in list(message_ids) if i in self._replies]
        return sorted(found, key=lambda reply: reply.metadata.src_node_id)  # sums do not depend on who was asked first

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return self.pull_messages(self.push_messages(messages))

    def _round(self, messages: list[Message], kinds: set[str]) -> list[Message]:
        """The replies to train or evaluate messages, and on to the next phase."""
        if not kinds <= {MessageType.TRAIN, MessageType.EVALUATE}:
            raise ValueError(f"clients answer train, evaluate and query messages, got {sorted(kinds)}")
        wrong = MessageType.TRAIN if self._trained else MessageType.EVALUATE
        if self._paced and wrong in kinds:
            raise ValueError(
                f"round {self._t}: got {wrong} messages where Strategy.start sends none; "
                "a loop of your own sets grid.t before each round"
            )
        there = dict(zip(self.row.chosen.tolist(), self.row.effort.tolist(), strict=True))
        called, replies = [], []
        for message in messages:
            i = message.metadata.dst_node_id - 1
            if not 0 <= i < self.task.n:
                raise ValueError(f"a message goes to node {i + 1}, but the nodes are 1 to {self.task.n}")
            if self._everyone or i not in there:
                what = "too few clients are there" if self._everyone else "this client is not there"
                replies.append(Message(Error(NOT_THERE, f"round {self._t}: {what}"), reply_to=message))
            elif there[i] > 0:
                called.append((i, message))
        called.sort(key=lambda pair: pair[0])
        train = [(i, message) for i, message in called if kind_of(message) == MessageType.TRAIN]
        evaluate = [(i, message) for i, message in called if kind_of(message) == MessageType.EVALUATE]
        training = not self._trained if self._paced or not messages else bool(train)
        if training:
            replies += self._train(train, there)
        replies += self._evaluate(evaluate)
        if messages and not replies:  # all dropped out; an empty list is more than some strategies of Flower can take
            replies = [Message(Error(NOT_THERE, f"round {self._t}: no answer"), reply_to=m) for m in messages]
        self._fresh()
        if self._paced:
            self._t, self._trained = self._t + int(self._trained), not self._trained
        else:
            self._trained = True
        if training and self._paced:
            self.dice.hold(keyed.seed(self.seed, "flower", "aggregate", self._t))
        return replies

    # Training --------------------------------------------------------------------------------------------------------

    def _train(self, called: list[tuple[int, Message]], there: dict[int, float]) -> list[Message]:
        """Trains everybody with the same mu in one call of the engine; who gets several messages, in several."""
        self.last = None
        flat: dict[int, Tensor] = {}  # stock strategies send one record to everybody
        groups: dict[tuple[float, int], list[tuple[int, Message, Tensor]]] = {}
        times: dict[int, int] = {}
        for i, message in called:
            content = message.content
            arrays = self._arrays(content)
            if id(arrays) not in flat:
                flat[id(arrays)] = self._flat(arrays)
            times[i] = times.get(i, 0) + 1
            groups.setdefault((self._mu(content), times[i]), []).append((i, message, flat[id(arrays)]))
        replies: list[Message] = []
        parts = [self._train_group(mu, members, there, replies) for (mu, _), members in groups.items()]
        self.last = together(parts) if parts else self._nothing()
        return replies

    def _train_group(
        self, mu: float, members: list[tuple[int, Message, Tensor]], there: dict[int, float], replies: list[Message]
    ) -> Round:
        task, t = self.task, self._t
        who = torch.tensor([i for i, _, _ in members])
        effort = torch.tensor([there[i] for i, _, _ in members])
        starts = [x for _, _, x in members]
        one = all(x is starts[0] for x in starts)
        start = starts[0].expand(len(who), -1) if one else torch.stack(starts)
        keys = keyed.fold(self.seed, "client", t, who.to(task.device))
        answer = self.engine(task, who, Work(start, mu=mu), keys, self.local, t, effort)
        heard = torch.isin(who, answer.who)
        lr = self.local.lr_at(t)
        there_now = self.row.available.to(task.device)
        start = start[: len(answer.who)] if one else start[heard.to(task.device)]
        round = Round(t, answer.who.to(task.device), start, answer.delta, answer.span, answer.loss, there_now, lr)
        good = finite(answer.delta)
        if self.on_failure == "stop" and not all(good):
            raise ValueError(
                f"round {t}: the update of client {int(answer.who[good.index(False)])} is not finite (NaN or "
                "infinity); training diverged: lower the learning rate or set clip"
            )
        host = task.layout.views((start[:1] if one else start).cpu())
        models = records(task.layout.views(answer.delta.cpu()), host)
        loss = answer.loss.tolist()
        span = None if answer.span is None else answer.span.tolist()
        efforts = effort.tolist()
        j = 0  # in the answer
        for at, (i, message, _) in enumerate(members):
            if not heard[at]:
                replies.append(self._failed(i, message, "no answer"))
                continue
            if not good[j]:
                replies.append(self._failed(i, message, "the update is not finite (NaN or infinity)"))
            else:
                metrics: dict[str, Any] = {
                    "num-examples": task.sizes[i] if self.objective == "examples" else 1,
                    "loss": loss[j],
                    "train_loss": loss[j],
                    "steps": self.local.count(self.local.used(task.sizes[i], t), efforts[at]),
                    "lr": lr,
                }
                if span is not None:
                    metrics["span"] = span[j]
                content = RecordDict()
                content["arrays"], content["metrics"] = models[j], MetricRecord(metrics)
                replies.append(self._modded.reply(t, i, message, content))
            j += 1
        return round if all(good) else only(round, torch.tensor(good))

    def _arrays(self, content: RecordDict) -> ArrayRecord:
        if any(not wire.foreign([name]) for name in (*content.array_records, *content.config_records)):
            raise ValueError(
                "the message carries a strategy's own work beyond where to start; that is what fedsim.simulate is for"
            )
        return wire.only_arrays(content)

    def _flat(self, arrays: ArrayRecord) -> Tensor:
        try:
            return self.form.flat(arrays).to(self.task.device)
        except wire.Unfit as error:
            raise ValueError(
                f"the strategy's arrays are not the task's model: {error}; begin with initial_arrays(task)"
            ) from error

    def _mu(self, content: RecordDict) -> float:
        """The pull towards the start. Raises ValueError for what is asked of clients that they would not do."""
        config = {key: value for record in content.config_records.values() for key, value in record.items()}
        if "clipping_norm" in config and not self.mods:
            raise ValueError(
                "the strategy has the clients clip their updates; give CohortGrid(mods=[fixedclipping_mod]) or "
                "adaptiveclipping_mod, of flwr.clientapp.mod, as the strategy's own documentation says"
            )
        mu = wire.number(config.get("proximal-mu", 0.0))
        if mu is None:
            raise ValueError(f"proximal-mu must be a number, got {config['proximal-mu']!r}")
        return mu

    def _failed(self, i: int, message: Message, reason: str) -> Message:
        self.absences.append(Absence(self._t, i, i + 1, reason))
        log.warning("round %d: client %d is absent: %s", self._t, i, reason)
        return Message(Error(RAISED, reason), reply_to=message)

    def _nothing(self) -> Round:
        nothing = torch.zeros(0, self.task.layout.size, dtype=self.task.dtype, device=self.task.device)
        who = torch.zeros(0, dtype=torch.int64, device=self.task.device)
        there = self.row.available.to(self.task.device)
        return Round(self._t, who, nothing, nothing, nothing[:, 0], nothing[:, 0], there, self.local.lr_at(self._t))

    # Evaluation, and who they are ------------------------------------------------------------------------------------

    def _evaluate(self, called: list[tuple[int, Message]]) -> list[Message]:
        groups: dict[int, list[tuple[int, Message]]] = {}
        for i, message in called:
            groups.setdefault(id(self._arrays(message.content)), []).append((i, message))
        replies = []
        for members in groups.values():
            x = self._flat(self._arrays(members[0][1].content))
            if self.evaluate == "own":
                figures = own_figures(self.task, x, [i for i, _ in members])
            else:
                figures = [tested_figures(self.task, x)] * len(members)
            for (_, message), found in zip(members, figures, strict=True):
                replies.append(Message(RecordDict({"metrics": MetricRecord(found)}), reply_to=message))
        return replies

    def _describe(self, message: Message) -> Message:
        i = message.metadata.dst_node_id - 1
        card: dict[str, Any] = {"partition-id": i, "num-partitions": self.task.n, "num-examples": self.task.sizes[i]}
        return Message(RecordDict({wire.OURS: ConfigRecord(card)}), reply_to=message)


def kind_of(message: Message) -> str:
    """train, evaluate or query; a message of type "train.mine" is a train message."""
    return str(message.metadata.message_type).partition(".")[0]
