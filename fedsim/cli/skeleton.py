"""A strategy to begin with: its file, its test and an experiment that runs, as `fedsim new strategy` writes them."""

from __future__ import annotations

import importlib.util
import keyword
import re
import sys
from pathlib import Path

SERVER = '''\
"""{name}. Authors, venue, year. Address of the paper.

    m <- β m + Σ_{{i ∈ S}} w_i Δ_i        w_i = p_i / Σ_{{j ∈ S}} p_j
    x <- x + m

Δ_i is how far client i of those present, S, has moved. To begin with, this is FedAvg with momentum on the server.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from fedsim.strategy import Round, ServerStrategy
from fedsim.weights import Present, Weights, total

if TYPE_CHECKING:
    from torch import Tensor


class State(NamedTuple):
    """All memory is here: tensors, fedsim.rows.Rows for a row of each client, numbers."""

    x: Tensor  # [P]  the model
    m: Tensor  # [P]
    weights: Any


@dataclass(frozen=True)
class {name}(ServerStrategy):
    """What it does, in one sentence. Authors, year (arXiv id)"""

    beta: float = 0.5  # β
    weights: Weights = Present()

    def __post_init__(self) -> None:
        if not 0 <= self.beta < 1:
            raise ValueError(f"beta must be at least 0 and below 1, got {{self.beta}}")

    def init(self, x: Tensor, p: Tensor, key: int = 0) -> State:
        return State(x, x.new_zeros(x.shape), self.weights.init(p))

    def step(self, s: State, r: Round) -> State:
        w, weights = self.weights.step(s.weights, r)
        m = self.beta * s.m + total(w, r.delta)
        return State(s.x + m, m, weights)
'''

GOSSIP = '''\
"""{name}. Authors, venue, year. Address of the paper.

    x_i <- Σ_j W_ij (x_j + η Δ_j)

Δ_j is how far node j has moved from its model x_j; W averages over the nodes present. To begin with, this is D-PSGD
that adapts, then combines, with moves scaled by η.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from fedsim.mixing import Metropolis, Mixing
from fedsim.strategies.gossip import one_each
from fedsim.strategy import Averaging, Exchange, Round

if TYPE_CHECKING:
    from torch import Tensor


class State(NamedTuple):
    """All memory is here: tensors with a row for each node, numbers."""

    x: Tensor  # [n, P]  the models
    key: int  # of the mixing's draws


@dataclass(frozen=True)
class {name}(Averaging):
    """What it does, in one sentence. Authors, year (arXiv id)"""

    lr: float = 0.5  # η
    mixing: Mixing = Metropolis()

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"lr must be positive, got {{self.lr}}")

    def init(self, x: Tensor, p: Tensor, key: int = 0) -> State:
        return State(one_each(x, p), key)

    def exchange(self, s: State, r: Round) -> tuple[Exchange, State]:
        models = s.x.index_add(0, r.who, self.lr * r.delta)
        return Exchange(models, self.edges(s, r), None), s
'''

TEST = '''\
"""{name} obeys the laws, and does what its formula says."""

import torch
{imports}

from {module} import {name}


def test_it_obeys_the_laws() -> None:
    check_strategy({name}(), reduces_to={reduction})


def test_two_rounds_by_hand() -> None:
{hand}
'''

BY_HAND = {
    "server": """\
    strategy, p = {name}(beta=0.5), torch.tensor([0.5, 0.5])
    state = strategy.init(torch.zeros(1), p)
    state = strategy.step(state, round_of(0, [0, 1], torch.tensor([[1.0], [3.0]])))
    assert state.x.tolist() == [2.0]  # m = 2
    state = strategy.step(state, round_of(1, [0], torch.tensor([[1.0]])))
    assert state.x.tolist() == [4.0]  # m = 0.5 * 2 + 1""",
    "gossip": """\
    strategy, p = {name}(lr=0.5, mixing=Complete(2)), torch.tensor([0.5, 0.5])
    state = strategy.init(torch.zeros(1), p)
    state = strategy.step(state, round_of(0, [0, 1], torch.tensor([[1.0], [3.0]])))
    assert state.x.tolist() == [[1.0], [1.0]]  # the mean of 0.5 and 1.5
    state = strategy.step(state, round_of(1, [0], torch.tensor([[1.0]])))
    assert state.x.tolist() == [[1.5], [1.0]]  # node 1 is absent and keeps its model""",
}

IMPORTS = {
    "server": "from fedsim.strategies import FedAvg\nfrom fedsim.testing import check_strategy\n"
    "from fedsim.testing.loop import round_of",
    "gossip": "from fedsim.mixing import Complete\nfrom fedsim.strategies import DPSGD\n"
    "from fedsim.testing import check_strategy\nfrom fedsim.testing.loop import round_of",
}

REDUCTION = {
    "server": '(FedAvg(), {"beta": 0.0})',
    "gossip": '(DPSGD(order="atc", keep_momentum=False), {"lr": 1.0})',
}

EXPERIMENT = """\
# fedsim run {module}.toml

[task]
data = "digits"
clients = 20
model = "logistic"
partition = {{ name = "dirichlet", alpha = 0.3 }}

[participation]
name = "bernoulli"
probabilities = 0.5

[local]
lr = 0.1
steps = 5
batch = 16

[[strategy]]
name = "{module}.py:{name}"
label = "{name}"
{own}

[[strategy]]
name = "{rival}"
{other}
[run]
rounds = 40
seeds = [1, 2]
eval-every = 5
"""


def strategy(name: str, folder: Path, kind: str = "server") -> list[Path]:
    """Writes the files of a strategy called `name` into a folder: name.py, test_name.py and name.toml.

    Raises ValueError for a name that will not do, FileExistsError where one of the files is there.
    """
    if kind not in BY_HAND:
        raise ValueError(f'a strategy is "server" or "gossip", not "{kind}"')
    if not re.fullmatch(r"[A-Z][A-Za-z0-9_]*", name) or keyword.iskeyword(name):
        raise ValueError(
            f"{name!r} cannot be the name of a strategy's class: write it as FedHalf, a capital letter first"
        )
    module = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
    taken = (
        module in sys.stdlib_module_names or keyword.iskeyword(module) or importlib.util.find_spec(module) is not None
    )
    files = {
        folder / f"{module}.py": (SERVER if kind == "server" else GOSSIP).format(name=name),
        folder / f"test_{module}.py": TEST.format(
            name=name,
            module=module,
            imports=IMPORTS[kind],
            reduction=REDUCTION[kind],
            hand=BY_HAND[kind].format(name=name),
        ),
        folder / f"{module}.toml": EXPERIMENT.format(
            name=name,
            module=module,
            own="beta = 0.5" if kind == "server" else 'lr = 0.5\ntopology = "ring"',
            rival="FedAvg" if kind == "server" else "DPSGD",
            other="" if kind == "server" else 'topology = "ring"\n',
        ),
    }
    there = [path for path in files if path.exists()]
    if there:
        raise FileExistsError(f"{there[0]} is there already; choose another name, or another folder with --folder")
    if taken:
        raise ValueError(f"{module}.py would hide the module {module} that Python has already; choose another name")
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in files.items():
        path.write_text(text, encoding="utf-8")
    return list(files)
