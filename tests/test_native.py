"""fedsim's own operators give what torch's give, read nothing beyond their tensors, and are done without where they
cannot be compiled."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import needs_operators
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim import keyed, native

aten = torch.ops.aten
TOLERANCE = 2e-6  # of the sums of the terms' sizes


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def fenced(like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A tensor with the numbers and the strides of another, and all memory around it, which is NaN."""
    extent = 1 + sum((size - 1) * stride for size, stride in zip(like.shape, like.stride(), strict=True))
    memory = torch.full((extent + 64,), torch.nan)
    inside = memory[32:].as_strided(like.shape, like.stride())
    inside.copy_(like)
    return inside, memory


def intact(inside: torch.Tensor, memory: torch.Tensor) -> bool:
    """Whether nothing was written around a tensor that fills its memory."""
    return bool(memory[:32].isnan().all() and memory[32 + inside.numel() :].isnan().all())


def close(found: torch.Tensor, expected: torch.Tensor, size: torch.Tensor) -> bool:
    """Whether sums are right but for rounding, which is relative to the sizes of what was added up."""
    return bool(((found.double() - expected).abs() <= TOLERANCE * size + 1e-30).all())


sizes = st.integers(1, 40)
pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@needs_operators
@settings(deadline=None, max_examples=150)
@given(
    m=sizes, k=st.integers(1, 150), n=st.integers(1, 90), lanes=st.integers(0, 3), left=st.booleans(),
    right=st.booleans(), off=st.booleans(),
)  # fmt: skip
def test_products(m: int, k: int, n: int, lanes: int, left: bool, right: bool, off: bool) -> None:
    """Of any sizes, either matrix transposed, as they are or taken off something; a stack's are those of each alone."""
    if left and not right:  # neither can be read along: torch's product is taken
        return
    lead = (lanes,) if lanes else ()
    a = normal(*lead, k, m).mT if left else normal(*lead, m, k)
    b = normal(*lead, k, n, seed=1) if right else normal(*lead, n, k, seed=1).mT
    before = normal(*lead, m, n, seed=2)
    (a, _), (b, _), (out, memory) = fenced(a), fenced(b), fenced(before)
    multiply = native.operators().multiply.default
    multiply(out, a, b, off)
    exact, size = a.double() @ b.double(), a.double().abs() @ b.double().abs()
    assert close(out, before.double() - exact if off else exact, size + before.abs() * off)
    assert intact(out, memory)
    for lane in range(lanes):
        alone = before[lane].clone()
        multiply(alone, a[lane], b[lane], off)
        assert torch.equal(alone, out[lane])


@needs_operators
def test_a_product_of_what_cannot_be_read_along() -> None:
    with pytest.raises(RuntimeError, match="neither matrix can be read along"):
        native.operators().multiply.default(torch.empty(3, 5), normal(4, 3).mT, normal(5, 4).mT, False)


@needs_operators
@settings(deadline=None, max_examples=100)
@given(
    n=st.integers(1, 3), into=st.integers(1, 20), out=st.integers(1, 70), h=st.integers(1, 20), w=st.integers(1, 40),
    kh=st.integers(1, 5), kw=st.integers(1, 5), down=st.integers(0, 3), right=st.integers(0, 3), biased=st.booleans(),
)  # fmt: skip
def test_convolutions(
    n: int, into: int, out: int, h: int, w: int, kh: int, kw: int, down: int, right: int, biased: bool
) -> None:
    """Of any sizes: forward, its positive part, and all gradients."""
    if h + 2 * down < kh or w + 2 * right < kw:
        return
    operators, last = native.operators(), torch.channels_last
    rest = ([1, 1], [down, right], [1, 1], False, [0, 0], 1)
    x, weight = normal(n, into, h, w).contiguous(memory_format=last), normal(out, into, kh, kw, seed=1)
    bias = normal(out, seed=2) if biased else torch.empty(0)

    def convolved(x: Any, weight: Any) -> Any:
        return aten.convolution.default(x.double(), weight.double(), None, *rest)

    size = convolved(x.abs(), weight.abs())
    exact = convolved(x, weight) + (bias.double()[:, None, None] if biased else 0)
    for positive in (False, True):
        found, memory = fenced(torch.empty(exact.shape).contiguous(memory_format=last))
        operators.convolve.default(found, fenced(x)[0], weight, bias, down, right, positive)
        assert close(found, exact.relu() if positive else exact, size + 3)
        assert intact(found, memory)

    g = normal(*exact.shape, seed=3).contiguous(memory_format=last)

    def back(g: Any, x: Any, weight: Any) -> Any:
        return aten.convolution_backward.default(
            g.double(), x.double(), weight.double(), [out], *rest, [True, True, True]
        )

    exact, size = back(g, x, weight), back(g.abs(), x.abs(), weight.abs())
    of_x, around = fenced(torch.empty_like(x))
    of_weight, of_bias = torch.empty_like(weight), torch.empty_like(bias)
    operators.convolve_input.default(of_x, fenced(g)[0], weight, down, right)
    operators.convolve_weight.default(of_weight, of_bias, fenced(g)[0], fenced(x)[0], down, right)
    assert close(of_x, exact[0], size[0])
    assert intact(of_x, around)
    assert close(of_weight, exact[1], size[1])
    if biased:
        assert close(of_bias, exact[2], size[2])


@needs_operators
@settings(deadline=None, max_examples=60)
@given(
    c=st.integers(1, 40), h=st.integers(3, 12), w=st.integers(3, 12), window=pairs, step=pairs, ties=st.booleans(),
    holes=st.booleans(),
)  # fmt: skip
def test_pooling(c: int, h: int, w: int, window: Any, step: Any, ties: bool, holes: bool) -> None:
    """The maxima and their places to the last bit: the first of equals, and NaN before all."""
    x = normal(2, c, h, w)
    x = x.round() if ties else x
    if holes:
        x.view(-1)[::7] = torch.nan
        x.view(-1)[3::11] = -torch.inf
    x = x.contiguous(memory_format=torch.channels_last)
    expected, places = aten.max_pool2d_with_indices.default(x, window, step)
    found, at = torch.empty_like(expected), torch.empty_like(places)
    native.operators().pool.default(found, at, x, *window, *step)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(at, places)


@needs_operators
def test_what_is_no_number_stays_so() -> None:
    """Neither NaN nor infinity is lost on the way."""
    operators = native.operators()
    a, b = normal(20, 200), normal(10, 200)
    a[3, 150], a[4, 1] = torch.nan, torch.inf
    out = torch.empty(20, 10)
    operators.multiply.default(out, a, b.mT, False)
    assert out[3].isnan().all()
    assert not out[4].isfinite().any()
    assert out[5:].isfinite().all()
    x, weight = normal(1, 2, 8, 8).contiguous(memory_format=torch.channels_last), normal(4, 2, 3, 3)
    x[0, 1, 4, 4] = torch.nan
    found = torch.empty(1, 4, 8, 8).contiguous(memory_format=torch.channels_last)
    operators.convolve.default(found, x, weight, torch.empty(0), 1, 1, True)
    assert torch.equal(
        found.isnan(), aten.convolution.default(x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1).isnan()
    )


@needs_operators
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.int64, torch.float64])
@pytest.mark.parametrize("shape", [(7, 1), (9, 3, 5, 5), (4, 1000)])
def test_rows_by_number(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Of any type, bit for bit; a row that is not there is an error, and nothing is written."""
    pool = (100 * normal(*shape)).to(dtype)
    places = torch.tensor([0, 3, 3, shape[0] - 1, 1])
    take = native.operators().take.default
    for many in range(6):
        out = torch.full((many, *shape[1:]), 7, dtype=dtype)
        take(out, pool, places[:many])
        assert torch.equal(out, pool[places[:many]])
    out = torch.zeros(2, *shape[1:], dtype=dtype)
    for wrong in (-1, shape[0]):
        with pytest.raises(RuntimeError, match="no such row"):
            take(out, pool, torch.tensor([0, wrong]))
    assert not out.any()


@needs_operators
@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(1, 40), b=st.integers(1, 9), most=st.sampled_from([1, 7, 1000, 2**31, 2**62]), seed=st.integers(0, 99)
)
def test_shuffling(n: int, b: int, most: int, seed: int) -> None:
    """The integers that torch's operators give, for sizes up to the largest."""
    draw = torch.Generator().manual_seed(seed)
    size = torch.randint(1, most + 1, (n,), generator=draw)
    x = torch.randint(0, 2**62, (b, n), generator=draw) % size
    words = torch.randint(-(2**63), 2**63 - 1, (3, 24, n), generator=draw)
    pivot, odd, offset = (words[0] & (2**62 - 1)) % size, words[1] | 1, words[2]
    expected = x.clone()
    keyed.walk(expected, pivot, odd, offset, size)
    native.operators().shuffle.default(x, pivot, odd, offset, size)
    assert torch.equal(x, expected)


@needs_operators
def test_threads_do_not_disturb_each_other() -> None:
    """Scratch memory is each thread's own."""
    x = normal(8, 6, 14, 14).contiguous(memory_format=torch.channels_last)
    weight, bias = normal(16, 6, 5, 5), normal(16)
    expected = torch.empty(8, 16, 10, 10).contiguous(memory_format=torch.channels_last)
    convolve = native.operators().convolve.default
    convolve(expected, x, weight, bias, 0, 0, False)
    wrong: list[int] = []

    def many(seed: int) -> None:
        mine = normal(8, 6, 14, 14, seed=seed).contiguous(memory_format=torch.channels_last)
        out = torch.empty_like(expected)
        for _ in range(50):
            convolve(out, mine, weight, bias, 0, 0, False)
            convolve(out, x, weight, bias, 0, 0, False)
            if not torch.equal(out, expected):
                wrong.append(seed)

    threads = [threading.Thread(target=many, args=(seed,)) for seed in range(1, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


LOOK = """
from fedsim import keyed, native
pending = native.pending()
print(native.operators() is not None, pending, native.told(), sep=" | ")
"""


def look(**environment: str) -> str:
    """What another process finds."""
    out = subprocess.run(
        [sys.executable, "-c", LOOK],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"FEDSIM_NATIVE": "1"} | environment,
    )
    return out.stdout.strip()


def test_done_without(tmp_path: Path) -> None:
    """On request, without a compiler, and with one that fails; never an error."""
    assert look(FEDSIM_NATIVE="0") == "False | False | torch's (FEDSIM_NATIVE=0)"
    assert look(CXX="", PATH=str(tmp_path)) == "False | False | torch's (no C++ compiler)"
    broken = tmp_path / "broken"
    broken.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && { echo broken 1.0; exit 0; }\necho "no such flag" >&2\nexit 1\n'
    )
    broken.chmod(0o755)
    assert (
        look(CXX=str(broken), XDG_CACHE_HOME=str(tmp_path / "cache")) == "False | True | torch's (broken: no such flag)"
    )
    assert list((tmp_path / "cache" / "fedsim").iterdir()) == []


@needs_operators
def test_compiled_once(tmp_path: Path) -> None:
    """Into the user's cache."""
    assert look(XDG_CACHE_HOME=str(tmp_path)).startswith("True | True | fedsim's own, by ")
    (made,) = (tmp_path / "fedsim").iterdir()
    written = made.stat().st_mtime_ns
    assert look(XDG_CACHE_HOME=str(tmp_path)).startswith("True | False | ")
    assert [each.stat().st_mtime_ns for each in (tmp_path / "fedsim").iterdir()] == [written]


def test_where_there_is_no_place_for_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder for this process alone."""
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    folder = native.cache()
    assert folder.is_dir()
    assert list(folder.iterdir()) == []
    assert folder.stat().st_mode & 0o777 == 0o700


@needs_operators
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="these are switches for x86")
@pytest.mark.parametrize("without", ["-mno-avx512f", "-mno-avx512f -mno-avx2 -mno-avx -mno-fma"])
def test_on_lesser_processors(without: str, tmp_path: Path) -> None:
    """With shorter vectors, and without loads of parts of them, everything above holds too."""
    if "CXX" in os.environ:
        pytest.skip("CXX is set")
    chosen = ["products", "convolutions", "pooling", "shuffling", "no_number"]
    out = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", " or ".join(chosen)],
        capture_output=True, text=True, cwd=Path(__file__).parent.parent,
        env={**os.environ, "CXX": f"c++ {without}", "XDG_CACHE_HOME": str(tmp_path)},
    )  # fmt: skip
    assert out.returncode == 0, out.stdout[-3000:]
    assert " skipped" not in out.stdout.splitlines()[-1]
