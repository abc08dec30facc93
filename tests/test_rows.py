"""Rows: a table that holds what was written and nothing else, and knows its weighted mean."""

from __future__ import annotations

import pytest
import torch
from helpers import F64, close, copied, same, uniform
from torch import Tensor

from fedsim.rows import Rows


def table(n: int = 50, size: int = 4, dtype: torch.dtype = F64, seed: int = 0) -> tuple[Rows, Tensor, torch.Generator]:
    """An empty table with uneven weights p [n]."""
    g = torch.Generator().manual_seed(seed)
    p = torch.rand(n, dtype=F64, generator=g)
    p = p / p.sum()
    return Rows(p, torch.zeros(size, dtype=dtype)), p, g


def cohort(n: int, k: int, g: torch.Generator) -> Tensor:
    return torch.randperm(n, generator=g)[:k].sort().values


@pytest.mark.parametrize("dtype", [F64, torch.float32], ids=["float64", "float32"])
def test_against_a_plain_table_over_a_long_random_history(dtype: torch.dtype) -> None:
    rows, p, g = table(dtype=dtype)
    plain, written = torch.zeros(50, 4, dtype=dtype), torch.zeros(50, dtype=torch.bool)
    for t in range(3000):
        who = cohort(50, int(torch.randint(0, 9, (), generator=g)), g)
        # sizes from 1e-3 to 1e3, so that a sum that drifts would show
        values = (torch.randn(len(who), 4, dtype=F64, generator=g) * 10 ** (3 * torch.rand(1, generator=g) - 1.5)).to(
            dtype
        )
        rows[who] = values
        plain[who], written[who] = values, True
        if t % 100 == 0 or t == 2999:
            assert torch.equal(rows.dense(), plain)
            assert torch.equal(rows.seen(), written)
            assert torch.equal(rows[who], plain[who])
            close(rows.total, p @ plain.to(F64), 1e-12)
            close(rows.mean, (p @ plain.to(F64)).to(dtype), 1e-12)
            assert rows.mean.dtype == dtype


def test_the_running_mean_is_relatively_exact_over_a_long_history() -> None:
    rows, p, g = table(n=20, size=100)
    for _ in range(20_000):
        rows[cohort(20, 3, g)] = torch.randn(3, 100, dtype=F64, generator=g)
    exact = p @ rows.dense()
    assert ((rows.mean - exact).norm() / exact.norm()).item() < 1e-12


def test_absent_rows_are_untouched_bit_for_bit() -> None:
    rows, _, g = table()
    rows[torch.arange(50)] = torch.randn(50, 4, dtype=F64, generator=g)
    for _ in range(50):
        before, who = rows.dense(), cohort(50, 7, g)
        rows[who] = torch.randn(7, 4, dtype=F64, generator=g)
        gone = torch.tensor([i for i in range(50) if i not in who])
        assert torch.equal(rows[gone], before[gone])


def test_storage_grows_with_those_who_appeared() -> None:
    """A million clients of whom thirty appear cost thirty rows, or not many more."""
    rows = Rows(uniform(1_000_000), torch.zeros(8))
    assert rows.data.numel() == 0
    assert torch.equal(rows[torch.tensor([3, 999_999])], torch.zeros(2, 8))
    g = torch.Generator().manual_seed(0)
    who = cohort(1_000_000, 30, g)
    for _ in range(200):
        few = who[cohort(30, 5, g)]
        rows[few] = torch.randn(5, 8, generator=g)
    assert rows.seen().sum() <= 30
    assert len(rows.data) <= 60
    assert len(rows.tensors()["data"]) == int(rows.used) == int(rows.seen().sum())


def test_growth_in_steps_of_every_kind() -> None:
    """One by one, all at once, overlapping, and until the table is full."""
    rows, _, g = table(n=23)
    plain = torch.zeros(23, 4, dtype=F64)
    plan = [
        [22],
        [0],
        [0, 22],
        [1, 2, 3],
        [],
        [3, 4],
        list(range(5, 15)),
        [14, 15],
        list(range(23)),
        [7],
        list(range(23)),
    ]
    for listed in plan:
        who = torch.tensor(listed, dtype=torch.int64)
        values = torch.randn(len(listed), 4, dtype=F64, generator=g)
        rows[who], plain[who] = values, values
        assert torch.equal(rows.dense(), plain)
    assert len(rows.data) == 23


def test_reading_gives_copies_and_writing_takes_copies() -> None:
    rows, _, _ = table()
    values, who = torch.ones(2, 4, dtype=F64), torch.tensor([1, 2])
    rows[who] = values
    values += 1
    read = rows[who]
    read += 5
    mean = rows.mean
    kept = mean.clone()
    assert torch.equal(rows[who], torch.ones(2, 4, dtype=F64))
    rows[torch.tensor([3])] = torch.ones(1, 4, dtype=F64)
    assert torch.equal(mean, kept), "a mean that was read changes when the table is written"


def test_an_absent_client_counts_as_zero_in_the_mean() -> None:
    rows = Rows(torch.tensor([0.5, 0.25, 0.25], dtype=F64), torch.zeros(1, dtype=F64))
    assert rows.mean.tolist() == [0]
    rows[torch.tensor([1])] = torch.tensor([[8.0]], dtype=F64)
    assert rows.mean.tolist() == [2]
    assert rows.seen().tolist() == [False, True, False]
    assert rows.seen(torch.tensor([2, 1])).tolist() == [False, True]


def test_copies_and_checkpoints_hold_the_same_and_share_nothing() -> None:
    rows, _, g = table()
    for k in (3, 5, 8):
        rows[cohort(50, k, g)] = torch.randn(k, 4, dtype=F64, generator=g)
    twin, back = copied(rows), Rows(uniform(50), torch.zeros(4, dtype=F64)).restored(rows.tensors())
    same(rows, twin)
    same(rows, back)
    for _ in range(30):
        who, values = cohort(50, 6, g), torch.randn(6, 4, dtype=F64, generator=g)
        rows[who] = values
        back[who] = values
    same(rows, back)
    with pytest.raises(AssertionError):
        same(rows, twin)
    assert torch.equal(back.p, rows.p)


def test_a_float32_table_keeps_its_mean_in_float64() -> None:
    """So that 10⁵ small changes do not wander off."""
    rows = Rows(uniform(2), torch.zeros(1))
    who = torch.tensor([0])
    for i in range(20_001):
        rows[who] = torch.tensor([[0.1 if i % 2 else 1000.1]])
    exact = torch.tensor(1000.1).double() / 2
    assert rows.total.item() == pytest.approx(exact.item(), rel=1e-12)


def test_an_empty_cohort_reads_and_writes_nothing() -> None:
    rows, _, g = table()
    nobody = torch.empty(0, dtype=torch.int64)
    assert rows[nobody].shape == (0, 4)
    rows[nobody] = torch.empty(0, 4, dtype=F64)
    assert len(rows.data) == 0
    rows[torch.tensor([4])] = torch.randn(1, 4, dtype=F64, generator=g)
    assert rows[nobody].shape == (0, 4)
    assert len(rows) == 50
    assert "n=50" in repr(rows)
