"""Our clients as a flwr ClientApp: each message trains, measures or describes the one client that got it.

Or trains many: a node started with --node-config 'clients="0-499"' hosts all of these, and `over` sends it one message
a round for those of them that are asked.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor

from fedsim import keyed, measure
from fedsim.engine import Engine, Loop, choose
from fedsim.engine.loop import rows_of
from fedsim.flower import wire
from fedsim.flower.roster import listed
from fedsim.local import LocalSGD
from fedsim.simulation import first_model
from fedsim.strategy import EXTRAS
from fedsim.task import Task

PARTITION = ("partition-id", "num-partitions")
HOSTS = "clients"  # in the node config
UNDERSTANDS = (
    "shift",
    "scale",
    "each parameter",
    "mu",
    "other",
    "phases",
    "effort",
    *(f"ask {name}" for name in sorted(EXTRAS)),
)


def client_app(
    task: Task | Callable[[Context], Task], local: LocalSGD, *, engine: Engine | None = None, seed: int = 0,
    evaluate: Literal["own", "test"] = "own",
) -> ClientApp:  # fmt: skip
    """A ClientApp whose node with partition-id i is client i of the task, or with clients="0-3,7" these five.

    `task` may be a function of the Context; it is called for every message, so let it cache what is costly. A train
    message trains that client from the arrays that came, with the work in it (see wire/), and answers with the
    arrays, or with how far they moved when asked so, and num-examples, loss, train_loss (the same), steps, lr and span.
    Its minibatches follow from the key in the message, and without one from (seed, server-round, i) as in `simulate`;
    "seed" in the train config goes before `seed`, and "proximal-mu" is the work's mu, as Flower's FedProx means it. An
    evaluate message is answered with the loss and accuracy on the client's own examples, or on the task's test examples
    (evaluate="test"). A query is answered with partition-id, num-partitions, num-examples and what of a strategy's work
    is understood.

    A node that hosts many clients trains those asked at once, with `engine`, and answers for each. Its default is
    the stacked engine in a chunk that suits the task, whoever hosts whom; another node's default is `Loop`, the same
    to rounding. `over` uses such nodes; strategies of Flower itself know one client per node.

    Any Flower strategy can be used with the others; the error of a bad message names what is wrong with it.
    """
    if evaluate not in ("own", "test"):
        raise ValueError(f"evaluate must be 'own' (the client's examples) or 'test', got {evaluate!r}")
    run = Loop() if engine is None else engine
    suits: list[tuple[Task, Engine]] = []  # the engine for many clients of the task that was last asked for
    app = ClientApp()

    def given(context: Context) -> tuple[Task, int]:
        here = task if isinstance(task, Task) else task(context)
        return here, client_of(context, here.n)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        if HOSTS in context.node_config:
            here = task if isinstance(task, Task) else task(context)
            if not suits or suits[0][0] is not here:
                suits[:] = [(here, choose(here, local, here.n) if engine is None else engine)]
            return Message(trained_many(here, local, suits[0][1], context, message.content), reply_to=message)
        here, i = given(context)
        return Message(trained(here, local, run, i, message.content, seed), reply_to=message)

    @app.evaluate()
    def evaluate_model(message: Message, context: Context) -> Message:
        here, i = given(context)
        form = wire.Form.of_layout(here.layout, here.dtype)
        x = form.flat(wire.only_arrays(message.content)).to(here.device)
        figures = figures_of(here, x, i if evaluate == "own" else None)
        return Message(RecordDict({"metrics": MetricRecord(figures)}), reply_to=message)

    @app.query()
    def describe(message: Message, context: Context) -> Message:
        understands = [*UNDERSTANDS, *(["velocity"] if local.momentum else [])]
        if HOSTS in context.node_config:
            return Message(RecordDict({wire.OURS: host_card(context, understands)}), reply_to=message)
        here, i = given(context)
        answer = ConfigRecord(
            {
                "partition-id": i,
                "num-partitions": here.n,
                "num-examples": here.sizes[i],
                "understands": understands,
            }
        )
        return Message(RecordDict({wire.OURS: answer}), reply_to=message)

    return app


def with_query(app: ClientApp, *understands: str) -> ClientApp:
    """The app, made to answer queries with its node's partition-id and num-partitions, so that client i is partition i
    in every run. `understands` lists what of a strategy's work beyond where to start its training goes by."""

    @app.query()
    def describe(message: Message, context: Context) -> Message:
        said = {name: context.node_config[name] for name in PARTITION if name in context.node_config}
        return Message(
            RecordDict({wire.OURS: ConfigRecord({**said, "understands": list(understands)})}), reply_to=message
        )

    return app


def initial_arrays(task: Task, seed: int = 0) -> ArrayRecord:
    """The model that `fedsim.simulate` with this seed starts from, under the task's names."""
    return wire.Form.of_layout(task.layout, task.dtype).record(first_model(task, seed))


def client_of(context: Context, n: int) -> int:
    """Which client a node is. Raises ValueError without a partition-id, or with one of no client."""
    if HOSTS in context.node_config:
        raise ValueError("the node hosts many clients, which is for training with fedsim.flower.over")
    i = context.node_config.get("partition-id")
    if not isinstance(i, int):
        raise ValueError(
            'the node has no partition-id; start it with --node-config "partition-id=0 num-partitions=..."'
        )
    if not 0 <= i < n:
        raise ValueError(f"the node has partition-id {i} but the task has the clients 0 to {n - 1}")
    return i


def trained(task: Task, local: LocalSGD, engine: Engine, i: int, content: RecordDict, seed: int) -> RecordDict:
    """The reply of client i to a train message's content."""
    form = wire.Form.of_layout(task.layout, task.dtype)
    start = form.flat(wire.only_arrays(content)).to(task.device)
    ours = wire.ours(content)
    config: dict[str, Any] = {}
    for name in wire.foreign(content.config_records):
        config.update(content.config_records[name])
    t = int(ours.get("t", int(config.get("server-round", 1)) - 1))
    key = int(ours["key"]) if "key" in ours else int(keyed.fold(int(config.get("seed", seed)), "client", t, i))
    effort = float(ours.get("effort", 1.0))
    work = wire.unpack_work(form, content, start)
    if "proximal-mu" in config:  # of Flower's FedProx
        mu = wire.number(config["proximal-mu"])
        if mu is None or mu < 0:
            raise ValueError(f"proximal-mu must be a number from 0, got {config['proximal-mu']!r}")
        if work.mu and mu:
            raise ValueError("the strategy's mu and the config's proximal-mu say the same thing; leave one out")
        work = work._replace(mu=mu or work.mu)
    answer = engine(
        task,
        torch.tensor([i]),
        work,
        torch.tensor([key], device=task.device),
        local,
        t,
        torch.tensor([effort]),
    )
    exact = ours.get("reply") == "delta"
    metrics: dict[str, float | int | list[int] | list[float]] = {
        "num-examples": task.sizes[i],
        "loss": float(answer.loss[0]),
        "train_loss": float(answer.loss[0]),  # as Flower's QFedAvg calls it
        "steps": local.count(local.used(task.sizes[i], t), effort),
        "lr": float(local.lr_at(t)),
    }
    if answer.span is not None:
        metrics["span"] = float(answer.span[0])
    reply = RecordDict()
    model = form.record(answer.delta[0] if exact else start + answer.delta[0])
    reply[wire.DELTA if exact else "arrays"] = model
    for name, value in answer.told.items():
        if value.ndim == 1:
            metrics[wire.TOLD_METRIC + name] = float(value[0])
        else:
            reply[wire.TOLD + name] = form.record(value[0])
    reply["metrics"] = MetricRecord(metrics)
    if honoured := [*wire.needs(work), *(["effort"] if effort < 1 else [])]:
        reply[wire.OURS] = ConfigRecord({"honoured": honoured})
    return reply


def hosted_by(context: Context) -> list[int]:
    """The clients that a node hosts, ascending: "0-3,7" in its config. Raises ValueError for anything else."""
    given = context.node_config[HOSTS]
    found: list[int] = []
    for part in str(given).split(","):
        ends = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if ends is None or isinstance(given, bool) or int(ends[2] or ends[1]) < int(ends[1]):
            raise ValueError(f'clients must be numbers and ranges such as "0-3,7", got {given!r}')
        found += range(int(ends[1]), int(ends[2] or ends[1]) + 1)
    if len(set(found)) < len(found):
        raise ValueError(f"clients names a client twice: {given!r}")
    return sorted(found)


def host_card(context: Context, understands: list[str]) -> ConfigRecord:
    """What a node that hosts many clients says of itself, or what is wrong with its config."""
    try:
        return ConfigRecord({"clients": hosted_by(context), "understands": understands})
    except ValueError as error:
        return ConfigRecord({"fault": str(error)})


def hosting(app: ClientApp, n: int) -> ClientApp:
    """The app with clients 0 to n-1 divided evenly over its nodes, by their partition-id: node j of m hosts the j-th of
    m runs of clients."""
    made = ClientApp()

    def divided(message: Message, context: Context) -> Message:
        j, m = (int(context.node_config[name]) for name in PARTITION)
        clients = f"{j * n // m}-{(j + 1) * n // m - 1}"
        return app(message, replace(context, node_config={**context.node_config, HOSTS: clients}))

    for register in (made.train(), made.evaluate(), made.query()):
        register(divided)
    return made


def trained_many(task: Task, local: LocalSGD, engine: Engine, context: Context, content: RecordDict) -> RecordDict:
    """The reply of a node that hosts many clients to a train message's content."""
    form = wire.Form.of_layout(task.layout, task.dtype)
    t, who, work, keys, efforts = wire.unpack_cohort(form, content, task.device)
    if strange := sorted(set(who.tolist()) - set(hosted_by(context))):
        raise ValueError(f"the message asks {listed(strange)}, whom this node does not host")
    answer = engine(task, who, work, keys, local, t, efforts)
    there = answer.who.tolist()
    effort = dict(zip(who.tolist(), efforts.tolist(), strict=True))
    loss = answer.loss.tolist()
    metrics: dict[str, float | int | list[int] | list[float]] = {
        "num-examples": [task.sizes[i] for i in there],
        "loss": loss,
        "train_loss": loss,
        "steps": [local.count(local.used(task.sizes[i], t), effort[i]) for i in there],
        "lr": float(local.lr_at(t)),
    }
    if answer.span is not None:
        metrics["span"] = answer.span.tolist()
    reply = RecordDict()
    reply[wire.DELTA] = form.record(answer.delta)
    for name, value in answer.told.items():
        if value.ndim == 1:
            metrics[wire.TOLD_METRIC + name] = value.tolist()
        else:
            reply[wire.TOLD + name] = form.record(value)
    reply["metrics"] = MetricRecord(metrics)
    reply[wire.OURS] = ConfigRecord({"who": there, "honoured": wire.needs(work)})
    return reply


def figures_of(task: Task, x: Tensor, client: int | None) -> dict[str, float | int | list[int] | list[float]]:
    """Loss, accuracy and number of examples of a model [P] on a client's own data, or the test data (None)."""
    if client is not None:
        rows = rows_of(task, client)
        task = copy.copy(task)  # not dataclasses.replace: that would look for NaN in the whole pool again
        object.__setattr__(task, "test_inputs", task.inputs[rows])
        object.__setattr__(task, "test_targets", task.targets[rows])
    found = measure.test(task, x)
    out: dict[str, float | int | list[int] | list[float]] = {
        "num-examples": len(task.test_targets),
        "loss": found["test_loss"],
    }
    if "test_accuracy" in found:
        out["accuracy"] = found["test_accuracy"]
    return out
