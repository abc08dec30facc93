"""A server strategy of ours as a flwr Strategy, for anybody's ServerApp.

    FlowerStrategy(FedAU(cutoff=50)).start(grid, initial_arrays, num_rounds=100, evaluate_fn=...)

A round: who is there and sampled is asked -> who answers with something usable took part -> the strategy makes of it
what it does in `simulate`. An error, no reply, a wrong name or shape, NaN: the client was absent in that round, which
is what strategies for partial participation are about; it is logged, and kept in `absences`. A round in which nobody
took part is an empty round, and goes by the strategy's mathematics too.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp import strategy as flower
from torch import Tensor

from fedsim import keyed
from fedsim.checkpoint import load_checkpoint, save_checkpoint
from fedsim.flower import wire
from fedsim.flower.replies import Aggregate, Reply, loss_of, read, weighted_mean
from fedsim.flower.roster import Roster
from fedsim.rows import Rows
from fedsim.simulation import sound
from fedsim.strategy import GossipStrategy, Round, Strategy, Work, complete, core

log = logging.getLogger("flwr.fedsim")  # a child of Flower's own, so it shows where Flower's lines show


class Absence(NamedTuple):
    """Somebody who was asked and did not take part."""

    t: int  # round, 0, 1, ...
    client: int
    node: int
    reason: str


class Asked(NamedTuple):
    """Who was asked this round, and what they were told."""

    who: Tensor  # [k]  ascending
    work: Work
    available: Tensor  # [m]


class FlowerStrategy(flower.Strategy):
    """Any server strategy of ours, or wrapper of one, over Flower's Grid.

    Works with every ClientApp that stock FedAvg works with (one ArrayRecord with the names and shapes of the initial
    arrays, one MetricRecord with num-examples). Strategies whose work is more than a start (SCAFFOLD, FedProx) need
    clients that declare that they understand it, as `client_app` does; others are refused, never left to ignore it.

    Nodes become clients as roster.py says. objective: p_i by "examples" (the latest count each client gave, in a query
    or a reply; who has not been heard counts like the mean of the others) or "uniform". num_clients: n, to keep room
    for clients that join later. seed: sampling, the strategy's key and the clients' minibatches, all keyed by round
    and client. The first round waits `patience` seconds for max(min_available_nodes, min_train_nodes) nodes, later
    rounds wait for nobody. fraction_train of the nodes there, at least min_train_nodes, are asked; the same for
    evaluate. lr, as MIFA wants it, comes from the replies' "lr" (their mean where they differ; in a round without any,
    the last one heard); span from "span"; loss from "loss", "train_loss" or "train-loss", NaN where there is none.

    replies="delta" has clients of ours answer with how far they moved, which is exact. Flower's client mods and
    differential privacy wrappers want to see updated models: give replies="arrays" with those.

    The model is `state`'s, whose arrays `start` passes around; arrays that come back changed (by a wrapper) become the
    model. `state` and `t`, rounds done, hold all memory; `save` and `restore` keep and find it. A second `start`
    goes on from there with the arrays it is given.

    Raises ValueError for gossip strategies (no single model), for work that clients do not understand, and when the
    aggregated model is not finite; TimeoutError when too few nodes come.
    """

    def __init__(
        self, strategy: Strategy, *, objective: Literal["examples", "uniform"] = "examples", seed: int = 0,
        num_clients: int | None = None, fraction_train: float = 1.0, fraction_evaluate: float = 1.0,
        min_train_nodes: int = 2, min_evaluate_nodes: int = 2, min_available_nodes: int = 2, patience: float = 600.0,
        query: bool = True, query_timeout: float = 60.0, replies: Literal["delta", "arrays"] = "delta",
        weighted_by_key: str = "num-examples", arrayrecord_key: str = "arrays", configrecord_key: str = "config",
        train_metrics_aggr_fn: Aggregate | None = None, evaluate_metrics_aggr_fn: Aggregate | None = None,
    ) -> None:  # fmt: skip
        self.strategy = serving(strategy)
        for name, given, known in (
            ("objective", objective, ("examples", "uniform")),
            ("replies", replies, ("delta", "arrays")),
        ):
            if given not in known:
                raise ValueError(f"{name} must be {known[0]!r} or {known[1]!r}, got {given!r}")
        for name, fraction in (("fraction_train", fraction_train), ("fraction_evaluate", fraction_evaluate)):
            if not 0 <= fraction <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {fraction}")
        if num_clients is not None and num_clients < 1:
            raise ValueError(f"num_clients must be at least 1, got {num_clients}")
        self.objective, self.seed, self.patience, self.replies = objective, seed, patience, replies
        self.fraction_train, self.fraction_evaluate = fraction_train, fraction_evaluate
        self.min_train_nodes = min_train_nodes if fraction_train else 0
        self.min_evaluate_nodes = min_evaluate_nodes if fraction_evaluate else 0
        self.min_available_nodes = min_available_nodes
        self.weighted_by_key, self.arrayrecord_key = weighted_by_key, arrayrecord_key
        self.configrecord_key = configrecord_key
        self.train_metrics_aggr_fn = train_metrics_aggr_fn or weighted_mean
        self.evaluate_metrics_aggr_fn = evaluate_metrics_aggr_fn or weighted_mean
        self.roster = Roster(num_clients, query, query_timeout)
        self.state: Any = None  # of the strategy; None before the first round
        self.t = 0  # rounds done
        self.absences: list[Absence] = []
        self._whole = self.strategy  # with what it left out filled in, once the clients are known
        self._lr: float | None = None
        self._form: wire.Form | None = None
        self.p: Tensor | None = None  # [n] objective's weights, from the counts heard so far
        self._asked: Asked | None = None
        self._ours: ArrayRecord | None = None  # the arrays that are the state's model
        self._checkpoint: Path | None = None

    # Flower's five verbs ---------------------------------------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The round's train messages; asks new nodes who they are first."""
        if self.state is None:
            self._recall()
            self.roster.wait(grid, max(self.min_available_nodes, self.min_train_nodes, 1), self.patience)
        here = self.roster.here(grid)
        if many := sorted(filter(self.roster.hosts, self.roster.there)):
            raise ValueError(
                f"node {many[0]} hosts many clients, which is for fedsim.flower.over; start the nodes of a "
                "FlowerStrategy with a partition-id each"
            )
        form = self._begin(arrays)
        self._arrived(arrays)
        available = torch.tensor(here, dtype=torch.int64)
        chosen = self._sample(available, self.fraction_train, self.min_train_nodes, "train")
        who = self._whole.pick(self.state, available, chosen)
        work = self._whole.send(self.state, who)
        self._refuse(work, who)
        self._asked = Asked(who, work, available)
        keys = keyed.fold(self.seed, "client", self.t, who).tolist()
        settings = ConfigRecord({**config, "server-round": server_round})
        one = form.record(work.start[0]) if len(who) and work.start.stride(0) == 0 else None
        messages = []
        for j, client in enumerate(who.tolist()):
            start = wire.share(one) if one is not None else form.record(work.start[j])
            content = RecordDict({self.arrayrecord_key: start, self.configrecord_key: ConfigRecord({**settings})})
            if self.roster.understands(client):
                for name, record in wire.pack_work(form, work, j, t=self.t, key=keys[j], reply=self.replies).items():
                    content[name] = record
            messages.append(Message(content, self.roster.node_of[client], MessageType.TRAIN))
        log.info("round %d: asked %d of %d clients there", self.t, len(who), len(here))
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The next model, and the mean of the replies' metrics weighted by examples."""
        if self._asked is None or self._form is None:
            raise ValueError(
                "aggregate_train was called before configure_train; a strategy needs to know whom it asked"
            )
        asked, self._asked = self._asked, None
        heard = self._hear(self._form, asked, replies)
        present = sorted(heard)
        self._reweigh()
        round = self._round(asked, [heard[i] for i in present], present)
        self.state = self._whole.step(self.state, round)
        model = self._whole.model(self.state)
        sound(model, round)
        self.t += 1
        self._ours = self._form.record(model)
        contents = [heard[i].content for i in present]
        return self._ours, self.train_metrics_aggr_fn(contents, self.weighted_by_key) if contents else None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The round's evaluate messages."""
        if self.fraction_evaluate == 0:
            return []
        available = torch.tensor(self.roster.here(grid), dtype=torch.int64)
        who = self._sample(available, self.fraction_evaluate, self.min_evaluate_nodes, "evaluate")
        messages = []
        for client in who.tolist():
            settings = ConfigRecord({**config, "server-round": server_round})
            content = RecordDict({self.arrayrecord_key: wire.share(arrays), self.configrecord_key: settings})
            messages.append(Message(content, self.roster.node_of[client], MessageType.EVALUATE))
        return messages

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """The mean of the replies' metrics weighted by examples; replies without a usable weight are left out."""
        usable = []
        for reply in sorted(replies, key=lambda reply: self.roster.client_of.get(reply.metadata.src_node_id, -1)):
            node = reply.metadata.src_node_id
            if reply.has_error():
                log.warning("evaluation by node %d failed: %s", node, wire.first_line(reply.error.reason or "error"))
            elif not (wire.number(wire.values(reply.content).get(self.weighted_by_key)) or 0) > 0:
                log.warning("evaluation by node %d is left out: it gives no positive %s", node, self.weighted_by_key)
            else:
                usable.append(reply.content)
        return self.evaluate_metrics_aggr_fn(usable, self.weighted_by_key) if usable else None

    def summary(self) -> None:
        log.info("%s, objective %s, seed %d", self.strategy, self.objective, self.seed)
        log.info("fraction: train %g, evaluate %g", self.fraction_train, self.fraction_evaluate)

    # Memory ----------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """A checkpoint of all memory, as `fedsim.checkpoint` writes it: between rounds, as from an evaluate_fn."""
        if self.state is None:
            raise ValueError("there is nothing to save before the first round")
        p = None if self.p is None else self.p.tolist()
        meta = {"clients": self.roster.as_dict(), "p": p, "lr": self._lr, "seed": self.seed}
        save_checkpoint(path, self.state, self.t, meta)

    def restore(self, path: str | Path) -> FlowerStrategy:
        """Goes on from a checkpoint at the next `start`, whose initial arrays then give names and shapes only."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no checkpoint {path}")
        self._checkpoint, self.state = Path(path), None
        return self

    # Parts -----------------------------------------------------------------------------------------------------------

    def _begin(self, arrays: ArrayRecord) -> wire.Form:
        """The model's form; before the first round makes the state too."""
        if self.state is not None and self._form is not None:
            return self._form
        n = self.roster.n
        if n is None:
            raise TimeoutError(
                f"no node said who it is within {self.roster.timeout:g} s; see that their apps are running"
            )
        self._form = form = wire.Form.of(arrays)
        x = form.flat(arrays)
        if not torch.isfinite(x).all():
            raise ValueError("the initial arrays hold NaN or infinity")
        if self._checkpoint is None:
            self.p = self._weights(n)
        counts = self.roster.examples
        sizes = tuple(int(counts[i]) for i in range(n)) if len(counts) == n else None
        self._whole = complete(self.strategy, layout=form.layout, sizes=sizes)
        assert self.p is not None
        self.state = self._init(x, self.p)
        if self._checkpoint is not None:
            self.state, self.t, _ = load_checkpoint(self._checkpoint, self.state)
            self._checkpoint = None
        self._ours = arrays
        return form

    def _init(self, x: Tensor, p: Tensor) -> Any:
        return self._whole.init(x, p, keyed.seed(self.seed, "strategy"))

    def _recall(self) -> None:
        """Takes over the clients of the checkpoint, before any node is met."""
        if self._checkpoint is None:
            return
        meta = read_meta(self._checkpoint)
        if meta.get("seed") != self.seed or "clients" not in meta:
            raise ValueError(f"{self._checkpoint} is not a checkpoint of a FlowerStrategy with seed {self.seed}")
        self.roster.restore(meta["clients"])
        self._lr, self.p = meta["lr"], torch.tensor(meta["p"], dtype=torch.float64)

    def _arrived(self, arrays: ArrayRecord) -> None:
        """Arrays that are not the ones handed out last are the model from now on."""
        if arrays is self._ours or self._form is None or self._ours is None:
            return
        x = self._form.flat(arrays)
        if not torch.equal(x, self._form.flat(self._ours)):
            self.state = self.state._replace(x=x)
        self._ours = arrays

    def _sample(self, available: Tensor, fraction: float, least: int, purpose: str) -> Tensor:
        """Who is asked [k], ascending: a draw that depends on (seed, purpose, round) and on who is there."""
        m = len(available)
        k = min(m, max(int(m * fraction + 1e-9), least))  # 1e-9: 100 * 0.29 is 28.999...
        if k == m:
            return available
        order = keyed.permutation(keyed.fold(self.seed, "flower", purpose, self.t), m)
        return available[order[:k]].sort().values

    def _refuse(self, work: Work, who: Tensor) -> None:
        """Work that a client would ignore is refused."""
        for client in who.tolist():
            unknown = [word for word in wire.needs(work) if word not in self.roster.understands(client)]
            if unknown:
                raise ValueError(
                    f"{type(self.strategy).__name__} tells clients more than where to start ({', '.join(unknown)}), "
                    f"and the ClientApp of client {client} (node {self.roster.node_of[client]}) does not say that it "
                    "understands; use fedsim.flower.client_app, or answer the query with what the app honours"
                )

    def _hear(self, form: wire.Form, asked: Asked, replies: Iterable[Message]) -> dict[int, Reply]:
        """The usable answers, by client; everybody else who was asked is absent."""
        place = {client: j for j, client in enumerate(asked.who.tolist())}
        heard: dict[int, Reply] = {}
        reasons: dict[int, str] = {}
        for reply in replies:
            node = reply.metadata.src_node_id
            client = self.roster.client_of.get(node, -1)
            if client not in place or client in heard or client in reasons:
                log.warning("round %d: a reply from node %d, which had none to give, is ignored", self.t, node)
                continue
            try:
                lenient = self.objective == "uniform" or client in self.roster.examples
                heard[client] = read(reply, form, asked.work, place[client], self.weighted_by_key, lenient)
            except wire.Unfit as unfit:
                reasons[client] = str(unfit)
        for client in place:
            if client not in heard:
                absence = Absence(self.t, client, self.roster.node_of[client], reasons.get(client, "no reply"))
                self.absences.append(absence)
                level = logging.WARNING if client in reasons else logging.INFO
                log.log(level, "round %d: client %d (node %d) counts as absent: %s", *absence)
        for client in heard:
            count = wire.number(heard[client].metrics.get(self.weighted_by_key))
            if count is not None:
                self.roster.examples[client] = count
        return heard

    def _round(self, asked: Asked, heard: list[Reply], present: list[int]) -> Round:
        """What reached the strategy, clients ascending whatever the order of the replies."""
        start = asked.work.start
        who = torch.tensor(present, dtype=torch.int64)
        if len(present) < len(asked.who):
            start = start[torch.isin(asked.who, who)]
        rates = [rate for reply in heard if (rate := wire.number(reply.metrics.get("lr"))) is not None and rate >= 0]
        if rates:
            self._lr = rates[0] if len(set(rates)) == 1 else sum(rates) / len(rates)
        if not heard:
            nothing = start.new_zeros(0)
            return Round(self.t, who, start, start.clone(), nothing, nothing, asked.available, self._lr)
        spans = [wire.number(reply.metrics.get("span")) for reply in heard]
        known = [span for span in spans if span is not None and span > 0]
        return Round(
            self.t,
            who,
            start,
            torch.stack([reply.delta for reply in heard]),
            torch.tensor(known, dtype=start.dtype) if len(known) == len(heard) else None,
            torch.tensor([loss_of(reply.metrics) for reply in heard], dtype=start.dtype),
            asked.available,
            self._lr,
            told={
                name: torch.stack([reply.told[name] for reply in heard])
                for name in asked.work.ask
                if all(name in reply.told for reply in heard)
            },
        )

    def _weights(self, n: int) -> Tensor:
        """The objective's weights p [n], from the counts heard so far."""
        counts = self.roster.examples
        if self.objective == "uniform" or not counts:
            return torch.full((n,), 1.0 / n, dtype=torch.float64)
        mean = sum(counts.values()) / len(counts)
        p = torch.tensor([counts.get(i, mean) for i in range(n)], dtype=torch.float64)
        return p / p.sum()

    def _reweigh(self) -> None:
        """Puts what was learned of the clients' examples into the state."""
        assert self.p is not None
        p = self._weights(len(self.p))
        if torch.equal(p, self.p):
            return
        zero = torch.zeros_like(self._whole.model(self.state))
        before, after = self._init(zero.clone(), self.p), self._init(zero.clone(), p)
        self.state, self.p = reweighed(self.state, before, after), p


def serving(strategy: Any) -> Strategy:
    """The strategy, if it keeps one model on a server. Raises ValueError for anything else."""
    if not isinstance(strategy, Strategy):
        name = strategy.__name__ if isinstance(strategy, type) else type(strategy).__name__
        raise ValueError(f"FlowerStrategy takes a strategy of fedsim such as FedAU(), got {name}")
    inner = core(strategy)
    if isinstance(inner, GossipStrategy):
        raise ValueError(
            f"{type(inner).__name__} is gossip: a model for every node and no server, which no Flower strategy "
            "can be; run it with fedsim.simulate"
        )
    if type(inner).survey is not Strategy.survey:
        raise ValueError(
            f"{type(inner).__name__} asks its clients before it tells them what to do, and a Flower strategy has one "
            "exchange a round; run it with fedsim.flower.over, or without Flower"
        )
    return strategy


def reweighed(state: Any, before: Any, after: Any) -> Any:
    """A state in which what `init` made of the old weights is what it makes of the new ones.

    `before` and `after` are fresh states of both: where they agree nothing depends on the weights; where they differ
    the state must still be as `init` left it. Raises ValueError where it has moved on from there.
    """
    if isinstance(state, Rows):
        if not torch.equal(before.p, after.p):
            state.reweigh(after.p)
        return state
    if isinstance(state, Tensor) and isinstance(before, Tensor):
        if torch.equal(before, after):
            return state
        if state.shape != before.shape or not torch.equal(state, before):
            raise ValueError(
                "the clients' numbers of examples changed, and the strategy has already worked with the old weights; "
                "use objective='uniform', or let the ClientApps answer the query with num-examples"
            )
        return after
    if isinstance(state, tuple) and hasattr(state, "_fields"):
        return type(state)(*(reweighed(*part) for part in zip(state, before, after, strict=True)))
    return state


def read_meta(path: Path) -> dict[str, Any]:
    """What a checkpoint keeps beside the state."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("fedsim", "{}"))
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a checkpoint, or is damaged: {wire.first_line(error)}") from error
    meta: dict[str, Any] = header.get("meta", {})
    return meta
