"""The plain PyTorch loop, lean: one model for all clients, parameters copied in, gradients by autograd, no DataLoader.

With more than one process each trains its share of the clients on one thread; models, sums and examples are in memory
that all share, and pipes say when to begin. Fed with the same minibatches it gives fedsim's models
(tests/test_bench.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fedsim.bench.drivers.child import World

Order = Callable[[int, int], Any]  # (client, round) -> places in the pool [steps, batch]
UPDATES = ("autograd.grad and foreach", "SGD", "fused SGD")


class Shared(NamedTuple):
    """Memory that all processes share."""

    inputs: Tensor  # [N, 1, 28, 28]  normalised
    targets: Tensor  # [N]
    models: Tensor  # [2, 1, P] of a server, [2, n, P] of nodes: now and next, by turns
    sums: Tensor  # [processes, P]  of the models that each has trained


def shared(world: World, processes: int = 1) -> Shared:
    """The memory before the first round."""
    import torch

    first = torch.from_numpy(world.first)
    count = len(world.rows) if world.neighbours.size else 1
    made = Shared(
        torch.from_numpy(world.normalised()),
        torch.from_numpy(world.targets),
        first.repeat(2, count, 1),
        torch.zeros(processes, len(first)),
    )
    if processes > 1:
        for tensor in made:
            tensor.share_memory_()
    return made


class Trainer:
    """A client's steps, in the one model that there is."""

    def __init__(self, module: nn.Module, lr: float, update: str) -> None:
        import torch

        self.module, self.lr, self.update = module, lr, update
        self.params = list(module.parameters())
        self.data = [value.data for value in self.params]  # the same memory: written without telling autograd
        self.optimiser = torch.optim.SGD(self.params, lr=lr, fused=update == "fused SGD")

    def train(self, start: Sequence[Tensor], inputs: Sequence[Tensor], targets: Sequence[Tensor]) -> list[Tensor]:
        """From `start` over the minibatches. The result is overwritten by the next client's."""
        import torch
        from torch.nn.functional import cross_entropy

        torch._foreach_copy_(self.data, list(start))
        if self.update == UPDATES[0]:
            for x, y in zip(inputs, targets, strict=True):
                gradients = torch.autograd.grad(cross_entropy(self.module(x), y), self.params)
                torch._foreach_add_(self.data, gradients, alpha=-self.lr)
        else:
            for x, y in zip(inputs, targets, strict=True):
                self.optimiser.zero_grad()
                cross_entropy(self.module(x), y).backward()
                self.optimiser.step()
        return self.data


class Part:
    """What one process does: every `of`-th client from `rank` on."""

    def __init__(
        self, world: World, memory: Shared, rank: int = 0, of: int = 1, order: Order | None = None,
        update: str = UPDATES[0],
    ) -> None:  # fmt: skip
        import torch

        self.memory, self.rank, self.of = memory, rank, of
        self.cohorts, self.gossip = world.cohorts, bool(world.neighbours.size)
        self.batch = int(world.workload["batch"])
        module = world.module()
        self.trainer = Trainer(module, float(world.workload["lr"]), update)
        self.sizes = [value.numel() for value in module.parameters()]
        self.shapes = [value.shape for value in module.parameters()]
        self.models = [[self.views(row) for row in rows] for rows in memory.models]
        self.sum = self.views(memory.sums[rank])
        draw = np.random.default_rng([1, rank])
        self.order: Order = order or (lambda i, t: world.minibatches(i, draw))
        n = len(world.rows)
        block = np.array_split(np.arange(n), of)[rank] if self.gossip else np.arange(0)
        self.block = slice(int(block[0]), int(block[-1]) + 1) if len(block) else slice(0, 0)
        near = torch.from_numpy(world.neighbours)
        self.near = torch.cat([torch.arange(n)[:, None], near], 1)[self.block]  # [m, 1 + degree]

    def views(self, flat: Tensor) -> list[Tensor]:
        """A model [P] as its tensors."""
        return [part.view(shape) for part, shape in zip(flat.split(self.sizes), self.shapes, strict=True)]

    def train(self, t: int) -> None:
        """Round t's clients, as many as are ours."""
        import torch

        models = self.models[t % 2]
        if not self.gossip:
            torch._foreach_zero_(self.sum)
        todo = range(self.block.start, self.block.stop) if self.gossip else self.cohorts[t][self.rank :: self.of]
        for i in todo:
            places = torch.from_numpy(self.order(int(i), t)).reshape(-1)
            inputs, targets = self.memory.inputs[places], self.memory.targets[places]
            start = models[i] if self.gossip else models[0]
            trained = self.trainer.train(start, inputs.split(self.batch), targets.split(self.batch))
            if self.gossip:
                torch._foreach_copy_(start, trained)
            else:
                torch._foreach_add_(self.sum, trained)

    def finish(self, t: int) -> None:
        """What becomes of what all have trained: our nodes' averages, or the server's model."""
        import torch
        from torch.nn.functional import embedding_bag

        now, following = self.memory.models[t % 2], self.memory.models[(t + 1) % 2]
        if self.gossip:  # every node has `degree` neighbours, so that Metropolis weights are all the same
            following[self.block] = embedding_bag(self.near, now, mode="mean")
        elif self.rank == 0:
            torch.sum(self.memory.sums, 0, out=following[0])
            following[0] /= len(self.cohorts[t])


def quickest(world: World, memory: Shared, tries: int = 3) -> str:
    """The way to update parameters that trains a client fastest here."""
    parts = {update: Part(world, memory, update=update) for update in UPDATES}
    best: dict[str, float] = dict.fromkeys(UPDATES, float("inf"))
    import torch

    for _ in range(tries + 1):
        for update, part in parts.items():
            places = torch.from_numpy(part.order(0, 0)).reshape(-1)
            inputs, targets = memory.inputs[places].split(part.batch), memory.targets[places].split(part.batch)
            began = time.perf_counter()
            part.trainer.train(part.models[0][0], inputs, targets)
            best[update] = min(best[update], time.perf_counter() - began)
    return min(best, key=best.__getitem__)


def helper(pipe: Any, world: World, memory: Shared, rank: int, of: int, update: str) -> None:
    """A further process: does its part of a round when the pipe says so, until it closes."""
    import torch

    torch.set_num_threads(1)
    part = Part(world, memory, rank, of, update=update)
    pipe.send("ready")
    while True:
        try:
            verb, t = pipe.recv()
        except EOFError:
            return
        getattr(part, verb)(t)
        pipe.send(verb)


class Team:
    """All processes, this one first. `threads` are this process' own."""

    def __init__(self, world: World, processes: int = 1, threads: int = 1) -> None:
        import torch
        from torch import multiprocessing

        torch.set_num_threads(threads)
        self.memory = shared(world, processes)
        self.update = quickest(world, self.memory)
        self.mine = Part(world, self.memory, 0, processes, update=self.update)
        self.pipes: list[Any] = []
        bare = world._replace(inputs=world.inputs[:0], targets=world.targets[:0])  # they are in the shared memory
        for rank in range(1, processes):
            here, there = multiprocessing.Pipe()
            given = (there, bare, self.memory, rank, processes, self.update)
            multiprocessing.get_context("spawn").Process(target=helper, args=given, daemon=True).start()
            there.close()
            self.pipes.append(here)
        for pipe in self.pipes:
            pipe.recv()
        self.t = 0

    def play(self) -> None:
        """A round."""
        verbs = ("train", "finish") if self.mine.gossip or not self.pipes else ("train",)
        for verb in verbs:
            for pipe in self.pipes:
                pipe.send((verb, self.t))
            getattr(self.mine, verb)(self.t)
            for pipe in self.pipes:
                pipe.recv()
        if verbs == ("train",):
            self.mine.finish(self.t)
        self.t += 1

    def model(self) -> Any:
        """The server's model, or the mean of the nodes', [P]."""
        return self.memory.models[self.t % 2].mean(0).numpy()
