"""The larger models: exact sizes, one program for all clients, nobody's business but one's own, and they learn."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import load_benchmark
from torch import Tensor, nn
from torch.nn import functional as F

from fedsim import LocalSGD, Loop, Stacked, Work, experiment, keyed, make_task, models, simulate, strategies
from fedsim.data import Dataset, check
from fedsim.models.blocks import Attention, Patches
from fedsim.participation import Schedule
from fedsim.participation.schedule import Lists
from fedsim.rows import Rows
from fedsim.task import Task

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
GREY, COLOUR = (1, 28, 28), (3, 32, 32)

# small enough for many tests: what to build, an example's shape, classes
SMALL: dict[str, tuple[Any, tuple[int, ...], int]] = {
    "mcmahan-cnn": (models.McMahanCNN(), (1, 8, 8), 5),
    "pfl-cnn": (models.PFLCNN(), (3, 8, 8), 5),
    "resnet18": (models.ResNet18(groups=2, width=4), (3, 8, 8), 5),
    "pictures": (models.Transformer(dim=16, depth=2, heads=2, dropout=0.1), (3, 8, 8), 5),
    "tokens": (models.Transformer(dim=16, depth=2, heads=2, dropout=0.1), (12,), 7),
}
EVERY = pytest.mark.parametrize("name", SMALL)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def examples(name: str, number: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Inputs that say something about their targets: bright pictures, words whose last letter counts."""
    _, shape, classes = SMALL[name]
    g = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, classes, (number,), generator=g)
    if len(shape) == 1:
        inputs = torch.randint(0, classes, (number, *shape), generator=g)
        inputs[:, -1] = (targets + 1) % classes
        return inputs.to(torch.int8), targets
    pattern = torch.randn(classes, *shape, generator=g)
    return pattern[targets] + 0.3 * torch.randn(number, *shape, generator=g), targets


def task(name: str, n: int = 5, dtype: torch.dtype = torch.float64) -> Task:
    """n clients with 1 to about 15 examples each."""
    model, shape, classes = SMALL[name]
    inputs, targets = examples(name, 8 * n)
    rng = np.random.default_rng(1)
    first = np.r_[0, np.sort(rng.choice(np.arange(1, 8 * n), n - 1, replace=False))]
    parts: Any = SimpleNamespace(
        rows=rng.permutation(8 * n), first=first, size=np.diff(np.r_[first, 8 * n]), targets=None, moved=0
    )

    def build() -> nn.Module:
        return models.build(model, shape, classes)

    dataset = Dataset(name, inputs, targets, inputs, targets, classes)
    return make_task(dataset, parts, build(), seed_module=lambda s: models.fresh(build, s), dtype=dtype)


def train(engine: Any, task: Task, who: list[int], local: LocalSGD) -> Any:
    clients = torch.tensor(who)
    work = Work(task.fresh(1).expand(len(who), -1))
    return engine(task, clients, work, keyed.fold(3, "client", 0, clients), local, 0)


# --- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings", "shape", "classes", "expected"),
    [
        ("mcmahan-cnn", {}, GREY, 10, 1_663_370),  # the paper: "1,663,370 total parameters"
        ("mcmahan-cnn", {}, GREY, 62, 1_663_370 + 52 * 513),
        ("pfl-cnn", {}, COLOUR, 10, 1_626_442),
        ("resnet18", {}, COLOUR, 10, 11_173_962),
        ("resnet18", {"groups": 32}, COLOUR, 100, 11_173_962 + 90 * 513),  # the groups have no parameters of their own
        ("transformer", {}, COLOUR, 10, 107_978),
        ("transformer", {"vocabulary": 90}, (80,), 80, 116_176),
    ],
)
def test_sizes(name: str, settings: dict[str, Any], shape: tuple[int, ...], classes: int, expected: int) -> None:
    module = models.build(name, shape, classes, **settings)
    assert count(module) == expected
    assert sum(v.numel() for v in models.parameters(models.pure(module)).values()) == expected
    inputs = torch.zeros(2, *shape, dtype=torch.int64 if len(shape) == 1 else torch.float32)
    assert module.eval()(inputs).shape == (2, classes)


@pytest.mark.parametrize(("length", "dim", "depth", "classes", "vocabulary"), [(5, 8, 1, 3, 11), (7, 12, 3, 6, None)])
def test_the_transformers_size(length: int, dim: int, depth: int, classes: int, vocabulary: int | None) -> None:
    module = models.build("transformer", (length,), classes, dim=dim, depth=depth, heads=4, vocabulary=vocabulary)
    layer = 4 * dim * dim + 4 * dim + 2 * 2 * dim + 8 * dim * dim + 5 * dim
    ends = (vocabulary or classes) * dim + length * dim + 2 * dim + dim * classes + classes
    assert count(module) == ends + depth * layer


# --- layouts ----------------------------------------------------------------------------------------------------------


def test_resnets_stages() -> None:
    module = models.build("resnet18", COLOUR, 10, width=4)
    sides, x = [], torch.zeros(1, *COLOUR)
    for layer in list(module)[:-3]:
        x = layer(x)
        sides.append(tuple(x.shape[1:]))
    assert sides[2:] == [(4, 32, 32)] * 3 + [(8, 16, 16)] * 2 + [(16, 8, 8)] * 2 + [(32, 4, 4)] * 2
    convolutions = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
    assert len([m for m in convolutions if m.kernel_size == (3, 3)]) + 1 == 18  # and the linear layer; shortcuts apart
    assert all(m.bias is None for m in convolutions)
    for m in (m for m in models.build("resnet18", COLOUR, 10).modules() if isinstance(m, nn.Conv2d)):
        fan_out = m.out_channels * m.kernel_size[0] ** 2
        assert m.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)


def test_pfl_dropout_and_init() -> None:
    module = models.build("pfl-cnn", COLOUR, 10)
    assert [m.p for m in module if isinstance(m, nn.Dropout)] == [0.25, 0.5]
    for m in module:
        if isinstance(m, (nn.Conv2d, nn.Linear)):
            field = m.weight[0, 0].numel()
            bound = (6 / ((m.weight.shape[0] + m.weight.shape[1]) * field)) ** 0.5
            assert 0.95 * bound < m.weight.abs().max() <= bound
            assert m.bias.any()


def test_attention_is_torchs() -> None:
    ours = Attention(12, 3)
    theirs = nn.MultiheadAttention(12, 3, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.projections.weight)
        theirs.in_proj_bias.copy_(ours.projections.bias)
        theirs.out_proj.weight.copy_(ours.out.weight)
        theirs.out_proj.bias.copy_(ours.out.bias)
    x = torch.randn(4, 7, 12, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours(x), theirs(x, x, x, need_weights=False)[0])


def test_patches_are_a_strided_convolution() -> None:
    patches = Patches(3, 4, 6)
    x = torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(2))
    by = F.conv2d(x, patches.linear.weight.view(6, 3, 4, 4), patches.linear.bias, stride=4)
    torch.testing.assert_close(patches(x), by.flatten(2).transpose(1, 2))


def test_the_last_place_decides() -> None:
    module = models.build("transformer", (6,), 4, dim=8, depth=2, heads=2)
    words = torch.tensor([[0, 1, 2, 3, 0, 1], [3, 3, 3, 3, 3, 1], [0, 1, 2, 3, 0, 2]])
    seen = module(words)
    assert not torch.allclose(seen[0], seen[1])  # attention looks at all places
    for layer in module.modules():
        if isinstance(layer, Attention):
            nn.init.zeros_(layer.out.weight)
    alone = module(words)
    torch.testing.assert_close(alone[0], alone[1])
    assert not torch.allclose(alone[0], alone[2])


# --- one program for all clients --------------------------------------------------------------------------------------


@EVERY
def test_every_operator_has_a_batching_rule(name: str) -> None:
    """vmap's slow fallback is switched off, so whatever needs it fails."""
    made = task(name, dtype=torch.float32)
    params = {k: v[None].repeat(3, *[1] * v.dim()) for k, v in made.first_of(1).items()}
    rows = torch.arange(12).view(3, 4)

    def loss(p: dict[str, Tensor], inputs: Tensor, targets: Tensor, key: Tensor) -> Tensor:
        return made.losses(p, inputs, targets, key).mean()

    given = (params, made.inputs[rows], made.targets[rows], torch.arange(3))
    torch._C._functorch._set_vmap_fallback_enabled(False)
    try:
        slopes = torch.func.vmap(torch.func.grad(loss), randomness="error")(*given)
    finally:
        torch._C._functorch._set_vmap_fallback_enabled(True)
    for value in slopes.values():
        assert torch.isfinite(value).all()
        assert value.flatten(1).any(1).all()


@EVERY
def test_the_engines_agree(name: str) -> None:
    made, local = task(name), LocalSGD(lr=0.1, steps=3, batch=4)
    stacked, loop = (train(engine, made, list(range(5)), local) for engine in (Stacked(chunk=2), Loop()))
    assert stacked.delta.abs().max() > 1e-4
    torch.testing.assert_close(stacked.delta, loop.delta, rtol=1e-5, atol=1e-12)
    torch.testing.assert_close(stacked.loss, loop.loss, rtol=1e-5, atol=1e-12)


@EVERY
def test_a_client_does_not_notice_the_others(name: str) -> None:
    made, local = task(name, dtype=torch.float32), LocalSGD(lr=0.1, steps=2, batch=4)
    every = train(Stacked(chunk=3), made, [0, 1, 2, 3, 4], local)
    some = train(Stacked(chunk=3), made, [1, 4], local)
    assert torch.equal(some.delta, every.delta[[1, 4]])
    assert torch.equal(some.loss, every.loss[[1, 4]])


@pytest.mark.parametrize("name", ["resnet18", "pictures", "tokens"])
def test_they_learn(name: str) -> None:
    made = task(name, n=1, dtype=torch.float32)
    lr = 0.5 if name == "tokens" else 0.1
    first, last = (train(Stacked(chunk=1), made, [0], LocalSGD(lr=lr, steps=s, batch=None)).loss for s in (1, 40))
    assert first.item() > 1.3
    assert last.item() < 0.75 * first.item()  # the mean over the steps


# --- large models, large populations ----------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", [strategies.FedVARP(), strategies.MIFA(), strategies.SCAFFOLD()])
def test_memory_follows_those_who_appeared(strategy: Any) -> None:
    """Of ten thousand clients twelve appear: what is remembered are rows of theirs, and nothing else has P columns."""
    n, appearing = 10_000, np.arange(5, 10_000, 900)
    model, shape, classes = SMALL["mcmahan-cnn"]
    inputs, targets = examples("mcmahan-cnn", 8)
    parts: Any = SimpleNamespace(rows=np.arange(n) % 8, first=np.arange(n), size=np.ones(n, int), targets=None, moved=0)
    module = models.build(model, shape, classes)
    made = make_task(Dataset("few", inputs, targets, inputs, targets, classes), parts, module)
    chosen = Lists(np.arange(7) * 4, np.tile(appearing, 2).astype(np.int32))
    local = LocalSGD(lr=0.1, steps=1)
    for step in simulate(made, strategy, Schedule(n, 6, chosen), local, engine=Stacked(2)):
        last = step
    tables = [part for part in last.state if isinstance(part, Rows)]
    assert len(tables) == 1
    assert tables[0].seen().nonzero()[:, 0].tolist() == appearing.tolist()
    assert len(appearing) <= len(tables[0].data) <= 1.5 * len(appearing)
    numbers = sum(part.numel() for part in last.state if isinstance(part, Tensor))
    assert numbers <= 3 * made.layout.size + n


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "settings", "text"),
    [
        (("mcmahan-cnn", (784,), 10), {}, "mcmahan-cnn needs images [channels, height, width] of side 4"),
        (("mcmahan-cnn", (1, 3, 8), 10), {}, "got [1, 3, 8]"),
        (("pfl-cnn", (3, 5, 5), 10), {}, "side 6 or more"),
        (("resnet18", (3, 32), 10), {}, "resnet18 needs images"),
        (("resnet18", (3, 7, 9), 10), {}, "side 8 or more"),
        (("resnet18", COLOUR, 10), {"groups": 3}, "groups must divide the width 64, got 3"),
        (("resnet18", COLOUR, 10), {"groups": 0}, "groups must divide"),
        (("resnet18", COLOUR, 10), {"width": 0}, "width must be at least 1"),
        (("resnet18", COLOUR, 10), {"group": 2}, "did you mean 'groups'"),
        (("transformer", COLOUR, 10), {"patch": 5}, "patch must divide the sides of [3, 32, 32], got 5"),
        (("transformer", COLOUR, 10), {"heads": 5}, "heads must divide the dim 64, got 5"),
        (("transformer", COLOUR, 10), {"depth": 0}, "depth must be at least 1"),
        (("transformer", COLOUR, 10), {"dropout": 1.0}, "below 1"),
        (("transformer", (9, 128), 10), {}, "or tokens [length], got [9, 128]"),
        (("transformer", (9,), 0), {}, "needs data with classes"),
    ],
)
def test_impossible_settings(arguments: Any, settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        models.build(*arguments, **settings)
    assert text in str(caught.value)


def of(inputs: Tensor, model: Any, test: Tensor | None = None) -> Task:
    """A task of one client."""
    targets = torch.zeros(len(inputs), dtype=torch.int64)
    dataset = Dataset("words", inputs, targets, inputs if test is None else test, targets, 4)
    parts: Any = SimpleNamespace(
        rows=np.arange(len(inputs)), first=np.array([0]), size=np.array([len(inputs)]), targets=None, moved=0
    )
    return make_task(check(dataset), parts, models.build(model, tuple(inputs.shape[1:]), 4))


def test_tokens_stay_as_they_are() -> None:
    words = torch.tensor([[0, 3, 1], [2, 2, 0]], dtype=torch.int8)
    ready = of(words, models.Transformer(dim=4, depth=1, heads=1)).ready(words)
    assert ready.dtype == torch.int64
    assert ready.tolist() == words.tolist()


@pytest.mark.parametrize("where", ["train", "test"])
def test_tokens_without_a_place_are_refused(where: str) -> None:
    """In a table of many clients' embeddings they would be another client's."""
    words = torch.zeros(3, 5, dtype=torch.int64)
    wrong = copy.deepcopy(words)
    wrong[1, 2] = 4
    given = (wrong, words) if where == "train" else (words, wrong)
    with pytest.raises(ValueError, match=r"^the model has no place for all of the data's tokens, 0 to 4; set its voc"):
        of(given[0], models.Transformer(dim=4, depth=1, heads=1), given[1])
    of(given[0], models.Transformer(dim=4, depth=1, heads=1, vocabulary=5), given[1])


def test_tokens_are_for_models_of_tokens() -> None:
    with pytest.raises(ValueError, match=r"^the model cannot take tokens, which the data's int64 inputs are[^\n]+$"):
        of(torch.zeros(3, 5, dtype=torch.int64), models.Logistic())
    with pytest.raises(ValueError, match=r"^transformer reads[^\n]+ are no whole numbers but float32; use mlp$"):
        of(torch.zeros(3, 5), models.Transformer())
    with pytest.raises(ValueError, match="training tokens must be 0 or more, got -1"):
        of(torch.full((3, 5), -1), models.Transformer())
    wrong = Dataset(
        "words", *[torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)] * 2, 4, 0.5, 1.0
    )
    with pytest.raises(ValueError, match="mean and std are for pictures"):
        check(wrong)


@pytest.mark.parametrize(
    ("file", "model"),
    [
        ("resnet18_cifar10.toml", models.ResNet18(groups=2)),
        ("transformer_shakespeare.toml", models.Transformer(dropout=0.1)),
    ],
)
def test_the_experiments_are_read(file: str, model: Any) -> None:
    """As they are, and with a setting that is impossible: one line with the file and the key."""
    path = BENCHMARKS / file
    assert experiment.load(path).task.model == model
    key = "width" if file.startswith("resnet") else "heads"
    with pytest.raises(ValueError, match=rf"^[^\n]*{key}[^\n]*$"):
        experiment.load(path, [f"task.model.{key}=5"])


def test_the_benchmark_measures() -> None:
    """Its cases at a small size; Linux says how much memory there was."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("needs Linux's /proc")
    benchmark = load_benchmark("large_models")
    found = benchmark.large("MIFA", 50, "logistic")
    assert (found["rounds"], found["parameters"]) == (10, 30_730)
    assert 0 <= found["rounds_mb"] < 500
