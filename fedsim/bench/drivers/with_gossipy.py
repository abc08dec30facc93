"""gossipy's own simulator, a round at a time. It has no averaging with all neighbours; the nearest is its plain push,
see `differs` in fedsim/bench/rivals.py. It imports torchvision for data sets that are not used here; an empty module
stands in, so that all have the same torch."""

from __future__ import annotations

import sys
import types
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedsim.bench.drivers.child import Array, Turns, World


def drive(world: World, turns: Turns) -> None:
    """Rounds, one by one. Its nodes hold a copy of their images each."""
    sys.modules["torchvision"] = types.ModuleType("torchvision")
    import numpy as np
    import torch
    from gossipy import set_seed
    from gossipy.core import AntiEntropyProtocol, CreateModelMode, StaticP2PNetwork
    from gossipy.data import DataDispatcher
    from gossipy.data.handler import ClassificationDataHandler
    from gossipy.model.handler import TorchModelHandler
    from gossipy.model.nn import LogisticRegression, TorchMLP
    from gossipy.node import GossipNode
    from gossipy.simul import GossipSimulator
    from scipy.sparse import csr_matrix

    torch.set_num_threads(int(world.setting["threads"]))
    set_seed(0)
    work, n = world.workload, len(world.rows)
    inputs = torch.from_numpy(world.normalised()).flatten(1)
    dispatcher = DataDispatcher(
        ClassificationDataHandler(inputs, torch.from_numpy(world.targets), test_size=0), n, eval_on_user=False,
        auto_assign=False,
    )  # fmt: skip
    dispatcher.set_assignments(world.rows.tolist(), None)
    net = LogisticRegression(784, 10) if work["model"] == "logistic" else TorchMLP(784, 10, (200,))
    torch.nn.utils.vector_to_parameters(torch.from_numpy(world.first.copy()), net.parameters())
    net.init_weights = lambda: None  # or every node would begin elsewhere
    epochs, left = divmod(work["steps"] * work["batch"], world.rows.shape[1])
    assert epochs
    assert not left  # whole passes over a node's examples are its steps
    handler = TorchModelHandler(
        net, torch.optim.SGD, {"lr": work["lr"]}, torch.nn.functional.cross_entropy, local_epochs=epochs,
        batch_size=work["batch"], create_model_mode=CreateModelMode.MERGE_UPDATE,
    )  # fmt: skip
    joined = np.zeros((n, n), dtype=np.int64)
    joined[np.arange(n)[:, None], world.neighbours] = 1
    nodes = GossipNode.generate(dispatcher, StaticP2PNetwork(n, csr_matrix(joined)), handler, round_len=1, sync=True)
    simulator = GossipSimulator(nodes, dispatcher, delta=1, protocol=AntiEntropyProtocol.PUSH)
    simulator.init_nodes()

    def model() -> Array:
        flat = [torch.nn.utils.parameters_to_vector(nodes[i].model_handler.model.parameters()) for i in range(n)]
        mean: Array = torch.stack(flat).mean(0).detach().numpy()
        return mean

    turns.model = model
    turns.versions("gossipy-dfl", "torch", "numpy")
    while True:
        turns.lap()
        simulator.start(n_rounds=1)
