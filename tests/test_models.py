"""Models: the papers' sizes, modules as pure functions, dropout by key, and what is refused."""

from __future__ import annotations

import copy
import math
import pickle
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedsim import keyed, models
from fedsim.layers import KeyedDropout

GREY, COLOUR = (1, 28, 28), (3, 32, 32)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def states() -> tuple[object, ...]:
    """Everything a hidden draw would move."""
    return torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()


# --- models by name ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings", "shape", "classes", "expected"),
    [
        ("logistic", {}, GREY, 10, 7850),
        ("logistic", {}, (5,), 2, 12),
        ("mlp", {}, GREY, 10, 784 * 200 + 200 + 200 * 10 + 10),
        ("mlp", {"hidden": (200, 200)}, GREY, 10, 199_210),  # McMahan et al.: "199,210 total parameters"
        ("lenet5", {}, GREY, 10, 61_706),
        ("lenet5", {}, (1, 32, 32), 10, 61_706),
        ("lenet5", {}, COLOUR, 10, 62_006),
        ("lenet5", {}, (1, 12, 12), 10, 15_626),
        ("fedau-cnn", {}, GREY, 10, 211_690),
        ("fedau-cnn", {"layout": "svhn"}, COLOUR, 10, 273_706),
        ("fedau-cnn", {}, COLOUR, 10, 551_786),
        ("fedau-cnn", {}, COLOUR, 100, 1_216_260),
        ("fedau-cnn", {"layout": "cinic-10"}, COLOUR, 10, 1_193_130),
    ],
)
def test_sizes(name, settings, shape, classes, expected):
    module = models.build(name, shape, classes, **settings)
    assert count(module) == expected
    assert module(torch.zeros(3, *shape)).shape == (3, classes)
    assert sum(v.numel() for v in models.parameters(models.pure(module)).values()) == expected


@pytest.mark.parametrize("layout", ["fashion-mnist", "svhn", "cifar-10", "cifar-100", "cinic-10"])
def test_fedau_init(layout):
    module = models.build("fedau-cnn", COLOUR, 10, layout=layout)
    layers = [layer for layer in module if isinstance(layer, (nn.Conv2d, nn.Linear))]
    for layer in layers[:-1]:
        fan_in = layer.weight[0].numel()
        assert not layer.bias.any()
        assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / fan_in), rel=0.1)
        assert layer.weight.abs().max() > 2.5 * math.sqrt(2 / fan_in)  # normal, not uniform
    last = layers[-1]
    bound = 1 / math.sqrt(last.in_features)
    assert 0 < last.bias.abs().max() <= bound
    assert 0.95 * bound < last.weight.abs().max() <= bound


def test_fedau_dropout():
    def dropouts(layout):
        return [m.p for m in models.build("fedau-cnn", COLOUR, 10, layout=layout) if isinstance(m, nn.Dropout)]

    assert dropouts("cinic-10") == dropouts("cifar-100") == [0.2] * 3
    assert dropouts("svhn") == dropouts("cifar-10") == dropouts("fashion-mnist") == []


def test_scalar():
    module = models.build("scalar", (2,), 0, start=3.0)
    f = models.functional(models.pure(module))
    x = {"x": torch.tensor(2.0)}
    ab = torch.tensor([[1.0, 0.0], [0.5, 10.0]])
    assert f(x, ab).tolist() == [2.0, 16.0]
    gradient = torch.func.grad(lambda p: f(p, ab, keyed.fold(0)).sum())(x)
    assert gradient["x"] == 1 * 2 + 0.5 * (2 - 10)
    assert models.fresh(lambda: models.build("scalar", (2,), 0, start=3.0), 5)["x"] == 3.0


@pytest.mark.parametrize("name", models.NAMES)
def test_summaries(name):
    first = models.NAMES[name].__doc__.partition("\n")[0]
    assert 20 < len(first) < 117
    assert not first.startswith(models.NAMES[name].__name__ + "(")  # the dataclass's own


@pytest.mark.parametrize(
    ("arguments", "settings", "text"),
    [
        (("lenet", GREY, 10), {}, "did you mean 'lenet5'"),
        (("zzz", GREY, 10), {}, "known: fedau-cnn, fedpara, lenet5"),
        (("mlp", GREY, 10), {"hiden": (3,)}, "no setting 'hiden'; did you mean 'hidden'"),
        (("logistic", GREY, 10), {"hidden": (3,)}, "no setting 'hidden'"),
        (("mlp", GREY, 10), {"hidden": (0,)}, "at least 1"),
        (("mlp", GREY, 10), {"hidden": ()}, "use logistic"),
        (("fedau-cnn", GREY, 10), {"layout": "cifar10"}, "did you mean 'cifar-10'"),
        (("lenet5", (1, 8, 8), 10), {}, "side 12 or more, got [1, 8, 8]"),
        (("lenet5", (1, 28, 20), 10), {}, "square images"),
        (("lenet5", (784,), 10), {}, "square images"),
        (("fedau-cnn", (1, 3, 8), 10), {}, "side 4 or more"),
        (("fedau-cnn", (64,), 10), {}, "needs images"),
        (("logistic", (), 10), {}, "shape must be"),
        (("logistic", (3,), 0), {}, "use scalar"),
        (("logistic", (3,), -1), {}, "0 (none) or more"),
        (("scalar", (3,), 0), {}, "data quadratic only"),
        (("scalar", (2,), 0), {"start": float("nan")}, "finite"),
        ((models.Logistic(), (3,), 2), {"a": 1}, "built already"),
        ((nn.Linear(3, 2), (3,), 2), {}, "class or function"),
        ((lambda: 3, (3,), 2), {}, "must give a torch.nn.Module"),
        ((lambda width: nn.Linear(3, width), (3,), 2), {}, "needs the setting 'width'"),
        ((lambda width=2: nn.Linear(3, width), (3,), 2), {"wide": 1}, "did you mean 'width'"),
        ((lambda: nn.Linear(4, 2), (3,), 2), {}, "cannot take inputs of shape [b, 3]"),
        ((lambda: nn.Linear(3, 5), (3,), 2), {}, "gives [2, 5] for 2 examples; it must give [2, 2]"),
        ((lambda: nn.LSTM(3, 2), (4, 3), 2), {}, "gives tuple"),
    ],
)
def test_build_refuses(arguments, settings, text):
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        models.build(*arguments, **settings)
    assert text in str(caught.value)


def test_build_of_the_users_own(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self, classes, shape, width=7):\n"
        "        super().__init__(nn.Linear(*shape, width), nn.Linear(width, classes))\n"
        "def tokens(classes):\n"
        "    return nn.EmbeddingBag(11, classes)\n"
    )
    assert count(models.build("mine.py:Net", (3,), 2, width=4)) == 16 + 10
    assert count(models.build("mine.py:tokens", (5,), 2)) == 22  # takes whole numbers only
    assert models.build("torch.nn:Linear", (3,), 2, in_features=3, out_features=2).in_features == 3
    lazy = models.build(lambda classes: nn.Sequential(nn.Flatten(), nn.LazyLinear(classes)), GREY, 10)
    assert count(lazy) == 7850
    with pytest.raises(ValueError, match="did you mean 'Net'"):
        models.build("mine.py:Nett", (3,), 2)


# --- fresh weights ----------------------------------------------------------------------------------------------------


def test_fresh_is_decided_by_its_seed():
    def factory() -> nn.Module:
        return models.build("mlp", (6,), 3, hidden=(5,))

    one, again, other = models.fresh(factory, 1), models.fresh(factory, 1), models.fresh(factory, 2)
    assert list(one) == ["1.weight", "1.bias", "3.weight", "3.bias"]
    for name in one:
        assert torch.equal(one[name], again[name])
        assert not torch.equal(one[name], other[name])
        assert not one[name].requires_grad
    torch.manual_seed(5)
    assert torch.equal(models.fresh(factory, 1)["1.weight"], one["1.weight"])
    assert torch.equal(factory()[1].weight, factory()[1].weight)


def test_fresh_decides_numpy_and_random_too():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor([np.random.rand(), random.random()]))

    assert torch.equal(models.fresh(Odd, 1)["w"], models.fresh(Odd, 1)["w"])
    assert not (models.fresh(Odd, 1)["w"] == models.fresh(Odd, 2)["w"]).any()


def test_no_global_generator_moves():
    before = states()
    module = models.pure(models.build("fedau-cnn", COLOUR, 10, layout="cinic-10"))
    params = models.fresh(lambda: models.build("fedau-cnn", COLOUR, 10, layout="cinic-10"), 3)
    f = models.functional(module)
    f(params, torch.zeros(2, *COLOUR), keyed.fold(1))
    models.check_pure(f, params, torch.zeros(2, *COLOUR))
    models.build(lambda: nn.Linear(3, 2), (3,), 2)
    with pytest.raises(ZeroDivisionError), models.seeded(1):
        torch.rand(1), random.random(), np.random.rand(), 1 / 0
    assert states() == before


# --- pure -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (nn.BatchNorm1d(3), "use nn.GroupNorm"),
        (nn.BatchNorm2d(3, track_running_stats=False), "use nn.GroupNorm"),
        (nn.LazyBatchNorm3d(), "use nn.GroupNorm"),
        (nn.SyncBatchNorm(3), "use nn.GroupNorm"),
        (nn.InstanceNorm2d(3, track_running_stats=True), "track_running_stats=False or GroupNorm"),
        (nn.LazyLinear(3), "one batch"),
        (nn.AlphaDropout(0.1), "use nn.Dropout"),
        (nn.FeatureAlphaDropout(0.1), "use nn.Dropout"),
        (type("Mine", (nn.Dropout,), {})(0.1), "use nn.Dropout"),
        (nn.RReLU(), "without randomness"),
        (nn.FractionalMaxPool2d(2, output_size=2), "without randomness"),
        (nn.LSTM(3, 3, 2, dropout=0.5), "dropout 0.5 inside"),
        (nn.GRU(3, 3, 2, dropout=0.5), "dropout 0.5 inside"),
        (nn.MultiheadAttention(4, 2, dropout=0.5), "dropout 0.5 inside"),
    ],
)
def test_pure_refuses(layer, text):
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        models.pure(nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Identity(), layer)))
    assert str(caught.value).startswith(f"layer '1.1' is {type(layer).__name__}, ")
    assert text in str(caught.value)


@pytest.mark.parametrize(
    "layer",
    [
        nn.GroupNorm(1, 3),
        nn.LayerNorm(3),
        nn.InstanceNorm2d(3),
        nn.LSTM(3, 3),
        nn.MultiheadAttention(4, 2),
        nn.TransformerEncoderLayer(4, 2, dropout=0.0),
    ],
)
def test_pure_accepts(layer):
    models.pure(nn.Sequential(layer))


def test_pure_replaces_dropout_in_a_copy():
    shared = nn.Dropout(0.25)
    module = nn.Sequential(nn.Linear(3, 3), shared, nn.Sequential(shared, nn.Dropout2d(0.5)), nn.ModuleList([shared]))
    new = models.pure(module)
    assert module[1] is shared
    assert isinstance(new[1], KeyedDropout)
    assert new[1] is new[2][0] is new[3][0]
    assert (new[1].p, new[1].channels) == (0.25, False)
    assert (new[2][1].p, new[2][1].channels) == (0.5, True)
    assert not any(isinstance(m, nn.Dropout) for m in new.modules())
    assert isinstance(models.pure(nn.Dropout()), KeyedDropout)
    assert isinstance(pickle.loads(pickle.dumps(new))[1], KeyedDropout)
    assert count(copy.deepcopy(new)) == 12


# --- functional -------------------------------------------------------------------------------------------------------


class Scale(nn.Module):
    """Dropout twice through one layer, and once through another."""

    def __init__(self, p: float = 0.3, layer: type[nn.Module] = nn.Dropout) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(()))
        self.one, self.two = layer(p), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.one(self.w * x), self.one(self.w * x), self.two(self.w * x)], -1)


W = {"w": torch.ones(())}


def test_masks_are_a_function_of_key_layer_and_place():
    f = models.functional(models.pure(Scale()))
    key = keyed.fold(7, "test")
    x = torch.randn(5, 4)
    out = f(W, x, key)
    for layer, p in enumerate((0.3, 0.3, 0.5)):
        keep = keyed.uniform(keyed.fold(key, layer), torch.arange(20)).reshape(5, 4) >= p
        assert torch.equal(out[..., layer], torch.where(keep, x / (1 - p), torch.zeros(())))
    assert torch.equal(f(W, x, key), out)
    assert not torch.equal(out[..., 0], out[..., 1])  # one layer used twice has two masks
    assert not torch.equal(f(W, x, keyed.fold(8, "test")), out)
    padded = torch.cat([x, torch.zeros(3, 4)])
    assert torch.equal(f(W, padded, key)[:5], out)
    assert torch.equal(f(W, x), x[..., None].expand(5, 4, 3))  # no key: evaluation
    assert torch.equal(f(W, x, key), out)  # and back


def test_vmap_is_the_loop_bit_for_bit():
    f = models.functional(models.pure(Scale()))
    keys = keyed.fold(3, torch.arange(6))
    x = torch.randn(6, 5, 4)
    w = {"w": torch.randn(6)}
    together = torch.func.vmap(f, in_dims=(0, 0, 0), randomness="error")(w, x, keys)
    alone = torch.stack([f({"w": w["w"][i]}, x[i], keys[i]) for i in range(6)])
    assert torch.equal(together, alone)
    assert len({str((row != 0).tolist()) for row in together}) == 6  # every client its own mask
    shared = torch.func.vmap(f, in_dims=(0, None, None))(w, x[0], None)
    assert torch.equal(shared[2], f({"w": w["w"][2]}, x[0]))


def test_vmap_and_grad_of_a_network():
    module = models.build("fedau-cnn", (1, 8, 8), 10, layout="cinic-10")
    f = models.functional(models.pure(module))
    start = models.parameters(module)
    params = {name: torch.stack([value.detach() * scale for scale in (1.0, 1.1, 0.9)]) for name, value in start.items()}
    x, keys = torch.randn(3, 4, 1, 8, 8), keyed.fold(1, torch.arange(3))

    def loss(p: dict[str, Tensor], inputs: Tensor, key: Tensor) -> Tensor:
        return F.cross_entropy(f(p, inputs, key), torch.tensor([0, 1, 2, 3]))

    gradient = torch.func.grad(loss)
    together = torch.func.vmap(gradient, randomness="error")(params, x, keys)
    for i in range(3):
        alone = gradient({name: value[i] for name, value in params.items()}, x[i], keys[i])
        for name in alone:
            torch.testing.assert_close(together[name][i], alone[name], rtol=1e-4, atol=1e-5)


def test_dropout_statistics():
    f = models.functional(models.pure(nn.Sequential(nn.Linear(1, 1), nn.Dropout(0.2))))
    params = {"0.weight": torch.ones(1, 1), "0.bias": torch.zeros(1)}
    out = f(params, torch.ones(100_000, 1), keyed.fold(1))
    share = (out == 0).double().mean().item()
    assert share == pytest.approx(0.2, abs=5 * math.sqrt(0.16 / 100_000))
    assert set(out.unique().tolist()) == {0.0, 1.25}
    gradient = torch.func.grad(lambda p: f(p, torch.ones(100, 1), keyed.fold(1)).sum())(params)
    assert gradient["0.bias"].item() == pytest.approx(out[:100].sum().item())


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_dropout_at_its_limits(p):
    f = models.functional(models.pure(Scale(p)))
    x = torch.tensor([[1.0, float("inf")]])
    assert torch.equal(f(W, x, keyed.fold(1))[..., 0], x * (1 - p) if p == 0 else torch.zeros(1, 2))


def test_dropout_of_channels():
    f = models.functional(models.pure(Scale(0.5, nn.Dropout2d)))
    out = f(W, torch.ones(8, 6, 3, 3), keyed.fold(2))[..., 0]
    flat = out.flatten(2)
    assert torch.equal(flat.amin(2), flat.amax(2))
    assert set(flat.unique().tolist()) == {0.0, 2.0}
    with pytest.raises(ValueError, match="channels"):
        f(W, torch.ones(8, 6), keyed.fold(2))


def test_dropout_without_a_key_is_an_error_in_training():
    with pytest.raises(RuntimeError, match="functional"):
        models.pure(nn.Dropout()).train()(torch.ones(2))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.up.weight = self.down.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.up(torch.tanh(self.down(x)))


def test_tied_parameters_are_one():
    module = Tied()
    f = models.functional(models.pure(module))
    assert f.names == ("down.weight",)
    x = torch.randn(4, 3)
    w = torch.randn(3, 3, requires_grad=True)
    expected = torch.tanh(x @ w.T) @ w.T
    torch.testing.assert_close(f({"down.weight": w.detach()}, x), expected.detach())
    (wanted,) = torch.autograd.grad(expected.square().sum(), w)
    got = torch.func.grad(lambda p: f(p, x).square().sum())({"down.weight": w.detach()})
    torch.testing.assert_close(got["down.weight"], wanted)
    assert list(models.fresh(Tied, 1)) == ["down.weight"]


def test_frozen_parameters_and_buffers_are_constants():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[0].requires_grad_(False)
    module[0].register_buffer("unused", torch.ones(1))
    f = models.functional(models.pure(module))
    assert f.names == ("1.weight", "1.bias")
    x = torch.randn(3, 2)
    own = {name: value.detach() for name, value in models.parameters(module).items()}
    assert torch.equal(f(own, x), module(x))
    with pytest.raises(ValueError, match="nothing to train"):
        models.functional(module.requires_grad_(False))


def test_parameters_must_match():
    f = models.functional(models.pure(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match=r"missing or unknown: \['bias'\]"):
        f({"weight": torch.ones(2, 2)}, torch.ones(1, 2))


# --- what the layers do not show --------------------------------------------------------------------------------------


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.register_buffer("seen", torch.zeros(()))


class FunctionalDropout(Base):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.linear(x), 0.5, self.training)


class TorchNoise(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x + torch.randn_like(x))


class StochasticDepth(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * (random.random() < 0.5)


class NumpyNoise(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * np.random.rand()


class Counter(Base):
    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        return self.linear(x)


class BatchCentred(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x - x.mean(0))


@pytest.mark.parametrize(
    ("module", "text"),
    [
        (FunctionalDropout, "F.dropout"),
        (TorchNoise, "F.dropout"),
        (StochasticDepth, "F.dropout"),
        (NumpyNoise, "F.dropout"),
        (Counter, "changes its buffer 'seen'"),
        (BatchCentred, "depends on the other examples"),
    ],
)
def test_check_pure_refuses(module, text):
    f = models.functional(models.pure(module()))
    before = states()
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        models.check_pure(f, models.fresh(module, 1), torch.randn(4, 3, generator=torch.Generator().manual_seed(1)))
    assert text in str(caught.value)
    assert module.__name__ in str(caught.value)
    assert states() == before
    assert f.module.seen == 0


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.LayerNorm(3), nn.Identity()])
def test_check_pure_accepts(layer, batch):
    module = models.pure(nn.Sequential(nn.Linear(3, 3), layer))
    named = {name: value.detach() for name, value in models.parameters(module).items()}
    models.check_pure(models.functional(module), named, torch.randn(batch, 3))


# --- the house --------------------------------------------------------------------------------------------------------


def test_import_is_light():
    code = (
        "import sys, fedsim.data, fedsim.data.partition, fedsim.models, fedsim.resolve\n"
        "fedsim.models.FedAUCNN(), fedsim.data.Quadratic(), fedsim.data.partitions.FedAU()\n"
        "heavy = {'torch', 'flwr', 'sklearn', 'matplotlib', 'networkx', 'pandas', 'datasets'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=False)
    assert done.returncode == 0, done.stderr
