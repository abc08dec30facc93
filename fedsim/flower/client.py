"""Our clients as a flwr ClientApp: each message trains, measures or describes the one client that got it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor

from fedsim import keyed, measure
from fedsim.engine import Engine, Loop
from fedsim.engine.loop import rows_of
from fedsim.flower import wire
from fedsim.local import LocalSGD
from fedsim.simulation import first_model
from fedsim.strategy import EXTRAS
from fedsim.task import Task

PARTITION = ("partition-id", "num-partitions")
UNDERSTANDS = ("shift", "scale", "mu", "effort", *(f"ask {name}" for name in sorted(EXTRAS)))


def client_app(
    task: Task | Callable[[Context], Task], local: LocalSGD, *, engine: Engine | None = None, seed: int = 0,
    evaluate: Literal["own", "test"] = "own",
) -> ClientApp:  # fmt: skip
    """A ClientApp whose node with partition-id i is client i of the task.

    `task` may be a function of the Context; it is called for every message, so let it cache what is costly. A train
    message trains that client from the arrays that came, with the work in it (see wire.py), and answers with the
    arrays, or with how far they moved when asked so, and num-examples, loss, steps, lr and span. Its minibatches
    follow from the key in the message, and without one from (seed, server-round, i) as in `simulate`; "seed" in the
    train config goes before `seed`. An evaluate message is answered with the loss and accuracy on the client's own
    examples, or on the task's test examples (evaluate="test"). A query is answered with partition-id,
    num-partitions, num-examples and what of a strategy's work is understood.

    Any Flower strategy can be used with it; the error of a bad message names what is wrong with it.
    """
    if evaluate not in ("own", "test"):
        raise ValueError(f"evaluate must be 'own' (the client's examples) or 'test', got {evaluate!r}")
    run = Loop() if engine is None else engine
    app = ClientApp()

    def given(context: Context) -> tuple[Task, int]:
        here = task if isinstance(task, Task) else task(context)
        return here, client_of(context, here.n)

    @app.train()
    def train(message: Message, context: Context) -> Message:
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
        here, i = given(context)
        answer = ConfigRecord(
            {
                "partition-id": i,
                "num-partitions": here.n,
                "num-examples": here.sizes[i],
                "understands": [*UNDERSTANDS, *(["velocity"] if local.momentum else [])],
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
        "steps": local.count(task.sizes[i], effort),
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
