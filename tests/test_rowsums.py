"""Sums of many long rows in float32: as good as float32 is, and a mean that does not wander off."""

from __future__ import annotations

import pytest
import torch
from helpers import F64, copied, uniform
from torch import Tensor

import fedsim.rows
from fedsim import rowsums
from fedsim.rows import Rows

GREATEST_PRIME = 65_521  # below 2^16: rows of this length have no equal parts


def weights(kind: str, k: int, g: torch.Generator) -> Tensor:
    p = torch.rand(k, dtype=F64, generator=g) + 0.1
    if kind == "multiples":
        return torch.stack([3 * p, p / 7, p])
    if kind == "equal":
        return torch.full((2, k), 0.01, dtype=F64)
    if kind == "none":  # the mean's alone
        return p[None]
    rest = torch.rand(1, k, dtype=F64, generator=g) - 0.5
    return torch.cat([rest, (p * (torch.arange(k) > 0))[None]])  # a weight of 0 too


@pytest.mark.parametrize("kind", ["multiples", "equal", "none", "apart"])
@pytest.mark.parametrize("size", [256, 4096, GREATEST_PRIME])
@pytest.mark.parametrize("k", [1, 300])
def test_sums_are_right_to_float32(k: int, size: int, kind: str) -> None:
    """Whatever the rows' length has for divisors, and however many groups they make."""
    g = torch.Generator().manual_seed(k)
    new, old = torch.randn(k, size, generator=g), torch.randn(40, size, generator=g)
    place = torch.randint(40, (k,), generator=g)
    w = weights(kind, k, g)
    total = torch.randn(size, dtype=F64, generator=g)
    exact = total + w[-1] @ (new.to(F64) - old.to(F64)[place])
    found = rowsums.exchanged(new, old, place, w, total)
    for told, rows in zip(found, (new, old[place]), strict=True):
        assert told.dtype == F64
        off = told - w[:-1] @ rows.to(F64)
        fair = (w[:-1].square() @ rows.to(F64).square()).sqrt()
        assert (off.abs() <= 1e-5 * fair + 1e-12).all()
    off = total - exact
    assert off.square().mean() <= (2e-6 * w[-1].norm()) ** 2


def test_rows_are_gone_through_in_equal_parts_where_there_are_any() -> None:
    assert rowsums.segment(1_600_000, 100) == 1280 == 1_600_000 // 1250
    assert rowsums.segment(GREATEST_PRIME, 100) == GREATEST_PRIME
    assert rowsums.segment(300, 100_000) == 300
    assert rowsums.segment(10, 3) == 10


def test_weights_that_are_multiples_take_one_sum() -> None:
    p = torch.tensor([0.2, 0.3, 0.5], dtype=F64)
    factors, units = rowsums.split(torch.stack([2 * p, p]))
    assert factors is not None
    torch.testing.assert_close(factors @ units, torch.stack([2 * p, p]))
    assert units.shape == (1, 3)
    _, units = rowsums.split(uniform(7)[None])
    assert units.tolist() == [[1.0] * 7]  # float32 holds these, and not every weight
    for other in (torch.tensor([0.1, 0.1, 0.1], dtype=F64), torch.zeros(3, dtype=F64)):
        factors, units = rowsums.split(torch.stack([other, p]))
        assert (factors is None) == bool(other.any())
    assert rowsums.split(torch.stack([p, torch.tensor([0.0, 0.5, 0.5], dtype=F64)]))[0] is None


@pytest.fixture
def long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every round is one of many long rows."""
    monkeypatch.setitem(fedsim.rows.PIECE, "cpu", 0)
    monkeypatch.setattr(fedsim.rows, "WIDE", 8)
    monkeypatch.setattr(Rows, "reweigh", in_one_piece(Rows.reweigh))


def in_one_piece(reweigh: object) -> object:
    """`reweigh` with the pieces as they are, and a count of how often it was called."""

    def counted(self: Rows, p: Tensor) -> None:
        self.anew = getattr(self, "anew", 0) + 1  # type: ignore[attr-defined]
        kept, fedsim.rows.PIECE["cpu"] = fedsim.rows.PIECE["cpu"], 64
        try:
            reweigh(self, p)  # type: ignore[operator]
        finally:
            fedsim.rows.PIECE["cpu"] = kept

    return counted


def played(rows: Rows, rounds: int, g: torch.Generator, scale: float = 1.0) -> float:
    """Rounds of 10 clients; how far off the mean was at worst, of sqrt(sum p² rows²)."""
    n, size, worst = len(rows), len(rows.total), 0.0
    for t in range(rounds):
        who = torch.randperm(n, generator=g)[:10].sort().values
        rows[who] = scale * torch.randn(10, size, generator=g)
        if t % 50 == 49:
            table = rows.dense().to(F64)
            fair = (rows.p.square() @ table.square()).mean().sqrt()
            worst = max(worst, float((rows.total - rows.p @ table).square().mean().sqrt() / fair))
    return worst


def table(n: int = 20, size: int = 600) -> tuple[Rows, torch.Generator]:
    g = torch.Generator().manual_seed(5)
    p = torch.rand(n, dtype=F64, generator=g) + 0.5
    return Rows(p / p.sum(), torch.zeros(size)), g


@pytest.mark.usefixtures("long")
def test_the_mean_does_not_wander_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the tolerance after any number of rounds; left alone it goes further with every round."""
    rows, g = table()
    assert played(rows, 1500, g) < 1.5 * fedsim.rows.TOLERANCE
    assert 1 <= rows.anew < 150  # type: ignore[attr-defined]
    allowed = 1.5 * fedsim.rows.TOLERANCE
    monkeypatch.setattr(fedsim.rows, "TOLERANCE", float("inf"))
    rows, g = table()
    assert played(rows, 1500, g) > allowed


@pytest.mark.usefixtures("long")
def test_what_was_huge_once_leaves_nothing_behind() -> None:
    rows, g = table()
    played(rows, 20, g)
    who = torch.arange(10)
    rows[who] = 1e10 * torch.randn(10, 600, generator=g)
    assert played(rows, 300, g) < 1.5 * fedsim.rows.TOLERANCE


@pytest.mark.usefixtures("long")
def test_a_copy_goes_on_bit_for_bit() -> None:
    """What is known of the mean goes along, so that it is summed anew in the same rounds."""
    rows, g = table()
    played(rows, 40, g)
    twin, back = copied(rows), Rows(rows.p, torch.zeros(600)).restored(rows.tensors())
    state = g.get_state()
    told = []
    for each in (rows, twin, back):
        g.set_state(state)
        each.anew = 0  # type: ignore[attr-defined]
        played(each, 200, g)
        told.append((each.total, each.witness, each.anew))  # type: ignore[attr-defined]
    assert told[0][2] > 0
    for other in told[1:]:
        assert torch.equal(other[0], told[0][0])
        assert torch.equal(other[1], told[0][1])
        assert other[2] == told[0][2]
    old = {name: value for name, value in rows.tensors().items() if name != "witness"}  # of fedsim 0.1
    before = Rows(rows.p, torch.zeros(600)).restored(old)
    assert torch.equal(before.witness, before.total[before._columns])


def test_rounds_of_both_kinds_are_one_history(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long rounds and short ones, growing, in either order: the rows exactly, the sums to float32."""
    rows, g = table(n=60, size=700)
    plain = torch.zeros(60, 700)
    for t in range(60):
        who = torch.randperm(60, generator=g)[: 1 + t % 9].sort().values
        values, w = torch.randn(len(who), 700, generator=g), torch.rand(len(who), dtype=F64, generator=g)
        if t % 3:
            monkeypatch.setitem(fedsim.rows.PIECE, "cpu", 0)
        told = rows.exchange(who, values, w)
        monkeypatch.undo()
        for found, exact in zip(told, (w @ values.to(F64), w @ plain[who].to(F64)), strict=True):
            torch.testing.assert_close(found, exact, rtol=0, atol=5e-6)
        plain[who] = values
        assert torch.equal(rows.dense(), plain)
        exact = rows.p @ plain.to(F64)
        torch.testing.assert_close(rows.total, exact, rtol=0, atol=2e-7)
        torch.testing.assert_close(rows.witness, exact[rows._columns], rtol=0, atol=1e-14)


@pytest.mark.usefixtures("long")
@pytest.mark.parametrize("threads", [1, 2])
def test_numbers_do_not_follow_the_threads(threads: int) -> None:
    before = torch.get_num_threads()
    rows, g = table(size=4096)
    torch.set_num_threads(threads)
    try:
        played(rows, 3, g)
    finally:
        torch.set_num_threads(before)
    other, g = table(size=4096)
    played(other, 3, g)
    assert torch.equal(rows.total, other.total)
    assert torch.equal(rows.dense(), other.dense())
