"""What is run: W1 to W4 with a server, G1 to G3 between neighbours, on Fashion-MNIST."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedsim import resolve


@dataclass(frozen=True)
class Workload:
    """A model and how it is trained: FedAvg with `present` of the clients in a round, or D-PSGD (adapt then combine,
    Metropolis weights) between all of them on a random 4-regular graph. Everything in float32."""

    name: str
    model: str
    parameters: int
    clients: int
    examples: int  # each client has
    present: int  # clients in a round; in gossip all of them
    steps: int
    lr: float
    rounds: int  # that are timed
    batch: int = 20
    degree: int = 0  # of the graph; 0: there is a server
    stint: int = 1  # rounds a turn: in the first, what others did is in the caches
    warm: int = 2  # rounds before the timed ones
    tolerance: float = 0.02  # how far apart final accuracies may lie for the same work to have been done

    @property
    def gossip(self) -> bool:
        """Whether there is no server."""
        return self.degree > 0

    def line(self) -> str:
        """The workload in words."""
        who = (
            f"{self.clients} nodes of a {self.degree}-regular graph"
            if self.gossip
            else f"{self.present} of {self.clients} clients a round"
        )
        return f"{self.model}, {self.parameters:,} parameters, {who}, {self.steps} steps of {self.batch}"


WORKLOADS = {
    each.name: each
    for each in (
        Workload("W1", "logistic", 7_850, 1000, 60, 100, 10, 0.05, 20, stint=5),
        Workload("W2", "mlp", 159_010, 1000, 60, 100, 10, 0.05, 15, stint=3),
        Workload("W3", "lenet5", 61_706, 1000, 60, 50, 10, 0.2, 12, stint=2, tolerance=0.04),
        Workload("W4", "mcmahan-cnn", 1_663_370, 1000, 60, 10, 10, 0.05, 10, stint=2, tolerance=0.04),
        Workload("G1", "logistic", 7_850, 100, 100, 100, 5, 0.05, 20, degree=4, stint=5),
        Workload("G2", "mlp", 159_010, 100, 100, 100, 5, 0.05, 12, degree=4, stint=3),
        Workload("G3", "logistic", 7_850, 1000, 100, 1000, 5, 0.05, 8, degree=4, stint=2),
    )
}
QUICK = ("W1", "G1")


def chosen(names: Sequence[str]) -> list[Workload]:
    """Workloads by name, in the order of the table. Raises ValueError for a name that is not in it."""
    for name in names:
        if name not in WORKLOADS:
            raise ValueError(f"workload {name!r} is not known{resolve.nearest(name, WORKLOADS)}")
    return [workload for name, workload in WORKLOADS.items() if name in names]
