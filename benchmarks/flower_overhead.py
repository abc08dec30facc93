"""Claim: a stock Flower strategy through `CohortGrid` costs at most 25 % over the native loop.

A round of 1000 clients, each 10 local steps of 32 examples with the multilayer perceptron 784-200-10 (159,010
parameters), through flwr's own FedAvg over `CohortGrid`, beside the native loop with our FedAvg and the same engine;
evaluation left out. The two take turns, after a round each to warm up; given are medians over the rounds, and the
median of the ratios of neighbours. CPU time is the process's own, which other work on the machine inflates less than
wall time. One thread.

With Ray installed, Flower's own simulation runtime trains fewer clients, one message per client, beside the other two:
wall time per round only, since its actors are processes of their own, two on two cores where the others use one. Its
first round, in which actors start and make data, is left out. "tiny" is 100 clients of logistic regression (7,850
parameters) that take one step: all of it is overhead.

    python benchmarks/flower_overhead.py                 # results go to benchmarks/results/flower_overhead.json
    python benchmarks/flower_overhead.py --no-ray

Two cores shared with other work (load 5.6), torch 2.13.0+cpu, flwr 1.41.0, ray 2.55.1; seconds per round:

                                    CPU of             over       Flower's simulation, over
                                native  CohortGrid   native     wall   native  CohortGrid
    1000 clients, MLP, 10 steps   6.58        6.61     1.00        -        -           -
    50 clients, MLP, 10 steps    0.252       0.269     1.08     1.12     3.9x        3.5x
    100 clients, logistic, 1    0.0173      0.0331     1.96     0.42    23.7x       11.4x

The simulation's first round, start included, took 10 s and 12 s.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import importlib.util
import json
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import machine
from torch import nn

import fedsim
from fedsim.data import Dataset
from fedsim.data.partition import Parts
from fedsim.engine import Engine, choose
from fedsim.participation import Everyone
from fedsim.simulation import begin, play, prepare
from fedsim.task import Task

EXAMPLES = 60  # per client
MLP = "784-200-10"
LOGISTIC = "784-10"
LOCALS = {
    MLP: fedsim.LocalSGD(lr=0.05, steps=10, batch=32),
    LOGISTIC: fedsim.LocalSGD(lr=0.05, steps=1, batch=32),
}
RESULTS = Path(__file__).parent / "results" / "flower_overhead.json"
TARGET = 1.25


@functools.cache
def make_task(clients: int, model: str) -> Task:
    """Images of noise of Fashion-MNIST's size, and as many for 1000 clients: what they show takes no time."""
    rng = np.random.default_rng(0)
    count = clients * EXAMPLES
    inputs = torch.from_numpy(rng.integers(0, 256, (count, 1, 28, 28), dtype=np.uint8))
    targets = torch.from_numpy(rng.integers(0, 10, count))
    data = Dataset("noise", inputs, targets, inputs[:100], targets[:100], 10, 0.5, 0.5, None)
    rows, first = np.arange(count), np.arange(0, count, EXAMPLES)
    parts = Parts(rows, first, np.full(clients, EXAMPLES), None, 0)
    torch.manual_seed(0)
    layers = [nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 10)] if model == MLP else [nn.Linear(784, 10)]
    return fedsim.make_task(data, parts, nn.Sequential(nn.Flatten(), *layers))


def task_of(context: Any, model: str) -> Task:
    """The task, made once per process."""
    torch.set_num_threads(1)
    return make_task(int(context.node_config["num-partitions"]), model)


def native(task: Task, engine: Engine, local: fedsim.LocalSGD, rounds: int) -> Iterator[Any]:
    """The native loop, a round at a time."""
    schedule = Everyone().draw(task.n, rounds, 0)
    strategy = prepare(fedsim.strategies.FedAvg(), task, schedule)
    state = begin(strategy, task)
    for t in range(rounds):
        state, _ = play(task, strategy, engine, local, schedule[t], state, t, 0)
        yield state.x


def cohort(task: Task, engine: Engine, local: fedsim.LocalSGD, rounds: int) -> Iterator[Any]:
    """Flower's FedAvg over the cohort, a round at a time."""
    from flwr.serverapp.strategy import FedAvg

    from fedsim.flower import CohortGrid, initial_arrays
    from fedsim.flower import rounds as played

    grid = CohortGrid(task, local, schedule=Everyone().draw(task.n, rounds, 0), engine=engine)
    for step in played(FedAvg(fraction_evaluate=0.0), grid, initial_arrays(task), rounds):
        model = grid.form.flat(step.arrays)
        del step  # the round's 600 MB
        yield model


def timed(turn: Iterator[Any]) -> tuple[Any, float, float]:
    """What the next round gives, its CPU seconds and its wall seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = next(turn)
    return found, time.process_time() - cpu, time.perf_counter() - wall


def compare(clients: int, model: str, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Both, in turns."""
    task, local = make_task(clients, model), LOCALS[model]
    engine = choose(task, local, clients)
    turns = {"native": native(task, engine, local, rounds + 1), "cohort": cohort(task, engine, local, rounds + 1)}
    cpu: dict[str, list[float]] = {name: [] for name in turns}
    wall: dict[str, list[float]] = {name: [] for name in turns}
    difference = 0.0
    for t in range(rounds + 1):
        models = {}
        for name in sorted(turns, reverse=bool(t % 2)):
            models[name], a, b = timed(turns[name])
            if t:  # the first warms up
                cpu[name].append(a)
                wall[name].append(b)
                say(f"{clients} clients, {model}, round {t}, {name}: {a:.2f} s CPU, {b:.2f} s wall")
        difference = float((models["native"] - models["cohort"]).abs().max())
    return {
        "clients": clients,
        "model": model,
        "parameters": task.layout.size,
        "local": repr(local),
        "rounds": rounds,
        "engine": repr(engine),
        "cpu_s": {name: statistics.median(values) for name, values in cpu.items()},
        "wall_s": {name: statistics.median(values) for name, values in wall.items()},
        "ratio_cpu": ratio(cpu),
        "ratio_wall": ratio(wall),
        "each": {"cpu_s": cpu, "wall_s": wall},
        "largest_difference_of_the_models": difference,
    }


def ratio(times: dict[str, list[float]]) -> float:
    """The median of what the cohort's rounds took of the native rounds beside them."""
    return statistics.median(b / a for a, b in zip(times["native"], times["cohort"], strict=True))


def ray(clients: int, model: str, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Wall seconds per round of Flower's FedAvg on its simulation runtime, and of the other two between its rounds."""
    sys.path.insert(0, str(Path(__file__).parent))
    import flower_overhead as here  # by its name, so that actors import it and keep what it makes
    from flwr.app import ArrayRecord
    from flwr.serverapp.strategy import FedAvg

    from fedsim.flower import client_app, initial_arrays
    from fedsim.flower.runtimes import simulation

    task, local = make_task(clients, model), LOCALS[model]
    engine = choose(task, local, clients)
    turns = {"native": native(task, engine, local, rounds + 2), "cohort": cohort(task, engine, local, rounds + 2)}
    wall: dict[str, list[float]] = {"simulation": [], **{name: [] for name in turns}}
    clock = time.perf_counter()

    def between(t: int, arrays: ArrayRecord) -> None:
        nonlocal clock
        if t:
            wall["simulation"].append(time.perf_counter() - clock)
        for name, turn in turns.items():
            seconds = timed(turn)[2]
            if t:
                wall[name].append(seconds)
        took = ", ".join(f"{name} {seconds[-1]:.3f}" for name, seconds in wall.items() if seconds)
        say(f"{clients} clients, {model}, round {t}, wall seconds: {took}")
        clock = time.perf_counter()

    with simulation(client_app(functools.partial(here.task_of, model=model), local), clients) as grid:
        strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients)
        strategy.start(grid, initial_arrays(task), num_rounds=rounds + 1, evaluate_fn=between)
    later = {name: values[1:] for name, values in wall.items()}
    return {
        "wall_s": {name: statistics.median(values) for name, values in later.items()},
        "simulation_over": {
            name: statistics.median(b / a for a, b in zip(later[name], later["simulation"], strict=True))
            for name in turns
        },
        "first_round_s": wall["simulation"][0],
        "each_wall_s": later,
    }


def here() -> dict[str, Any]:
    """Where this was measured."""
    return machine("torch", "flwr", "numpy", *(["ray"] if importlib.util.find_spec("ray") else []))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-ray", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    importlib.import_module("flwr.serverapp")  # which sets up its log
    logging.getLogger("flwr").setLevel(logging.ERROR)

    def say(line: str) -> None:
        sys.stderr.write(line + "\n")

    result: dict[str, Any] = {"machine": machine()}
    result["large"] = compare(given.clients, MLP, given.rounds, say)
    for name, clients, model in (("small", 50, MLP), ("tiny", 100, LOGISTIC)):
        result[name] = compare(clients, model, given.rounds, say)
        if not given.no_ray and importlib.util.find_spec("ray"):
            result[name]["flower_simulation"] = ray(clients, model, given.rounds, say)
    with tempfile.NamedTemporaryFile("w", dir=given.out.parent, delete=False, suffix=".json") as file:
        file.write(json.dumps(result, indent=1) + "\n")
    os.replace(file.name, given.out)
    say(f"cohort over native: {result['large']['ratio_cpu']:.3f} in CPU time (target {TARGET}); {given.out}")


if __name__ == "__main__":
    main()
