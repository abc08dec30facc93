"""fedsim: `simulate` with the engine that it chooses by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedsim.bench.drivers.child import Turns, World
    from fedsim.task import Task


def task_of(world: World) -> Task:
    """The workload as a task: images as bytes, normalised where they are used."""
    import numpy as np
    import torch

    import fedsim
    from fedsim import models
    from fedsim.data import Dataset
    from fedsim.data.partition import Parts

    inputs, targets = torch.from_numpy(world.inputs), torch.from_numpy(world.targets)
    data = Dataset("fashion-mnist", inputs, targets, inputs[:100], targets[:100], 10, world.mean, world.std)
    n, size = world.rows.shape
    parts = Parts(world.rows.reshape(-1), np.arange(0, n * size, size), np.full(n, size), drawn=True)
    name = str(world.workload["model"])
    module = models.build(name, (1, 28, 28), 10) if name in models.NAMES else world.module()
    torch.nn.utils.vector_to_parameters(torch.from_numpy(world.first.copy()), module.parameters())
    return fedsim.make_task(data, parts, module)


def steps(world: World, notes: dict[str, Any]) -> Any:
    """What `simulate` yields."""
    import fedsim
    from fedsim import simulation
    from fedsim.bench.world import ROUNDS, SEED
    from fedsim.participation import Everyone, Uniform

    work = world.workload
    task = task_of(world)
    local = fedsim.LocalSGD(lr=work["lr"], steps=work["steps"], batch=work["batch"])
    strategy: fedsim.Strategy = fedsim.strategies.FedAvg()
    if world.neighbours.size:
        import networkx as nx

        graph = nx.Graph((i, int(j)) for i, near in enumerate(world.neighbours) for j in near)
        ordered = nx.Graph()
        ordered.add_nodes_from(range(len(graph)))
        ordered.add_edges_from(graph.edges)
        strategy = fedsim.strategies.DPSGD(fedsim.mixing.Metropolis(ordered), order="atc")
        schedule = Everyone().draw(task.n, ROUNDS, SEED)
    else:
        schedule = Uniform(work["present"]).draw(task.n, ROUNDS, SEED)
    engine = simulation.default_engine(task, local, schedule)
    notes["engine"] = str(engine)
    yield from fedsim.simulate(task, strategy, schedule, local, seed=SEED, engine=engine)


def drive(world: World, turns: Turns) -> None:
    """Rounds, one by one; the choice of the engine is part of the first."""
    import torch

    import fedsim

    turns.versions("torch", "numpy")
    turns.notes["versions"]["fedsim"] = fedsim.__version__
    turns.notes["threads"] = torch.get_num_threads()
    playing = steps(world, turns.notes)
    last: list[Any] = []

    def model() -> Any:
        return last[0].model.reshape(-1, len(world.first)).mean(0).numpy()

    turns.model = model
    while True:
        turns.lap()
        last[:] = [next(playing)]
