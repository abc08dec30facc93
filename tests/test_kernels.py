"""Other ways to compute an operator's value give that value, to rounding, and are taken where they should be."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from helpers import needs_operators
from torch import nn

from fedsim import native
from fedsim.engine import heap
from fedsim.engine.traced import kernels
from fedsim.engine.traced.kernels import pictures, products
from fedsim.engine.traced.program import Program, agrees, compiled

aten = torch.ops.aten
SAME = {"rtol": 1e-4, "atol": 1e-4}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Node:
    """As much of a traced operator as a choice looks at."""

    def __init__(self, target: Any) -> None:
        self.target = target


def linear() -> list[Any]:
    """Products of matrices as Linear's forward and backward passes ask for them."""
    x, w, g = normal(3, 20, 784), normal(3, 200, 784), normal(3, 20, 200)
    return [
        pytest.param(aten.bmm.default, (x, w.mT), id="forward"),
        pytest.param(aten.bmm.default, (g, w), id="of-inputs"),
        pytest.param(aten.bmm.default, (g.mT, x), id="of-weights"),
        pytest.param(aten.mm.default, (x[0], w[0].mT), id="one-forward"),
        pytest.param(aten.mm.default, (g[0].mT, x[0]), id="one-of-weights"),
        pytest.param(aten.addmm.default, (normal(200), x[0], w[0].mT), id="with-bias"),
    ]


needs_onednn = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this build of torch has no oneDNN"
)


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where there is no compiler: the libraries torch calls."""
    monkeypatch.setattr(native, "operators", lambda: None)


@pytest.fixture(params=[pytest.param(True, marks=needs_operators, id="own"), pytest.param(False, id="libraries")])
def either(request: pytest.FixtureRequest) -> bool:
    """With fedsim's own operators, and as where there is no compiler."""
    if not request.param:
        request.getfixturevalue("libraries")
    return bool(request.param)


def check(target: Any, args: tuple[Any, ...]) -> None:
    """The way found gives the operator's value, as a new tensor and in buffers that held something else."""
    way = kernels.way(Node(target), args)  # type: ignore[arg-type]
    assert way is not None
    expected, found = target(*args), way.run(*args)
    assert agrees(found, expected)
    if way.into is not None:
        many = isinstance(found, tuple)
        buffers = [None if one is None else torch.full_like(one, 77) for one in (found if many else [found])]
        for call, given, named in way.into(buffers if many else buffers[0], args):
            call(*given, **named)
        for buffer, one in zip(buffers, expected if many else [expected], strict=True):
            assert (buffer is None) == (one is None)
            if buffer is not None:
                torch.testing.assert_close(buffer, one, **SAME)


@needs_operators
@pytest.mark.parametrize(("target", "args"), linear())
def test_own_products(target: Any, args: tuple[Any, ...]) -> None:
    """By fedsim's own operator, but not those of other precisions, nor large ones whichever way one looks at them, nor
    sums of few terms of matrices that can only be read along these."""
    check(target, args)
    assert kernels.way(Node(target), tuple(one.double() for one in args)) is None  # type: ignore[arg-type]
    assert products.owned(normal(100, 200), normal(200, 100)) is None
    assert products.owned(normal(20, 200), normal(200, 100)) is not None
    assert products.owned(normal(20, 200), normal(100, 200).mT) is not None
    assert products.owned(normal(20, 90), normal(100, 90).mT) is None


@needs_onednn
@pytest.mark.usefixtures("libraries")
@pytest.mark.parametrize(("target", "args"), linear())
def test_large_products(target: Any, args: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """By oneDNN where it is the faster one; small ones and those of other precisions never."""
    monkeypatch.setattr(products, "onednn", lambda: True)
    check(target, args)
    small = tuple(one[..., :8] if one.ndim == 1 else one[..., :8, :8] for one in args)
    assert kernels.way(Node(target), small) is None  # type: ignore[arg-type]
    assert kernels.way(Node(target), tuple(one.double() for one in args)) is None  # type: ignore[arg-type]
    monkeypatch.setattr(products, "onednn", lambda: False)
    assert kernels.way(Node(target), args) is None  # type: ignore[arg-type]


@pytest.mark.usefixtures("libraries")
def test_narrow_products() -> None:
    """Ten columns: as the transpose of the transposes' product."""
    x, w = normal(7, 20, 784), normal(7, 10, 784)
    check(aten.bmm.default, (x, w.mT))
    assert kernels.way(Node(aten.bmm.default), (x, w.mT.contiguous())) is None  # type: ignore[arg-type]
    assert kernels.way(Node(aten.bmm.default), (x, normal(7, 32, 784).mT)) is None  # type: ignore[arg-type]


@needs_onednn
@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("lanes", [0, 1, 3])
def test_taken_off(fast: bool, turned: bool, lanes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A product is taken off weights that lie in a longer vector, transposed or not."""
    monkeypatch.setattr(products, "onednn", lambda: fast)
    lead = (lanes,) if lanes else ()
    g, x = normal(*lead, 20, 200), normal(*lead, 20, 784, seed=1)
    y = normal(*lead, 5 + 200 * 784, seed=2)
    w = y[..., 5:].view(*lead, 200, 784)
    before = w.clone()
    left, right = (x.mT, g) if turned else (g.mT, x)
    for call, given, named in kernels.subtract(w.mT if turned else w, left, right):
        call(*given, **named)
    torch.testing.assert_close(w, before - g.mT @ x, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("channels", [(1, 6), (6, 16), (16, 8)])
@pytest.mark.parametrize("mask", [[True, True, True], [False, True, False], [True, True, False], [False, True, True]])
def test_convolutions(channels: tuple[int, int], mask: list[bool]) -> None:
    """Pictures come out with their channels last, of one channel too, and gradients are the same."""
    into, out = channels
    x, w, b = normal(4, into, 12, 12), normal(out, into, 5, 5, seed=1), normal(out, seed=2)
    rest = ([1, 1], [2, 2], [1, 1], False, [0, 0], 1)
    check(aten.convolution.default, (x, w, b, *rest))
    way = kernels.way(Node(aten.convolution.default), (x, w, b, *rest))  # type: ignore[arg-type]
    assert way is not None
    assert way.run(x, w, b, *rest).is_contiguous(memory_format=torch.channels_last)
    check(aten.convolution_backward.default, (normal(4, out, 12, 12, seed=3), x, w, [out], *rest, mask))
    grouped = (normal(4, 2 * into, 12, 12), normal(2, into, 5, 5), None, *rest[:-1], 2)
    assert kernels.way(Node(aten.convolution.default), grouped) is None  # type: ignore[arg-type]


@needs_operators
def test_pooling() -> None:
    """Of channels that lie last, without borders."""
    pool = Node(aten.max_pool2d_with_indices.default)
    x = pictures.last(normal(4, 6, 10, 9))
    check(pool.target, (x, [2, 2], [2, 2]))
    check(pool.target, (x, [3, 2], [2], [0, 0], [1, 1], False))
    for args in ((x.contiguous(), [2, 2]), (x.double(), [2, 2]), (x, [2, 2], [2, 2], [1, 1]), (x, [12, 2])):
        assert kernels.way(pool, args) is None  # type: ignore[arg-type]


def test_pooling_back() -> None:
    x = pictures.last(normal(4, 6, 10, 10))
    _, places = aten.max_pool2d_with_indices.default(x, [2, 2], [2, 2])
    g = normal(4, 6, 5, 5, seed=1)
    rest = (x, [2, 2], [2, 2], [0, 0], [1, 1], False, places)
    check(aten.max_pool2d_with_indices_backward.default, (g, *rest))
    assert kernels.way(Node(aten.max_pool2d_with_indices_backward.default), (pictures.last(g), *rest)) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("large", [1.0, 80.0, 1e4])
def test_log_softmax(large: float) -> None:
    """Large scores neither overflow nor give NaN."""
    for shape in ((9, 20, 10), (90, 10)):
        x, g, last = large * normal(*shape), normal(*shape, seed=1), len(shape) - 1
        value = torch.log_softmax(x, -1)
        for layout in (torch.Tensor.contiguous, lambda x: x.mT.contiguous().mT):  # examples, or classes, side by side
            check(aten._log_softmax.default, (layout(x), last, False))
            check(aten._log_softmax_backward_data.default, (g, layout(value), last, torch.float32))
            check(aten._log_softmax_backward_data.default, (layout(g), value, last, torch.float32))
    x = normal(9, 20, 10)
    for wrong in ((x, 1, False), (x[:, :5], 2, False), (normal(50, 40), 1, False)):
        assert kernels.way(Node(aten._log_softmax.default), wrong) is None  # type: ignore[arg-type]


def test_a_way_that_is_wrong_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Held against the operator when the program is made."""
    monkeypatch.setitem(kernels.WAYS, "aten.mm.default", lambda a, b: kernels.Way(lambda a, b: a @ b + 1e-3))
    a, b = normal(8, 8), normal(8, 8, seed=1)
    program = Program(lambda a, b: [torch.mm(a, b).relu()], [a, b])
    assert program.calls is not None
    assert program()[0].equal((a @ b).relu())


def test_a_convolution_that_ends_in_relu_is_one_call() -> None:
    """And where something else looks at it too, it is computed by itself."""
    conv = nn.Conv2d(3, 5, 3).requires_grad_(False)
    x = normal(2, 3, 8, 8)

    def alone(x: torch.Tensor) -> list[torch.Tensor]:
        return [conv(x).relu()]

    def seen(x: torch.Tensor) -> list[torch.Tensor]:
        out = conv(x)
        return [out.relu(), out * 2]

    for function, calls in ((alone, 1), (seen, 3)):
        assert len(compiled(function, [x], []).calls) == calls
        program = Program(function, [x])
        assert program.calls is not None
        for seed in (4, 5):
            x.copy_(normal(2, 3, 8, 8, seed=seed))
            with torch.no_grad():
                for found, expected in zip(program(), function(x), strict=True):
                    torch.testing.assert_close(found, expected, **SAME)


def test_what_is_taken_off_is_taken_off_last(either: bool) -> None:
    """Weights that the backward pass still needs are whole until then, and making the program changes nothing."""
    w, v, x = normal(6, 5), normal(4, 6, seed=1), normal(3, 5, seed=2)

    def step(w: torch.Tensor, v: torch.Tensor, x: torch.Tensor) -> list[torch.Tensor]:
        def loss(w: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            return torch.tanh(torch.tanh(x @ w.mT) @ v.mT).square().sum()

        return [*torch.func.grad(loss, (0, 1))(w, v), loss(w, v)]

    before = w.clone(), v.clone()
    program = Program(step, [w, v, x], [w, v])
    assert program.calls is not None
    assert w.equal(before[0])
    assert v.equal(before[1])
    for _ in range(3):
        *slopes, value = step(w, v, x)
        expected = w - slopes[0], v - slopes[1]
        (found,) = program()
        torch.testing.assert_close(found, value)
        torch.testing.assert_close((w, v), expected)
    names = [getattr(call, "__name__", "") for call, _, _ in program.calls]
    assert names[-2:] == 2 * ["multiply.default" if either else "addmm.out"]


def test_memory_stays() -> None:
    """What a process has let go of is not asked of the system again; settings of the user's own are left alone."""
    text = """
import resource, torch
from fedsim.engine import heap
kept = heap.keep()
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
sizes = [1, 3, 8, 2]
def some():
    for size in sizes: torch.ones(size << 18).sum()
for _ in range(5): some()
before = faults()
for _ in range(50): some()
print(kept, faults() - before)
"""
    seen = {}
    for name, more in (("ours", {}), ("theirs", {"MALLOC_MMAP_THRESHOLD_": "65536"})):
        ran = subprocess.run(
            [sys.executable, "-c", text], capture_output=True, text=True, check=True, env={**clean(), **more}
        )
        kept, faults = ran.stdout.split()
        seen[name] = (kept == "True", int(faults))
    assert not seen["theirs"][0]
    if seen["ours"][0]:  # with glibc
        assert 5 * seen["ours"][1] < seen["theirs"][1]  # seldom, a block is asked for once more


def clean() -> dict[str, str]:
    """The environment without settings of malloc's."""
    import os

    return {name: value for name, value in os.environ.items() if name not in heap.SETTINGS}
