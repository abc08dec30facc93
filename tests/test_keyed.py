"""Keyed randomness: the same numbers for the same key, whoever else draws, and good enough to be called random."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import close

from fedsim import keyed

# Keys ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [0, 1, -1, 2**31, 2**63 - 1, -(2**63), 123456789012345])
def test_python_ints_and_tensors_give_the_same_key(key: int) -> None:
    whole = keyed.fold(key, "train", 7, -3)
    assert whole.dtype == torch.int64
    for one, two, three in itertools.product((False, True), repeat=3):
        base = torch.tensor(key) if one else key
        parts = (torch.tensor(7) if two else 7, torch.tensor(-3) if three else -3)
        assert torch.equal(keyed.fold(base, "train", *parts), whole)
    assert torch.equal(keyed.fold(keyed.fold(key, "train"), 7, -3), whole)
    assert torch.equal(keyed.fold(keyed.fold(key, "train", 7), -3), whole)
    assert keyed.seed(key, "train", 7, -3) == (int(whole) % 2**64) >> 1


def test_seeds_fit_every_generator() -> None:
    for key in range(200):
        value = keyed.seed(key, "init")
        assert 0 <= value < 2**63
        torch.Generator().manual_seed(value)
        np.random.default_rng(value)


def test_keys_are_the_same_in_every_process_and_version() -> None:
    """Pinned: changing the hash would silently change every experiment."""
    code = "from fedsim import keyed; print(keyed.seed(42, 'train', 3), int(keyed.fold(42, 'train', 3)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    assert [int(v) for v in out.split()] == [7831935526443056835, -2782873020823437945]
    # the mixer is splitmix64's: the reference generator seeded with 0 begins with these
    state, outputs = 0, []
    for _ in range(3):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        outputs.append(int(keyed._mix(torch.tensor(state - 2**64 if state >> 63 else state))) % 2**64)
    assert outputs == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [keyed._mix_int((i + 1) * 0x9E3779B97F4A7C15 % 2**64) for i in range(3)] == outputs


def test_every_part_matters_and_so_does_their_order() -> None:
    keys = [
        keyed.fold(1), keyed.fold(1, 0), keyed.fold(1, 0, 0), keyed.fold(0, 1), keyed.fold(1, 2, 3),
        keyed.fold(1, 3, 2), keyed.fold(3, 2, 1), keyed.fold(1, "a"), keyed.fold(1, "b"), keyed.fold(1, "a", "b"),
        keyed.fold(1, "ab"), keyed.fold(1, "b", "a"),
    ]  # fmt: skip
    assert len({int(k) for k in keys}) == len(keys)
    grid = keyed.fold(5, torch.arange(300)[:, None], torch.arange(300))
    assert len(grid.unique()) == 300 * 300


def test_parts_broadcast_and_a_draw_does_not_know_its_batch() -> None:
    who = torch.tensor([2, 5, 11])
    both = keyed.uniform(keyed.fold(3, "train", 9, who)[:, None], torch.arange(6))
    assert both.shape == (3, 6)
    for row, i in enumerate(who.tolist()):
        assert torch.equal(keyed.uniform(keyed.fold(3, "train", 9, i), torch.arange(6)), both[row])
        assert keyed.uniform(3, "train", 9, i, 4) == both[row, 4]


# Numbers -------------------------------------------------------------------------------------------------------------


def test_uniform_moments_and_range() -> None:
    u = keyed.uniform(0, torch.arange(1_000_000))
    assert u.dtype == torch.float64
    assert u.min() >= 0
    assert u.max() < 1
    for power in (1, 2, 3, 4):  # standard errors below 3e-4
        assert (u**power).mean().item() == pytest.approx(1 / (power + 1), abs=1.5e-3)
    assert torch.corrcoef(torch.stack([u[:-1], u[1:]]))[0, 1].abs() < 5e-3
    counts = torch.histc(u, 1000, 0, 1)
    chi2 = ((counts - 1000) ** 2 / 1000).sum().item()
    assert abs(chi2 - 999) < 5 * math.sqrt(2 * 999)


def test_uniform_is_uniform_along_every_part() -> None:
    """Over seeds, rounds and clients alike, and uncorrelated between neighbours in each."""
    seeds = torch.stack([keyed.uniform(s, "purpose", 1, 2) for s in range(3000)])
    rounds = keyed.uniform(9, "purpose", torch.arange(3000), 2)
    clients = keyed.uniform(9, "purpose", 1, torch.arange(3000))
    for u in (seeds, rounds, clients):
        assert u.mean().item() == pytest.approx(0.5, abs=0.025)
        assert u.var().item() == pytest.approx(1 / 12, abs=0.006)
        assert torch.corrcoef(torch.stack([u[:-1], u[1:]]))[0, 1].abs() < 0.1


def test_normal_moments() -> None:
    z = keyed.normal(4, torch.arange(1_000_000))
    assert z.isfinite().all()
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3)):
        assert (z**power).mean().item() == pytest.approx(moment, abs=0.03)
    assert (z.abs() > 1.959964).double().mean().item() == pytest.approx(0.05, abs=2e-3)
    assert z.abs().max() > 4


# Permutations --------------------------------------------------------------------------------------------------------

SIZES = [*range(1, 70), 100, 127, 128, 129, 255, 256, 1000, 4097, 65_536]


def test_permutations_are_exact_for_every_size() -> None:
    for size in SIZES:
        for key in range(5):
            p = keyed.permutation(keyed.fold(key, "epoch"), size)
            assert torch.equal(p.sort().values, torch.arange(size)), (size, key)


def test_a_batch_of_permutations_is_each_of_them() -> None:
    """Different keys and sizes side by side, positions in any order and any number."""
    keys, size = keyed.fold(1, torch.arange(len(SIZES))), torch.tensor(SIZES)
    position = torch.arange(64).expand(len(SIZES), -1)
    table = keyed.shuffled(keys, position, size)
    for row, n in enumerate(SIZES):
        alone = keyed.permutation(keys[row], n)
        assert torch.equal(table[row, : min(n, 64)], alone[:64])
        assert (table[row] >= 0).all()
        assert (table[row] < n).all()
        backwards = torch.tensor([n - 1, 0])
        assert torch.equal(keyed.shuffled(keys[row], backwards, size[row]), alone[backwards])


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_small_permutations_are_uniform(size: int) -> None:
    """Chi-square over all size! permutations: 24 at size 4."""
    draws = 24_000
    keys = keyed.fold(11, torch.arange(draws))
    p = keyed.shuffled(keys, torch.arange(size).expand(draws, -1), torch.full((draws,), size))
    code = (p * size ** torch.arange(size)).sum(1)
    counts = torch.unique(code, return_counts=True)[1].double()
    cells = math.factorial(size)
    assert len(counts) == cells
    chi2 = ((counts - draws / cells) ** 2 / (draws / cells)).sum().item()
    assert chi2 < (cells - 1) + 4.5 * math.sqrt(2 * (cells - 1))


@pytest.mark.parametrize("size", [10, 37, 600])
def test_positions_and_neighbours_are_uniform(size: int) -> None:
    """Where each position goes, and the distance between where two neighbours go, are as in a random permutation."""
    draws = 200 * size if size < 100 else 12_000
    keys = keyed.fold(12, torch.arange(draws))
    for position in (0, 1, size // 2, size - 1):
        pair = torch.tensor([position, (position + 1) % size]).expand(draws, -1)
        at = keyed.shuffled(keys, pair, torch.full((draws,), size))
        for values, cells in ((at[:, 0], size), ((at[:, 1] - at[:, 0]) % size - 1, size - 1)):
            counts = torch.bincount(values, minlength=cells).double()
            chi2 = ((counts - draws / cells) ** 2 / (draws / cells)).sum().item()
            assert abs(chi2 - (cells - 1)) < 5 * math.sqrt(2 * (cells - 1)), position


def test_minibatches_of_two_epochs_have_little_in_common() -> None:
    """The overlap of two keys' first batches is hypergeometric in the mean."""
    draws, size, batch = 4000, 50, 10
    at = torch.arange(batch).expand(draws, -1)
    one, two = (
        keyed.shuffled(keyed.fold(3, "epoch", torch.arange(draws), e), at, torch.full((draws,), size)) for e in (0, 1)
    )
    overlap = (one[:, :, None] == two[:, None, :]).sum((1, 2)).double()
    assert overlap.mean().item() == pytest.approx(batch * batch / size, abs=0.08)
    assert overlap.var().item() == pytest.approx(2 * 0.8 * 40 / 49, abs=0.1)


def test_every_fixed_point_count_is_as_in_random_permutations() -> None:
    """One fixed point in the mean, with variance one."""
    draws, size = 8000, 20
    p = keyed.shuffled(
        keyed.fold(8, torch.arange(draws)), torch.arange(size).expand(draws, -1), torch.full((draws,), size)
    )
    fixed = (p == torch.arange(size)).sum(1).double()
    close(torch.stack([fixed.mean(), fixed.var()]), torch.ones(2, dtype=torch.float64), 0.08)
