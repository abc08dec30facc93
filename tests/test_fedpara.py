"""FedPara: factors against weights written out, what rank they reach, what they save, and how they train."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from helpers import F64
from torch import nn

from fedsim import LocalSGD, compare, experiment, federate, measure, models, simulate
from fedsim.engine import Loop, Stacked
from fedsim.layers import Hadamard
from fedsim.models.fedpara import FedPara, rank_of, size_of
from fedsim.participation import Everyone
from fedsim.simulation import prepare
from fedsim.strategies import FedAvg, Personal


def written_out(layer: Hadamard) -> torch.Tensor:
    """W entry by entry, from the formulas of the paper."""
    weight = torch.zeros(layer.shape, dtype=F64)
    part = dict(layer.named_parameters())
    for place in itertools.product(*map(range, layer.shape)):
        a, b, *kl = place
        both = []
        for which in ("w1", "w2"):
            x, y = part[f"{which}_x"], part[f"{which}_y"]
            if kl:
                t = part[f"{which}_t"][:, :, kl[0], kl[1]]
                both.append(sum(t[p, q] * x[a, p] * y[b, q] for p in range(layer.rank) for q in range(layer.rank)))
            else:
                both.append(sum(x[a, p] * y[b, p] for p in range(layer.rank)))
        weight[place] = both[0] * (both[1] + 1) if layer.personal else both[0] * both[1]
    return weight


@pytest.mark.parametrize("personal", [False, True])
@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_a_layer_is_the_one_with_the_weight_written_out(kind: str, personal: bool) -> None:
    torch.manual_seed(0)
    if kind == "linear":
        layer: Any = nn.Linear(6, 5, dtype=F64)
        inputs = torch.randn(3, 6, dtype=F64)
    else:
        layer = nn.Conv2d(4, 5, (3, 2), stride=2, padding=(1, 0), dilation=(1, 2), dtype=F64)
        inputs = torch.randn(3, 4, 7, 9, dtype=F64)
    made = Hadamard(layer, 2, personal)
    outputs = made(inputs)
    layer.weight = nn.Parameter(written_out(made).detach())
    torch.testing.assert_close(outputs, layer(inputs), rtol=1e-12, atol=1e-12)
    assert made.bias is layer.bias


@pytest.mark.parametrize(("side", "rank", "reached"), [(16, 3, 9), (16, 4, 16), (30, 5, 25), (30, 6, 30)])
def test_the_rank_reaches_r_squared(side: int, rank: int, reached: int) -> None:
    """Where one product of two factors of as many numbers reaches 2R."""
    torch.manual_seed(1)
    made = Hadamard(nn.Linear(side, side, dtype=F64), rank)
    assert int(torch.linalg.matrix_rank(made.weight)) == reached > 2 * rank
    assert int(torch.linalg.matrix_rank(made.w1_x @ made.w1_y.T)) == rank
    convolution = Hadamard(nn.Conv2d(side, side, 3, dtype=F64), rank)
    unfolded = convolution.weight.permute(0, 2, 3, 1).reshape(-1, side)  # its input side
    assert int(torch.linalg.matrix_rank(unfolded)) == reached


SHAPES = [(200, 784), (10, 200), (512, 1024), (64, 64, 3, 3), (6, 1, 5, 5), (16, 6, 5, 5), (128, 64, 1, 1), (7, 1000)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.37, 1.0])
def test_the_rank_lies_between_full_rank_and_as_many_numbers(shape: tuple[int, ...], gamma: float) -> None:
    rank = rank_of(shape, gamma)
    m, n, *window = shape
    least = math.ceil(math.sqrt(min(m, n)))
    fits = [r for r in range(1, 500) if size_of(shape, r) <= math.prod(shape)]
    if not fits or fits[-1] < least or size_of(shape, least) == math.prod(shape):
        assert rank is None
        return
    assert rank == math.ceil(round((1 - gamma) * least + gamma * fits[-1], 9))
    assert rank**2 >= min(m, n)
    assert size_of(shape, rank) <= math.prod(shape)
    layer: Any = nn.Conv2d(n, m, window, bias=False) if window else nn.Linear(n, m, bias=False)
    assert sum(p.numel() for p in Hadamard(layer, rank).parameters()) == size_of(shape, rank)


def test_sizes_of_a_model_by_hand() -> None:
    """2NN-like: 784 x 200 with R = 15 has 2 * 15 * 984, 200 x 10 with R = 4 has 2 * 4 * 210."""
    original = models.build("mlp", (1, 28, 28), 10)
    first, last, whole = models.factored(models.fedpara(original, 0.0))
    assert (first.layer, first.rank, first.parameters, first.original) == ("1", 15, 29_520 + 200, 156_800 + 200)
    assert (last.layer, last.rank, last.parameters, last.original) == ("3", 4, 1_680 + 10, 2_000 + 10)
    assert (whole.parameters, whole.original) == (31_410, 159_010)
    assert (whole.bytes, whole.original_bytes) == (4 * 31_410, 4 * 159_010)
    assert whole.original == sum(p.numel() for p in original.parameters())  # which is as it was
    kept = models.factored(models.fedpara(original, 0.0, skip=("3",)))
    assert (kept[1].rank, kept[1].parameters) == (None, 2_010)


@pytest.mark.parametrize("personal", [False, True])
@pytest.mark.parametrize("layer", [nn.Linear(300, 200), nn.Conv2d(64, 96, 3)], ids=["linear", "convolution"])
def test_first_weights_are_as_large_as_the_layer_s_own(layer: Any, personal: bool) -> None:
    torch.manual_seed(2)
    sizes = [float(Hadamard(layer, 20, personal).weight.detach().square().mean()) for _ in range(20)]
    wanted = float(layer.weight.detach().square().mean())
    assert sum(sizes) / 20 == pytest.approx(wanted, rel=0.1)
    empty = nn.Linear(300, 200)
    nn.init.zeros_(empty.weight)
    assert float(Hadamard(empty, 20).weight.detach().square().mean()) == pytest.approx(1 / 900, rel=0.2)


def test_only_what_is_plain_is_converted() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.twice = nn.Linear(64, 64)
            self.grouped = nn.Conv2d(64, 64, 3, groups=2)
            self.round = nn.Conv2d(64, 64, 3, padding_mode="circular")
            self.attention = nn.MultiheadAttention(64, 4)
            self.words = nn.Embedding(90, 64)
            self.out = nn.Linear(64, 90, bias=False)
            self.out.weight = self.words.weight
            self.again = nn.Sequential(self.twice, nn.ReLU(), self.twice)
            self.tiny = nn.Linear(3, 3)

    made = models.fedpara(Odd(), 0.2)
    assert [name for name, part in made.named_modules() if isinstance(part, Hadamard)] == ["twice"]
    assert made.again[0] is made.again[2] is made.twice  # type: ignore[index]
    assert made.out.weight is made.words.weight  # type: ignore[union-attr]
    assert isinstance(models.fedpara(nn.Linear(64, 64), 0.0), Hadamard)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: models.fedpara(nn.Linear(64, 64), 1.5), "gamma must be between 0 and 1"),
        (lambda: models.fedpara(nn.Linear(3, 3), 0.5), "no layer of the model would have fewer"),
        (lambda: models.fedpara(models.build("mlp", (8, 8), 10), skip=("2",)), 'skip: "2" is no layer with weights'),
        (lambda: FedPara(gamma=-1.0), "gamma must be between"),
    ],
)
def test_mistakes_are_named(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


@pytest.mark.parametrize("model", [FedPara(), FedPara(models.PFLCNN(), gamma=0.2)], ids=["linear", "convolutions"])
def test_engines_train_it_alike(model: Any) -> None:
    task = federate("digits", clients=4, model=model, dtype=F64)
    schedule, local = Everyone().draw(4, 2, seed=0), LocalSGD(lr=0.1, steps=3, batch=8)
    ends = []
    for engine in (Loop(), Stacked(3)):
        *_, last = simulate(task, FedAvg(), schedule, local, seed=1, engine=engine)
        ends.append(last.model)
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-11)
    assert not torch.equal(ends[0], task.fresh(1))


def test_pfedpara_shares_one_factor_and_keeps_the_other() -> None:
    task = federate("digits", clients=4, model=FedPara(gamma=0.1, personal=True), dtype=F64, seed=2)
    schedule, local = Everyone().draw(4, 3, seed=0), LocalSGD(lr=0.1, steps=3, batch=8)
    strategy = prepare(Personal(keep=("*.w2_*",)), task, schedule)
    *_, last = simulate(task, strategy, schedule, local, seed=1, engine=Stacked(2))
    views = task.layout.views(strategy.own(last.state, torch.arange(4)))
    kept = {name for name, view in views.items() if not torch.equal(view[0], view[1])}
    assert kept == {name for name in task.layout.names if ".w2_" in name}
    shared = sum(size for name, size in zip(task.layout.names, task.layout.sizes, strict=True) if name not in kept)
    assert last.traffic.up == 4 * shared * 64


def test_it_learns_with_fewer_bytes() -> None:
    """A capability, in little: under two fifths of the plain network's bytes, and it learns the digits."""
    schedule, local = Everyone().draw(5, 15, seed=0), LocalSGD(lr=0.3, epochs=1, batch=16)
    task = federate("digits", clients=5, model=FedPara(models.MLP((256, 256)), gamma=0.05), seed=3)
    *_, last = simulate(task, FedAvg(), schedule, local, seed=1, engine=Stacked(5))
    plain = federate("digits", clients=5, model=models.MLP((256, 256)), seed=3)
    assert measure.test(task, last.model)["test_accuracy"] > 0.9
    assert task.layout.size < 0.4 * plain.layout.size


def test_an_experiment_file_spells_it() -> None:
    tables = {
        "task": {
            "clients": 4,
            "model": {"name": "fedpara", "model": {"name": "mlp", "hidden": [64]}, "gamma": 0.2, "personal": True},
        },
        "local": {"lr": 0.1, "steps": 2},
        "run": {"rounds": 2, "device": "cpu", "chunk": 2},
        "strategy": [{"name": "Personal", "keep": ["*.w2_*"]}],
    }
    made = experiment.parse(tables)
    assert made.task.model == FedPara(models.MLP((64,)), 0.2, personal=True)
    assert experiment.parse(made.document()).task.model == made.task.model
    finished = [event for event in compare.compare(made) if type(event).__name__ == "Finished"]
    assert len(finished) == 1
    tables["task"]["model"] = {"name": "fedpara", "model": "mpl"}  # type: ignore[index]
    with pytest.raises(ValueError, match="did you mean 'mlp'"):
        experiment.parse(tables)
