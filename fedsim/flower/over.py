"""An engine whose clients are somewhere else: the work travels through any flwr Grid to ClientApps, and comes back.

    for step in fedsim.simulate(task, strategy, schedule, local, engine=over(grid)): ...

is a whole ServerApp: the same loop, schedules, strategies, gossip and recording, with the training done by Flower's
simulation runtime, by SuperNodes, or by any other Grid. One message per client and round, or per node and round where
a node of ours hosts many. Clients of ours (`client_app`) train what `Loop` trains, bit for bit; a ClientApp of yours
(arrays back, num-examples beside them) is asked in the same order, by the same schedule.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from fedsim.engine import Answer
from fedsim.engine.plan import refuse
from fedsim.flower import private, wire
from fedsim.flower.replies import Reply, loss_of, read, read_cohort
from fedsim.flower.roster import Roster, listed, spans_of
from fedsim.flower.strategy import Absence
from fedsim.local import LocalSGD
from fedsim.strategy import Work
from fedsim.task import Task

log = logging.getLogger("flwr.fedsim")  # a child of Flower's own, so it shows where Flower's lines show

Value = int | float | str | bytes | bool | list[int] | list[float] | list[str] | list[bytes] | list[bool]


class Over:
    """The engine that `over` makes. What it remembers is who is who, and what came back:

    absences: everybody who was asked and did not answer with something usable, round after round, and why.
    heard: the metrics of the last round's replies, client -> name -> value, and "node".
    """

    def __init__(
        self, grid: Grid, *, timeout: float, on_failure: Literal["absent", "stop"], patience: float,
        replies: Literal["delta", "arrays"], config: Mapping[str, Value], extra: Mapping[str, Value],
        roster: Roster | None,
    ) -> None:  # fmt: skip
        for name, given, known in (
            ("on_failure", on_failure, ("absent", "stop")),
            ("replies", replies, ("delta", "arrays")),
        ):
            if given not in known:
                raise ValueError(f"{name} must be {known[0]!r} or {known[1]!r}, got {given!r}")
        for name, seconds in (("timeout", timeout), ("patience", patience)):
            if not 0 < seconds < float("inf"):
                raise ValueError(f"{name} must be a positive number of seconds, got {seconds}")
        private.introduce()
        self.grid, self.timeout, self.on_failure, self.patience = grid, timeout, on_failure, patience
        self.replies, self.config, self.extra = replies, dict(config), dict(extra)
        self.roster = Roster(timeout=patience) if roster is None else roster
        self.absences: list[Absence] = []
        self.heard: dict[int, dict[str, Any]] = {}

    def __call__(
        self, task: Task, who: Tensor, work: Work, keys: Tensor, local: LocalSGD, t: int = 0,
        effort: Tensor | None = None,
    ) -> Answer:  # fmt: skip
        refuse(work, local)
        form = wire.Form.of_layout(task.layout, task.dtype)
        here = self._here(task.n)
        asked = Asked(t, who.tolist(), hosted(work, local), effort)
        told = keys.tolist()
        one = form.record(asked.work.start[0]) if len(who) and asked.work.start.stride(0) == 0 else None
        messages, cohorts = [], dict[int, list[int]]()
        for j, client in enumerate(asked.who):
            node = self.roster.node_of.get(client, 0)
            if client in here and self.roster.hosts(node):
                cohorts.setdefault(node, []).append(j)
            elif client in here:
                start = form.record(asked.work.start[j]) if one is None else wire.share(one)
                content = self._content(form, asked, j, start, told[j])
                messages.append(Message(content, node, MessageType.TRAIN))
        for node, rows in cohorts.items():
            messages.append(Message(self._contents(form, asked, rows, told), node, MessageType.TRAIN))
        replies = self.grid.send_and_receive(messages, timeout=self.timeout) if messages else ()
        heard = self._hear(form, asked, here, replies)
        return answer(asked, heard, task)

    def _here(self, n: int) -> set[int]:
        """The clients that are there. Before the first round waits for all of them.

        Raises TimeoutError naming who is missing, WrongNodes when the nodes are of another task.
        """
        self.roster.n = n
        if len(self.roster.node_of) == n:  # all have come once
            return set(self.roster.here(self.grid))
        now = begun = changed = time.monotonic()
        count = 0
        while True:
            before, count, now = count, len(set(self.grid.get_node_ids())), time.monotonic()
            changed = now if count != before else changed
            late, quiet = now - begun >= self.patience, now - changed >= min(3.0, self.patience / 4)
            if count and (count >= n or quiet or late):  # a question to few nodes costs as much as one to all
                here = set(self.roster.here(self.grid))
                self.roster.check(n)
                if len(self.roster.node_of) == n:
                    return here
            if late:
                missing = sorted(set(range(n)) - set(self.roster.node_of))
                one = f'"partition-id={missing[0]} num-partitions={n}" for each'
                if any(map(self.roster.hosts, self.roster.cards)):
                    one = f"'clients=\"{spans_of(missing)}\"'"
                raise TimeoutError(
                    f"no node came for {listed(missing)} of {n} within {self.patience:g} s: start a SuperNode "
                    f"with --node-config {one}, or wait longer"
                )
            time.sleep(min(1.0, self.patience / 20))

    def _content(self, form: wire.Form, asked: Asked, j: int, start: ArrayRecord, key: int) -> RecordDict:
        """The message to client j of the cohort."""
        content = RecordDict({"arrays": start, "config": ConfigRecord({**self.config, "server-round": asked.t + 1})})
        effort = asked.share(j)
        if self.roster.understands(asked.who[j]) or asked.needs(j):
            records = wire.pack_work(form, asked.work, j, t=asked.t, key=key, reply=self.replies, effort=effort)
            for name, record in records.items():
                content[name] = record
            content.config_records[wire.OURS].update(self.extra)
        return content

    def _contents(self, form: wire.Form, asked: Asked, rows: list[int], keys: list[int]) -> RecordDict:
        """The message to a node with many clients, those in these rows of the cohort."""
        who, efforts = [asked.who[j] for j in rows], [asked.share(j) for j in rows]
        records = wire.pack_cohort(
            form, asked.work, rows, t=asked.t, who=who, keys=[keys[j] for j in rows], efforts=efforts
        )
        content = RecordDict({"config": ConfigRecord({**self.config, "server-round": asked.t + 1})})
        for name, record in records.items():
            content[name] = record
        content.config_records[wire.OURS].update(self.extra)
        return content

    def _hear(self, form: wire.Form, asked: Asked, here: set[int], replies: Iterable[Message]) -> dict[int, Reply]:
        """The usable answers, by client, ascending; everybody else who was asked is absent, or the end of the run."""
        place = {client: j for j, client in enumerate(asked.who)}
        heard: dict[int, Reply] = {}
        reasons: dict[int, str] = {client: "its node is not there" for client in place if client not in here}
        waiting: dict[int, list[int]] = {}
        for client in place:
            if client in here:
                waiting.setdefault(self.roster.node_of[client], []).append(client)
        for reply in replies:
            node = reply.metadata.src_node_id
            clients = waiting.pop(node, [])
            if not clients:
                log.warning("round %d: a reply from node %d, which had none to give, is ignored", asked.t, node)
                continue
            client = clients[0]
            self._refuse(asked, place[client], reply)
            if self.roster.hosts(node):
                for each, found in read_cohort(reply, form, asked.work, clients).items():
                    if isinstance(found, Reply):
                        heard[each] = found
                    else:
                        reasons[each] = found
                continue
            try:
                heard[client] = read(reply, form, asked.work, place[client], "num-examples", lenient=True)
                if lacks := asked.work.ask - heard[client].told.keys():
                    del heard[client]
                    raise wire.Unfit(f"the reply lacks {min(lacks)!r}, which was asked for")
            except wire.Unfit as unfit:
                reasons[client] = str(unfit)
        alike: dict[tuple[int, str], list[int]] = {}
        for client in place:
            if client not in heard:
                reason = reasons.get(client, f"no reply within {self.timeout:g} s")
                absence = Absence(asked.t, client, self.roster.node_of.get(client, 0), reason)
                self.absences.append(absence)
                if self.on_failure == "stop":
                    raise ValueError(
                        f"round {asked.t}: client {client} (node {absence.node}) failed: {reason}; "
                        "on_failure='absent' goes on without it"
                    )
                alike.setdefault((absence.node, reason), []).append(client)
        for (node, reason), clients in alike.items():
            many = "count" if len(clients) > 1 else "counts"
            log.warning("round %d: %s (node %d) %s as absent: %s", asked.t, listed(clients), node, many, reason)
        ordered = sorted(heard)
        self.heard = {i: {**heard[i].metrics, "node": self.roster.node_of[i]} for i in ordered}
        return {i: heard[i] for i in ordered}

    def _refuse(self, asked: Asked, j: int, reply: Message) -> None:
        """Work that a client has ignored, or may have, is refused."""
        client = asked.who[j]
        unknown = [word for word in asked.needs(j) if word not in self.roster.understands(client)]
        if not unknown:
            return
        why = "its reply does not say that it honoured it"
        if reply.has_error():
            if reply.error.code in private.UNREACHED:
                return
            why = f"it failed with {wire.first_line(reply.error.reason)}"
        elif not (unknown := [word for word in unknown if word not in wire.honoured(reply.content)]):
            return
        raise ValueError(
            f"the strategy tells clients more than where to start ({', '.join(unknown)}), and the ClientApp of client "
            f"{client} does not say that it understands, and {why}; use fedsim.flower.client_app, or reply with a "
            "config that lists it under 'honoured'"
        )


class Asked(NamedTuple):
    """A round's work, on the host."""

    t: int
    who: list[int]  # [k]  ascending
    work: Work
    effort: Tensor | None  # [k]

    def share(self, j: int) -> float:
        return 1.0 if self.effort is None else float(self.effort[j])

    def needs(self, j: int) -> list[str]:
        """What client j must understand beyond where to start."""
        return wire.needs(self.work) + (["effort"] if self.share(j) < 1 else [])


def over(
    grid: Grid, *, timeout: float = 600.0, on_failure: Literal["absent", "stop"] = "absent", patience: float = 60.0,
    replies: Literal["delta", "arrays"] = "delta", config: Mapping[str, Value] | None = None,
    extra: Mapping[str, Value] | None = None, roster: Roster | None = None,
) -> Over:  # fmt: skip
    """An engine that trains through a Flower Grid; client i of the task is the node with partition-id i.

    Before the first round all n clients must come within `patience` seconds. A round's replies have `timeout` seconds.
    A client that raises, is late or gone, or answers with NaN, a wrong name or a wrong shape is absent for the round
    (`absences` says why), or ends the run with on_failure="stop". Nodes are asked once which partition they hold; the
    nodes of a ClientApp that answers no query (see `with_query`) are numbered by their ids, which Flower draws afresh
    in every run. A node of ours may host many clients (see `client_app`): it gets one message a round for all of them
    that are asked, and when it fails or is gone all of them are absent.

    `config` goes into every message's "config", `extra` into our own record, `roster` shares who is who with another
    engine on the same grid. replies="arrays" has clients of ours answer with updated models, as Flower's client mods
    want it, at the cost of rounding; nodes that host many always answer with deltas.

    Work beyond where to start (shift, scale, mu, other, velocity, partial effort, questions) needs ClientApps that say
    in the query that they understand it, or in the reply that they "honoured" it. Others are refused: ValueError.
    TimeoutError, naming who is missing, when not all nodes come; WrongNodes when they are of another task.
    """
    return Over(
        grid, timeout=timeout, on_failure=on_failure, patience=patience, replies=replies, config=config or {},
        extra=extra or {}, roster=roster,
    )  # fmt: skip


def hosted(work: Work, local: LocalSGD) -> Work:
    """The work on the host, without the question for a velocity that there is none of."""

    def here(value: Any) -> Any:
        return value.cpu() if isinstance(value, Tensor) else value

    ask = work.ask if local.momentum else work.ask - {"velocity"}
    return Work(
        here(work.start), here(work.shift), here(work.scale), here(work.mu), here(work.velocity), ask, here(work.other),
        here(work.against), tuple(phase._replace(free=here(phase.free)) for phase in work.phases),
    )  # fmt: skip


def answer(asked: Asked, heard: Mapping[int, Reply], task: Task) -> Answer:
    """What came back, as any engine gives it."""
    replies, like = list(heard.values()), asked.work.start.new_zeros(0).to(task.device)
    if not replies:
        return Answer(torch.zeros(0, dtype=torch.int64), like.new_zeros(0, asked.work.start.shape[1]), like, like, {})
    spans = [wire.number(reply.metrics.get("span")) for reply in replies]
    known = [span for span in spans if span is not None]
    return Answer(
        torch.tensor(list(heard), dtype=torch.int64),
        torch.stack([reply.delta for reply in replies]).to(task.device),
        torch.tensor(known, dtype=like.dtype).to(like) if len(known) == len(replies) else None,
        torch.tensor([loss_of(reply.metrics) for reply in replies], dtype=task.dtype).to(task.device),
        {name: torch.stack([reply.told[name] for reply in replies]).to(task.device) for name in asked.work.ask},
    )
