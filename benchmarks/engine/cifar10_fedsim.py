"""fedsim on CIFAR-10, or on a workload of `fedsim bench`, as a process that plays a round when told to: see
../gpu_cifar10.py. Driven by fedsim/bench/drivers/child.py, whose `drive` it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from fedsim.bench.drivers.child import Turns, World


def drive(world: World, turns: Turns) -> None:
    """Rounds of `simulate`, with the engine that it chooses by itself, on the device of the setting. What a roofline
    is made of is measured between the rounds that are timed."""
    import torch

    import fedsim
    from fedsim import data, engine, models, simulation, speed
    from fedsim.data.partition import Parts
    from fedsim.engine.plan import width
    from fedsim.participation import Schedule
    from fedsim.participation.schedule import Lists

    device = torch.device(world.setting["device"])
    if device.type == "cpu":
        torch.set_num_threads(1)
    inputs, targets = torch.from_numpy(world.inputs), torch.from_numpy(world.targets)
    dataset = data.Dataset("images", inputs, targets, inputs[:10], targets[:10], 10, world.mean, world.std)
    n, size = world.rows.shape
    parts = Parts(world.rows.reshape(-1), np.arange(0, n * size, size), np.full(n, size), drawn=True)
    module = models.build(str(world.workload["model"]), tuple(inputs.shape[1:]), 10)
    for layer in module.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p *= world.setting["dropout"]  # 0: none
    torch.nn.utils.vector_to_parameters(torch.from_numpy(world.first.copy()), module.parameters())
    task = fedsim.make_task(dataset, parts, module, device=device)
    work = world.workload
    local = fedsim.LocalSGD(lr=work["lr"], steps=work["steps"], batch=work["batch"])
    rounds, k = world.cohorts.shape
    chosen = Lists(np.arange(rounds + 1) * k, np.sort(world.cohorts, axis=1).reshape(-1).astype(np.int32))
    memory = int(world.setting.get("memory", 2**30))
    if device.type == "cuda":
        memory = torch.cuda.mem_get_info(device)[0] // 2
    chosen_engine = engine.choose(task, local, k, memory)
    playing = simulation.simulate(
        task,
        fedsim.strategies.FedAvg(),
        Schedule(n, rounds, chosen),
        local,
        seed=world.setting["seed"],
        engine=chosen_engine,
    )
    last: list[Any] = []
    turns.model = lambda: last[0].model.cpu().numpy()
    turns.versions("torch", "numpy")
    turns.notes["versions"]["fedsim"] = fedsim.__version__
    each = speed.flop(task, local) or 0.0
    x = torch.zeros(2**27 if device.type == "cuda" else 2**23, device=device)
    turns.notes |= {
        "engine": str(chosen_engine),
        "flop_a_round": each * width(task, local) * work["steps"] * k,
        "bytes_a_round": 3 * task.layout.size * task.dtype.itemsize * work["steps"] * k,
        "peak_flop_per_second": speed.peak(task.device, task.dtype),
        "copy_bytes_per_second": copying(x),
    }
    del x
    while True:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            turns.notes["device_bytes"] = torch.cuda.max_memory_allocated(device)
        turns.lap()
        last[:] = [next(playing)]


def copying(x: Any) -> float:
    """Bytes a second, read and written, of copying a tensor onto another: the best of ten times."""
    import time

    import torch

    y, best = torch.empty_like(x).copy_(x), float("inf")
    for _ in range(10):
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        clock = time.perf_counter()
        y.copy_(x)
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        best = min(best, time.perf_counter() - clock)
    return float(2 * x.nbytes / best)
